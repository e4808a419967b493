"""One run: the engine, its journal, baselines, search loop, confirmation, verdict, final fine-tune and results.

The engine is the only caller of oracles; every other package reads a run through its journal. Six floors: header and
journal; records of events; the study folded from them; trials and the verdict; the parts of a run; the engine.
"""

from qra_bo.study.cost import cost_of
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.events import Event
from qra_bo.study.journal import JOURNAL_NAME, read_journal, session_seconds
from qra_bo.study.reading import load_study
from qra_bo.study.results import metadata_bits
from qra_bo.study.search_loop import MakeSearcher
from qra_bo.study.setting import Setting
from qra_bo.study.signals import RunInterrupted
from qra_bo.study.state import Study, loss_of
from qra_bo.study.trial_runner import Listener
from qra_bo.study.verdict import Verdict, VerdictKind, verdict_of

__all__ = ["JOURNAL_NAME", "Engine", "Event", "Listener", "MakeSearcher", "RunInterrupted", "RunOutcome", "Setting",
           "Study", "Verdict", "VerdictKind", "cost_of", "load_study", "loss_of", "metadata_bits", "read_journal",
           "session_seconds", "verdict_of"]
