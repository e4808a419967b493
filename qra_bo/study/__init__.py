"""One run: the engine, its journal, baselines, search loop, confirmation, final fine-tune and results.

The engine is the only caller of oracles; every other package reads a run through its journal.
"""

from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.intervals import LEAST_SEEDS, spearman
from qra_bo.study.journal import JOURNAL_NAME, RESERVED, Journal, read_journal, session_seconds
from qra_bo.study.results import allocation_name, load_study, metadata_bits
from qra_bo.study.search_loop import MakeSearcher
from qra_bo.study.setting import BytesPredictor, Setting
from qra_bo.study.signals import RunInterrupted
from qra_bo.study.state import UNSEARCHED_STAGES, Cost, Study, cost_of, loss_of
from qra_bo.study.trial_runner import Listener

__all__ = ["JOURNAL_NAME", "LEAST_SEEDS", "RESERVED", "UNSEARCHED_STAGES", "BytesPredictor", "Cost", "Engine",
           "Journal", "Listener", "MakeSearcher", "RunInterrupted", "RunOutcome", "Setting", "Study", "allocation_name",
           "cost_of", "load_study", "loss_of", "metadata_bits", "read_journal",
           "session_seconds", "spearman"]
