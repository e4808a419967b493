"""One search of the table: the same engine as a run's, with a journal of its own and nothing after the search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.peers.registry import player_target
from bench.table1.limits import Limit
from bench.table1.recipe import codes_name, with_codes
from bench.table1.session import Session
from qra_bo.config import NOT_OF_THE_RESULT, RunConfig
from qra_bo.config.target import Target
from qra_bo.pipeline.folders import path_name
from qra_bo.pipeline.run import searcher_factory
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.shared import SharedExecutor
from qra_bo.trials import Proposal, Trial

FOLDER = "searches"
SHARED = frozenset({*NOT_OF_THE_RESULT, "budget", "method", "max_average_bits"})
"""Keys in which searches may differ that use one another's evaluations, each at its own charge."""


class UniformOnly:
    """Proposes nothing: what the engine's uniform baselines say is the result."""

    name = "uniform_only"

    def ask(self, n: int) -> list[Proposal]:
        return []

    def tell(self, evaluations: Sequence[Trial]) -> None:
        """Anchors teach it nothing."""


def search_config(session: Session, limit: Limit, method: str, params: Mapping[str, Any],
                  changes: Mapping[str, Any]) -> RunConfig:
    """The configuration of one search within ``limit``; ``changes`` are to the table's own."""
    config = session.config
    budget = str(session.budget_bytes(limit)) if limit.budget is None else limit.budget
    target = {} if method == UniformOnly.name else player_target(method, params)
    effort = config.effort.with_changes(references=False, ranking_top=0)
    return config.with_changes(**{
        "task": "search", "budget": (budget,), "max_average_bits": limit.max_average_bits, "effort": effort,
        "memory": config.memory.with_changes(scope=limit.scope), "method": Target.model_validate({"name": method, **target}),
        "confirm": config.confirm.with_changes(seeds=0), **changes})


def search(session: Session, name: str, limit: Limit, method: str | None, params: Mapping[str, Any] | None = None,
           changes: Mapping[str, Any] | None = None, gptq_tokens: int | None = None) -> RunOutcome:
    """Profile, calibrate, evaluate the uniform baselines and search; begun, gone on with, or read where it is done.

    Args:
        session: The table.
        name: Of the row, for the folder.
        limit: Within which to search.
        method: Name of a search method or peer; ``None`` for the uniform baselines alone.
        params: Of the method.
        changes: Top-level keys of the configuration that differ from the table's.
        gptq_tokens: How codes are chosen, as in ``Recipe``.

    Raises:
        UserError: If the search can't work within this limit.
        RunInterrupted: On a signal, after a clean journal.
    """
    config = search_config(session, limit, method or UniformOnly.name, params or {},
                           {**(changes or {}), "quantizer": with_codes(session.config, gptq_tokens).quantizer})
    effort = f"{config.effort.max_full_trials}eq{codes_name(gptq_tokens)}"
    folder = session.folder / FOLDER / path_name(f"{name}-{limit.name}-{effort}".replace("<=", "max"))
    setting = session.setting_of(limit, config.ranks, config.bits)
    budget = session.budget_bytes(limit)
    oracle = session.executor(config.adapter.init, limit.scope, gptq_tokens, config.bits)
    shared = SharedExecutor(oracle, folder, _others(folder), config.to_dict(), SHARED)
    make = searcher_factory(config) if method is not None else lambda problem: UniformOnly()
    return Engine(folder, replace(setting, config=config), budget, shared, make, fine_tunes=False).run()


def _others(folder: Path) -> list[Path]:
    """Folders of the table's other searches."""
    return sorted(p for p in folder.parent.glob("*") if p.is_dir() and p != folder)
