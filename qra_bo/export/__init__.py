"""Exports of a finished run: its own loader, and one target for each trainer, quantiser and server.

``load.load`` (``qra_bo.load``) rebuilds base and adapter, ``export_all`` writes targets of ``registry.TARGETS``, and
``foreign`` refuses hostile folders. A new target is one module or template here and one line in ``registry``.
"""
