"""One run: the engine, its journal, baselines, search loop, confirmation, final fine-tune and results.

The engine is the only caller of oracles; every other package reads a run through its journal.
"""

from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.journal import JOURNAL_NAME, Journal, read_journal
from qra_bo.study.results import load_study
from qra_bo.study.setting import BytesPredictor, Setting
from qra_bo.study.signals import RunInterrupted
from qra_bo.study.state import Study

__all__ = ["JOURNAL_NAME", "BytesPredictor", "Engine", "Journal", "RunInterrupted", "RunOutcome", "Setting", "Study",
           "load_study", "read_journal"]
