"""Joint bit-width and LoRA-rank allocation for fine-tuning language models within a memory budget.

The names below are loaded when they are first used, so that ``import qra_bo`` is quick and needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_bo.config.schema import RunConfig, load_config
    from qra_bo.export.load import load
    from qra_bo.memory.model import MemoryModel
    from qra_bo.oracle.protocol import Oracle
    from qra_bo.pipeline.run import Result, search
    from qra_bo.space import Allocation, SearchSpace

__version__ = "0.1.0"
__all__ = ["Allocation", "MemoryModel", "Oracle", "Result", "RunConfig", "SearchSpace", "load", "load_config", "search"]

_HOMES = {"Allocation": "qra_bo.space", "MemoryModel": "qra_bo.memory.model", "Oracle": "qra_bo.oracle.protocol",
          "Result": "qra_bo.pipeline.run", "RunConfig": "qra_bo.config.schema", "SearchSpace": "qra_bo.space",
          "load": "qra_bo.export.load", "load_config": "qra_bo.config.schema", "search": "qra_bo.pipeline.run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
