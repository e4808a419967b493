"""One search of the table: an ordinary run in a folder of its own, which ends with the search.

It trains everything itself, as if it were alone: checkpoints of another search would make its trials cheaper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.methods import method_config
from bench.table1.limits import Limit
from bench.table1.recipe import codes_name
from bench.table1.session import Session
from qra_bo.config import gptq_tokens
from qra_bo.memory.budget import largest
from qra_bo.pipeline.folders import path_name
from qra_bo.pipeline.run import searcher_factory
from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.profile import typical_profile
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.setting import Setting
from qra_bo.trials import Proposal, Trial

FOLDER = "searches"
UNIFORM, SIMPLE = "uniform_only", "simple_only"
WITHOUT_PROPOSALS = {UNIFORM: f"{__name__}.UniformOnly", SIMPLE: f"{__name__}.SimpleOnly"}


class UniformOnly:
    """Searcher without proposals: the result is the best of the engine's uniform baselines."""

    name, published = UNIFORM, True

    def __init__(self, problem: SearchProblem) -> None:
        pass

    def ask(self, n: int) -> list[Proposal]:
        return []

    def tell(self, trials: Sequence[Trial]) -> None:
        """Ignore all trials."""


class SimpleOnly(UniformOnly):
    """The same, of uniform choices and mixes by rule."""

    name, published = SIMPLE, False


def check_method(session: Session) -> None:
    """Construct the configured method, so that its errors come before any training.

    Raises:
        UserError: If its options are wrong.
    """
    s = session.setting
    profile = typical_profile(s.space)
    budget = largest(s.memory.table(s.space), s.space)[0]
    searcher_factory(session.config)(s.problem(budget, profile, float(session.config.effort.max_full_trials)))


def search_setting(session: Session, limit: Limit, method: str, options: Mapping[str, Any],
                   changes: Mapping[str, Any]) -> Setting:
    """Return the setting of one search within ``limit``; arguments as in ``search``."""
    c = session.config
    own = {"_target_": WITHOUT_PROPOSALS[method]} if method in WITHOUT_PROPOSALS else options
    return session.setting_of(limit, **{
        "task": "search", "effort": c.effort.with_changes(references=False, stop=None),
        "budget": (str(session.budget_bytes(limit)) if limit.budget is None else limit.budget,),
        "method": method_config(method, own), "confirm": c.confirm.with_changes(seeds=0), **changes})


def search(session: Session, name: str, limit: Limit, method: str, options: Mapping[str, Any] | None = None,
           changes: Mapping[str, Any] | None = None) -> RunOutcome:
    """Profile, calibrate, evaluate the uniform baselines and search; a search that is begun is resumed.

    Args:
        session: Of the table.
        name: Of the row, for the folder.
        limit: Limit on memory and bits.
        method: Name of a search method or peer, or one ``WITHOUT_PROPOSALS`` for the baselines alone.
        options: Of the method.
        changes: Top-level keys of the configuration that differ from the table's.

    Raises:
        UserError: If the search can't work within this limit.
        RunInterrupted: On a signal, after a clean journal.
    """
    setting = search_setting(session, limit, method, options or {}, changes or {})
    config = setting.config
    tokens = gptq_tokens(config, setting.memory.spec) if config.quantizer.rounding == "gptq" else None
    effort = f"{config.effort.max_full_trials}eq{codes_name(tokens)}"
    folder = session.folder / FOLDER / path_name(f"{name}-{limit.name}-{effort}".replace("<=", "max"))
    oracle = session.executor(limit.scope, tokens, config.bits, folder=folder)
    return Engine(folder, setting, session.budget_bytes(limit), oracle, searcher_factory(config),
                  fine_tunes=False).run()
