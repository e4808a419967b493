"""Data sets: records from files, the hub or embedded texts, split, and packed into token blocks.

A new record format is a function and a line in ``jsonl``; a new source is a module and a line in ``load.read_data``.
"""
