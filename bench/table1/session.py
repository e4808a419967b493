"""Trials of a table: fine-tunings at given learning rates and seeds, each journaled once."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.table1.config import NAME, TableConfig, TableOptions, load_options
from bench.table1.journal import OWN_FIELDS, TableJournal
from bench.table1.limits import Limit
from bench.table1.recipe import OWN, STARTS, Recipe, codes_name, embeddings_name, start_of, with_codes
from qra_bo.config import RunConfig, gptq_tokens
from qra_bo.execution.base import Executor, ProfileResult
from qra_bo.memory.budget import largest, resolve_budget
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.oracle.protocol import quiet
from qra_bo.pipeline.executors import make_executor
from qra_bo.pipeline.prepare import make_setting
from qra_bo.space import CostTable, SearchSpace
from qra_bo.study.journal import run_lock
from qra_bo.study.setting import Setting, training_seeds
from qra_bo.trials import TrialResult, TrialSpec, TrialState
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import writing

UNQUANTISED = 16
Event = Mapping[str, Any]


class _Kind(NamedTuple):
    """Settings in which the oracles of a table differ."""

    scope: str
    gptq_tokens: int | None
    bits: tuple[int, ...]
    embeddings: int | None
    folder: Path | None


@contextmanager
def open_session(config: TableConfig, folder: Path) -> Iterator["Session"]:
    """Open the journal of the table in ``folder``, which is made if it is absent; its oracle is closed at the end.

    Args:
        config: Of the table.
        folder: Of the table.

    Raises:
        JournalError: If the folder holds a table of another configuration.
        UserError: If the folder can't be used, or the model's shapes are not available.
    """
    setting = make_setting(config.run)
    with writing(folder, "run the same command again"):
        folder.mkdir(parents=True, exist_ok=True)
    with run_lock(folder):
        session = Session(config, setting, folder, TableJournal(config, folder / NAME))
        try:
            yield session
        finally:
            session.close()


@contextmanager
def table_session(config: RunConfig, folder: Path, options: TableOptions | None = None) -> Iterator["Session"]:
    """Open a session whose trials are kept in ``folder``; it is resumed where it exists.

    Raises:
        ConfigError: If ``quantizer.rounding`` is not ``rtn``.
    """
    if config.quantizer.rounding != "rtn":
        raise ConfigError(f"quantizer.rounding={config.quantizer.rounding}: this benchmark compares at "
                          "round-to-nearest codes; give quantizer.rounding=rtn")
    with open_session(TableConfig(config, options or load_options()), folder) as session:
        yield session


class Session:
    """The space, limits and oracle of a table. One oracle is open at a time; another adapter initialisation, memory
    scope, choice of codes or embedding needs another.

    Args:
        config: Of the table and of its runs.
        setting: Space, memory model, device and given profile.
        folder: Of the table.
        results: Its journal.
    """

    def __init__(self, config: TableConfig, setting: Setting, folder: Path, results: TableJournal) -> None:
        self.config, self.options, self.folder, self.results = config.run, config.table, folder, results
        # Limits name their own scopes and average bits.
        self.setting = replace(setting, memory=replace(setting.memory, scope="peak"),
                               config=setting.config.with_changes(max_average_bits=None))
        self._bytes: dict[tuple[str, str], int] = {}
        self._open: tuple[_Kind, Executor] | None = None

    @property
    def space(self) -> SearchSpace:
        return self.setting.space

    @property
    def steps(self) -> int:
        """Optimiser steps of trials and finals."""
        return self.options.steps or self.config.fidelity.high

    @property
    def train_seed(self) -> int:
        """Training seed of searches and learning-rate trials."""
        return training_seeds(self.config.seed, 0)[0]

    def memory(self, scope: str) -> MemoryModel:
        return replace(self.setting.memory, scope=scope)

    def predicted_bytes(self, recipe: Recipe, scope: str) -> int:
        """Return the predicted bytes of a recipe in ``scope``."""
        key = recipe.key, scope
        if key not in self._bytes:
            self._bytes[key] = recipe.predicted_bytes(self.memory(scope), self.space)
        return self._bytes[key]

    def setting_of(self, limit: Limit, **changes: Any) -> Setting:
        """Return the setting within ``limit``; ``changes`` are to top-level keys of the configuration."""
        config = self.config.with_changes(max_average_bits=limit.max_average_bits,
                                          memory=self.config.memory.with_changes(scope=limit.scope), **changes)
        space = replace(self.space, ranks=config.ranks, formats=tuple(map(parse_format, config.format_names)))
        return replace(self.setting, config=config, space=space, memory=self.memory(limit.scope))

    def budget_bytes(self, limit: Limit) -> int:
        """Return the bytes of ``limit``; without a budget, those of the largest allocation of the space."""
        memory = self.memory(limit.scope)
        if limit.budget is None:
            return largest(memory.table(self.space), self.space)[0]
        return resolve_budget(limit.budget, memory, self.space)

    def costs_at(self, limit: Limit, rank: int) -> CostTable:
        """Return bytes by format, ``L x F x 1``, with one rank everywhere, and the limit on average bits."""
        return self.setting_of(limit, ranks=(rank,)).costs(self.budget_bytes(limit))

    @property
    def gptq_tokens(self) -> int:
        """Calibration tokens of GPTQ.

        Raises:
            ConfigError: If the oracle has no model and no text.
        """
        if self.config.oracle.name != "finetune":
            raise ConfigError(f"GPTQ needs calibration text, which oracle={self.config.oracle.name} does not have")
        return gptq_tokens(self.config, self.setting.memory.spec)

    def ladder(self, bits: Iterable[int]) -> tuple[int, ...]:
        """Return the bits of an oracle that serves ``bits``: the configured ladder if that holds them."""
        own = self.config.bits
        return own if set(bits) <= {*own, UNQUANTISED} else tuple(sorted({*own, *self.options.finer_bits}))

    def executor(self, scope: str, gptq_tokens: int | None = None, bits: Iterable[int] = (),
                 embeddings: int | None = None, folder: Path | None = None) -> Executor:
        """Return the open oracle of these settings; another one is closed first.

        Args:
            scope: Memory scope of its measurements.
            gptq_tokens: Choice of codes, as in ``Recipe``.
            bits: Bit-widths that it must serve.
            embeddings: Bits of the embedding, as in ``Recipe``.
            folder: Of a search, for its checkpoints; ``None`` for those of the table.
        """
        kind = _Kind(scope, gptq_tokens, self.ladder(bits), embeddings, folder)
        if self._open is not None and self._open[0] != kind:
            self.close()
        if self._open is None:
            config = with_codes(self.config, gptq_tokens).with_changes(
                bits=kind.bits, memory=self.config.memory.with_changes(scope=scope),
                embeddings=self.config.embedding_bits if embeddings is None else embeddings)
            # Checkpoints of different codes or embeddings must not share a folder.
            folder = folder or self.folder / "oracles" / "".join(
                [OWN, codes_name(gptq_tokens), embeddings_name(embeddings)])
            folder.mkdir(parents=True, exist_ok=True)
            self._open = kind, make_executor(config, folder)
            self.results.describe(self._open[1].describe())
        return self._open[1]

    def _any_executor(self, scope: str | None, recipe: Recipe | None = None) -> Executor:
        """Return the open oracle if it measures in ``scope`` (``None``: any) and has the recipe's codes and embedding,
        whatever its adapter initialisation: every request names its own."""
        tokens, embeddings = (None, None) if recipe is None else (recipe.gptq_tokens, recipe.embeddings)
        bits = set() if recipe is None or tokens is None else {parse_format(f).bits for f in recipe.allocation.formats}
        if self._open is not None:
            kind, executor = self._open
            same = (kind.gptq_tokens, kind.embeddings) == (tokens, embeddings)
            if scope in (None, kind.scope) and same and set(self.ladder(bits)) <= set(kind.bits):
                return executor
        return self.executor(scope or "peak", tokens, bits, embeddings)

    def close(self) -> None:
        """Close the open oracle."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def call(self, function: str, kwargs: Mapping[str, Any], scope: str | None = None,
             recipe: Recipe | None = None) -> Event:
        """Call a function or method with the oracle that has the codes of ``recipe``, else round-to-nearest codes."""
        return self._any_executor(scope, recipe).call(function, kwargs, quiet)

    def profile(self) -> ProfileResult:
        """Return the sensitivities, with their cost."""
        event = self.results.once("profile", "profile", lambda: self._any_executor(None).profile(quiet).to_json())
        return ProfileResult.from_json({name: value for name, value in event.items() if name not in OWN_FIELDS})

    def rate(self, lr_scale: float) -> float:
        """Return the learning rate of a factor on ``adapter.lr``, which the table's results state."""
        return self.config.adapter.lr * lr_scale

    def evaluate(self, recipe: Recipe, lr_scale: float, train_seed: int, split: str) -> Event:
        """Fine-tune and evaluate: ``state``, ``message``, ``loss``, ``loss_se``, ``average_rank``, tokens, seconds, and
        on the test split the losses of its sequences, for intervals that hold for other text."""
        key = f"{recipe.key}-{self.steps}-lr{lr_scale:g}-t{train_seed}-{split}"
        return self.results.once("trial", key, lambda: self._evaluated(recipe, lr_scale, train_seed, split))

    def _evaluated(self, recipe: Recipe, lr_scale: float, train_seed: int, split: str) -> Event:
        if recipe.initial_rank is not None:
            found = self._adalora(recipe, lr_scale, train_seed, split, measure=False)
            return {k: v for k, v in found.items() if k != "measured_bytes"}
        spec = TrialSpec(recipe.allocation, self.steps, self.steps, train_seed, self.rate(lr_scale), split,
                         start_of(recipe.init))
        m = TrialResult.from_json(self.call("bench.table1.starts:evaluate_started", {"spec": spec.to_json()}, None,
                                            recipe)) if recipe.init in STARTS else \
            self._any_executor(None, recipe).evaluate(spec, quiet)
        kept = {"sequence_losses": m.to_json()["sequence_losses"]} if split == "test" and m.sequence_losses else {}
        return {"state": m.state.value, "message": m.message, "loss": m.loss, "loss_se": m.loss_se,
                "average_rank": recipe.average_rank(self.space), "training_tokens": m.training_tokens,
                "forward_tokens": m.forward_tokens, "seconds": m.seconds, **kept}

    def _adalora(self, recipe: Recipe, lr_scale: float, train_seed: int, split: str, measure: bool,
                 scope: str | None = None) -> Event:
        return self.call("bench.table1.adalora_run:evaluate_adalora", {
            "formats": list(recipe.allocation.formats), "initial_rank": recipe.initial_rank,
            "target_rank": recipe.allocation.ranks[0], "steps": self.steps, "train_seed": train_seed, "split": split,
            "learning_rate": self.rate(lr_scale), "measure": measure}, scope)

    def measured_bytes(self, recipe: Recipe, lr_scale: float, train_seed: int, scope: str) -> int | None:
        """Return bytes in ``scope`` of real training steps; ``None`` for a simulation, or where memory ran out."""
        if self.config.oracle.name != "finetune":
            return None
        event = self.results.once("measured", f"{recipe.key}-{scope}",
                                  lambda: self._measured(recipe, lr_scale, train_seed, scope))
        return None if event["measured_bytes"] is None else int(event["measured_bytes"])

    def _measured(self, recipe: Recipe, lr_scale: float, train_seed: int, scope: str) -> Event:
        if recipe.initial_rank is not None:
            found = self._adalora(recipe, lr_scale, train_seed, "validation", measure=True, scope=scope)
        else:
            measure = "bench.table1.starts:measure_started" if recipe.init in STARTS else "measure_peak"
            named = {"init": recipe.init} if recipe.init in STARTS else {}
            found = self.call(measure, {"allocation": recipe.allocation.to_json(), "train_seed": train_seed, **named},
                              scope, recipe)
        result = {"measured_bytes": found["measured_bytes"], "scope": scope}
        if found["state"] != TrialState.OOM.value:
            return result
        self.results.warn(f"the memory of {recipe.key} could not be measured ({found['message']}): the row has none "
                          "until the table is resumed and measures again")
        return {**result, "state": TrialState.FAILED.value}

    def scores(self, recipe: Recipe, lr_scale: float, train_seed: int) -> list[dict[str, Any]]:
        """Return the fine-tuned model's scores at ``table1.tasks``; none for a simulation."""
        if not self.options.tasks or self.config.oracle.name != "finetune":
            return []
        key = (f"{recipe.key}-{self.steps}-lr{lr_scale:g}-t{train_seed}-{list(self.options.tasks)}"
               f"-{self.options.questions}")
        return list(self.results.once("scores", key, lambda: self._scored(recipe, lr_scale, train_seed))["scores"])

    def _scored(self, recipe: Recipe, lr_scale: float, train_seed: int) -> Event:
        found = self.call("bench.table1.answers:answer_tasks", {
            "allocation": recipe.allocation.to_json(), "init": recipe.init, "initial_rank": recipe.initial_rank,
            "steps": self.steps, "train_seed": train_seed, "learning_rate": self.rate(lr_scale),
            "tasks": list(self.options.tasks), "batch": self.config.train.batch, "limit": self.options.questions},
            recipe=recipe)
        if found.get("state", TrialState.OK.value) == TrialState.OK.value:
            return found
        self.results.warn(f"the tasks of {recipe.key} were not all answered ({found['state']}: "
                          f"{found.get('message', '')}): the row has no accuracy until the table is resumed and asks "
                          "again")
        return {**found, "state": TrialState.FAILED.value, "scores": []}
