"""Helpers that know nothing of models or searches: errors, files, redaction of secrets, registries, devices.

Import them from their modules; none loads torch when imported.
"""
