"""Data sets: records from files, the hub or embedded texts, split, and packed into token blocks.

A new record format is a function and a line in ``jsonl``; a new source is a module and a line in ``load.read_data``.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"Conversation": "conversations", "DataConfig": "options", "DataSplits": "records", "Record": "records",
          "TokenBlocks": "records", "load_data": "load"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
