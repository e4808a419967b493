"""One run: the engine, its journal, baselines, search loop, confirmation, final fine-tune and results.

The engine is the only caller of oracles; every other package reads a run through its journal. The names below are
loaded when they are first used: planning memory needs no search methods.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_bo.study.engine import Engine, RunOutcome
    from qra_bo.study.journal import JOURNAL_NAME, Journal, read_journal
    from qra_bo.study.results import load_study
    from qra_bo.study.setting import BytesPredictor, Setting
    from qra_bo.study.signals import RunInterrupted
    from qra_bo.study.state import Study

__all__ = ["JOURNAL_NAME", "BytesPredictor", "Engine", "Journal", "RunInterrupted", "RunOutcome", "Setting", "Study",
           "load_study", "read_journal"]

_MODULES = {"JOURNAL_NAME": "journal", "BytesPredictor": "setting", "Engine": "engine", "Journal": "journal",
            "RunInterrupted": "signals", "RunOutcome": "engine", "Setting": "setting", "Study": "state",
            "load_study": "results", "read_journal": "journal"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
