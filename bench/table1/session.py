"""One session of a table: what its journal holds is taken from there, what it lacks is done and written down."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import qra_bo
from bench.table1.config import TableConfig
from bench.table1.limits import Limit
from bench.table1.recipe import Recipe, codes_name
from qra_bo.config.schema import NOT_OF_THE_RESULT, QuantizerConfig
from qra_bo.execution.base import Executor
from qra_bo.execution.messages import ProfileResult
from qra_bo.memory.budget import largest, resolve_budget
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import MemoryModel
from qra_bo.oracle.protocol import Progress
from qra_bo.pipeline.executors import make_executor
from qra_bo.pipeline.run import Setting
from qra_bo.space import CostTable, Ladder, SearchSpace
from qra_bo.study.journal import RESERVED, Journal, canonical, check_same_configuration
from qra_bo.study.options import training_seeds
from qra_bo.study.provenance import changes, collect
from qra_bo.trials import SCHEMA_VERSION, TrialSpec, TrialState
from qra_bo.utils.errors import ConfigError

UNQUANTISED = 16
MAY_DIFFER = frozenset({*NOT_OF_THE_RESULT, "budget", "max_average_bits"})
"""Keys of the configuration that decide what is asked for, or that limits stand for; none changes an evaluation."""


class _Kind(NamedTuple):
    """What tells one oracle of a table from another."""

    init: str
    scope: str
    gptq_tokens: int | None
    bits: tuple[int, ...]


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Session:
    """Evaluates through the journal. One oracle is open at a time; another start of adapters needs another.

    Args:
        config: Of the table and of its runs.
        setting: Space, memory in the scope ``"peak"``, device, and a given profile.
        folder: Of the table.
        journal: Open.
        progress: Told of what goes on.
    """

    def __init__(self, config: TableConfig, setting: Setting, folder: Path, journal: Journal,
                 progress: Progress = quiet) -> None:
        self.config, self.options, self.setting = config.run, config.table, setting
        self.folder, self.progress = folder, progress
        self._journal = journal
        self._session = 1 + max((int(e["session"]) for e in journal.content.events), default=0)
        self._bytes: dict[tuple[str, str], int] = {}
        self.made = 0  # events of this session: what is taken from the journal needs no telling
        self._events: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._provenance: Mapping[str, Any] | None = None
        self._provenances: set[str] = set()  # all so far, without what the journal adds
        self._described = False
        self._open: tuple[_Kind, Executor] | None = None
        for event in journal.content.events:
            self._take_in(event)
        self._head()

    @property
    def space(self) -> SearchSpace:
        return self.setting.space

    @property
    def steps(self) -> int:
        """Optimiser steps of trials and finals."""
        return self.options.steps or self.config.fidelity.high

    @property
    def train_seed(self) -> int:
        """The training seed of searches and learning-rate trials."""
        return training_seeds(self.config.seed, 0)[0]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the last results come from."""
        return self._provenance or {}

    def memory(self, scope: str) -> MemoryModel:
        return replace(self.setting.memory, scope=scope)

    def predicted_bytes(self, recipe: Recipe, scope: str) -> int:
        """Bytes of a recipe in ``scope``."""
        key = recipe.key, scope
        if key not in self._bytes:
            self._bytes[key] = recipe.predicted_bytes(self.memory(scope), self.space)
        return self._bytes[key]

    def setting_of(self, limit: Limit, ranks: tuple[int, ...] | None = None,
                   bits: tuple[int, ...] | None = None) -> Setting:
        """Space, memory and limit on bits within ``limit``; ``ranks`` and ``bits`` replace the ladders."""
        space = self.space if ranks is None else replace(self.space, ranks=Ladder("ranks", ranks))
        if bits is not None:
            names = replace(self.config, bits=bits).format_names
            space = replace(space, formats=tuple(parse_format(name) for name in names))
        return replace(self.setting, space=space, memory=self.memory(limit.scope),
                       max_average_bits=limit.max_average_bits)

    def budget_bytes(self, limit: Limit) -> int:
        """Bytes of ``limit``; where memory is free, those of the largest allocation of the space."""
        memory = self.memory(limit.scope)
        if limit.budget is None:
            return largest(memory.table(self.space), self.space)[0]
        return resolve_budget(limit.budget, memory, self.space)

    def costs_at(self, limit: Limit, rank: int) -> CostTable:
        """Bytes by format, ``L x F x 1``, with one rank everywhere, and the limit on bits."""
        return self.setting_of(limit, (rank,)).costs(self.budget_bytes(limit))

    def ladder(self, bits: Iterable[int]) -> tuple[int, ...]:
        """The ladder of an oracle that has codes of ``bits``: the configured one where that holds them."""
        own = self.config.bits
        return own if set(bits) <= {*own, UNQUANTISED} else tuple(sorted({*own, *self.options.finer_bits}))

    def executor(self, init: str, scope: str, gptq_tokens: int | None = None, bits: Iterable[int] = ()) -> Executor:
        """The oracle whose adapters start with ``init``, that measures in ``scope``, with codes as in ``Recipe`` for
        formats of ``bits``."""
        kind = _Kind(init, scope, gptq_tokens, self.ladder(bits))
        if self._open is not None and self._open[0] != kind:
            self.close()
        if self._open is None:
            config = replace(self.config, adapter=replace(self.config.adapter, init=cast(Any, init)),
                             memory=replace(self.config.memory, scope=cast(Any, scope)), bits=kind.bits,
                             quantizer=self.quantizer(gptq_tokens))
            # Checkpoints of different configured starts or codes must not meet.
            folder = self.folder / "oracles" / f"{init}{codes_name(gptq_tokens)}"
            folder.mkdir(parents=True, exist_ok=True)
            self._open = kind, make_executor(config, folder, self.setting.profile)
            self._describe(self._open[1])
        return self._open[1]

    @property
    def gptq_tokens(self) -> int:
        """Tokens that codes are chosen on, for rows whose codes are.

        Raises:
            ConfigError: If there is no model to choose them for.
        """
        if self.config.oracle.name != "finetune":
            raise ConfigError(f"GPTQ chooses codes on real text, and oracle={self.config.oracle.name} has none")
        return self.config.quantizer.tokens

    def quantizer(self, gptq_tokens: int | None) -> QuantizerConfig:
        """The configured formats, with codes as in ``Recipe``."""
        rounding: Any = "rtn" if gptq_tokens is None else "gptq"
        return replace(self.config.quantizer, rounding=rounding, tokens=gptq_tokens or self.config.quantizer.tokens)

    def close(self) -> None:
        """Close the oracle that is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def find(self, kind: str, key: str) -> Mapping[str, Any] | None:
        """What the journal holds of ``kind`` under ``key``."""
        return self._events.get((kind, key))

    def once(self, kind: str, key: str, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """The journal's event of ``kind`` under ``key``; made and written down where there is none."""
        found = self.find(kind, key)
        if found is None:
            fields = make()
            found = self._append(kind, {"key": key, **fields})
            self.made += 1
        return found

    def profile(self) -> ProfileResult:
        """The sensitivities, with their cost."""
        event = self.once("profile", "profile",
                          lambda: self._any_executor(None).profile(self.progress).to_json())
        return ProfileResult.from_json(event)

    def call(self, method: str, kwargs: Mapping[str, Any], scope: str | None = None,
             recipe: Recipe | None = None) -> Mapping[str, Any]:
        """Ask the oracle something else than a fine-tuning, with the codes of ``recipe`` or else the nearest; without
        ``scope``, whichever is open."""
        return self._any_executor(scope, recipe).call(method, kwargs, self.progress)

    def _any_executor(self, scope: str | None, recipe: Recipe | None = None) -> Executor:
        """The open oracle if it measures in ``scope`` and has these codes: its requests say how adapters start."""
        tokens = None if recipe is None else recipe.gptq_tokens
        bits = set() if recipe is None or tokens is None else {parse_format(f).bits for f in recipe.allocation.formats}
        if self._open is not None:
            kind, executor = self._open
            if scope in (None, kind.scope) and kind.gptq_tokens == tokens and set(self.ladder(bits)) <= set(kind.bits):
                return executor
        return self.executor(self.config.adapter.init, scope or "peak", tokens, bits)

    def evaluate(self, recipe: Recipe, lr_scale: float, train_seed: int, split: str) -> Mapping[str, Any]:
        """Fine-tune and evaluate: ``state``, ``message``, ``loss``, ``loss_se``, ``average_rank``, tokens, seconds."""
        key = f"{recipe.key}-{self.steps}-lr{lr_scale:g}-t{train_seed}-{split}"
        return self.once("evaluation", key, lambda: self._evaluated(recipe, lr_scale, train_seed, split))

    def measured_bytes(self, recipe: Recipe, lr_scale: float, train_seed: int, scope: str) -> int | None:
        """Bytes in ``scope`` from real training steps; ``None`` where nothing is trained, or it had no memory to."""
        if self.config.oracle.name != "finetune":
            return None
        event = self.once("measured", f"{recipe.key}-{scope}",
                          lambda: self._measured(recipe, lr_scale, train_seed, scope))
        return None if event["measured_bytes"] is None else int(event["measured_bytes"])

    def scores(self, recipe: Recipe, lr_scale: float, train_seed: int) -> list[dict[str, Any]]:
        """What the fine-tuned model scores at the tasks of ``table1.tasks``; none where nothing is trained."""
        o = self.options
        if not o.tasks or self.config.oracle.name != "finetune":
            return []
        key = f"{recipe.key}-{self.steps}-lr{lr_scale:g}-t{train_seed}-{o.tasks}-{o.questions}"
        event = self.once("scores", key, lambda: self._asked(recipe, lr_scale, train_seed))
        return list(event["scores"])

    def _asked(self, recipe: Recipe, lr_scale: float, train_seed: int) -> dict[str, Any]:
        """Answers to the tasks; where they ended early another session asks again."""
        found = dict(self.call("bench.table1.answers:answer_tasks", {
            "allocation": recipe.allocation.to_json(), "init": recipe.init, "initial_rank": recipe.initial_rank,
            "steps": self.steps, "train_seed": train_seed, "lr_scale": lr_scale, "tasks": self.options.tasks,
            "batch": self.config.eval.batch, "limit": self.options.questions}, recipe=recipe))
        if found.get("state", TrialState.OK.value) == TrialState.OK.value:
            return found
        self.warn(f"the tasks of {recipe.key} were not all answered ({found['state']}: {found.get('message', '')}): "
                  "the row has no accuracy until the same command asks again")
        return {**found, "state": TrialState.FAILED.value, "scores": []}

    def _evaluated(self, recipe: Recipe, lr_scale: float, train_seed: int, split: str) -> dict[str, Any]:
        if recipe.initial_rank is not None:
            found = dict(self.call("bench.table1.adalora_run:evaluate_adalora", self._adalora(recipe, lr_scale, train_seed, split, False)))
            return {k: v for k, v in found.items() if k != "measured_bytes"}
        request = TrialSpec(recipe.allocation, self.steps, self.steps, train_seed, split, lr_scale,
                                    recipe.init)
        m = self._any_executor(None, recipe).evaluate(request, self.progress)
        return {"state": m.state.value, "message": m.message, "loss": m.loss, "loss_se": m.loss_se,
                "average_rank": recipe.average_rank(self.space), "training_tokens": m.training_tokens,
                "forward_tokens": m.forward_tokens, "seconds": m.seconds}

    def _measured(self, recipe: Recipe, lr_scale: float, train_seed: int, scope: str) -> dict[str, Any]:
        if recipe.initial_rank is not None:
            found = self.call("bench.table1.adalora_run:evaluate_adalora", self._adalora(recipe, lr_scale, train_seed, "validation", True),
                              scope)
        else:
            found = self.call("measure_peak", {"allocation": recipe.allocation.to_json(), "train_seed": train_seed,
                                               "init": recipe.init}, scope, recipe)
        result = {"measured_bytes": found["measured_bytes"], "scope": scope}
        if found["state"] != TrialState.OOM.value:
            return result
        self.warn(f"the memory of {recipe.key} could not be measured ({found['message']}): the row has none until the "
                  "same command asks again")
        return {**result, "state": TrialState.FAILED.value}

    def _adalora(self, recipe: Recipe, lr_scale: float, train_seed: int, split: str, measure: bool) -> dict[str, Any]:
        return {"formats": list(recipe.allocation.formats), "initial_rank": recipe.initial_rank,
                "target_rank": recipe.allocation.ranks[0], "steps": self.steps, "train_seed": train_seed,
                "split": split, "lr_scale": lr_scale, "measure": measure}

    def _head(self) -> None:
        """Write the header of a new table, or check that the journal is of this one.

        Raises:
            JournalError: If it is of another configuration.
        """
        header = self.find("header", "")
        if header is None:
            plain, digest = self._identity()
            self._append("header", {"schema_version": SCHEMA_VERSION, "config": plain, "config_sha256": digest, "table1": asdict(self.options),
                                    "version": qra_bo.__version__, "model": self.config.model_name,
                                    "oracle": self.config.oracle.name})
        else:
            self.check_header(self._journal.path, header)
        for message in self._journal.content.warnings:
            self.warn(message)

    def _identity(self) -> tuple[dict[str, Any], str]:
        """The configuration, and the hash of what may not differ between the sessions of a table."""
        memory = replace(self.config.memory, scope="peak")
        same = self.config.with_changes(budget=("",), max_average_bits=None, memory=memory,
                                        quantizer=self.quantizer(None))  # rows say how codes are chosen
        return self.config.to_dict(), same.config_sha256

    def check_header(self, path: Path, header: Mapping[str, Any]) -> None:
        """Refuse a journal of another table.

        Raises:
            JournalError: With what differs.
        """
        check_same_configuration(path, header, *self._identity(), MAY_DIFFER)

    def take_over(self, kind: str, fields: Mapping[str, Any]) -> bool:
        """Write down what another journal of this table holds; ``False`` where this one has it already."""
        if self.find(kind, str(fields.get("key", ""))) is not None:
            return False
        self._append(kind, fields)
        return True

    def join_provenance(self, folder: Path, there: Mapping[str, Any]) -> None:
        """Write down where another folder's results come from, and warn of what differs.

        Raises:
            JournalError: If results here and there would not compare.
        """
        differences = [] if self._provenance is None else changes(self._provenance, there)
        if canonical(there) not in self._provenances:
            self._append("provenance", there)
        if differences:
            self.warn(f"what {folder.name} holds was made elsewhere: {'; '.join(differences)}; a row's seeds that were "
                      "trained here and there may differ a little for that")

    def warn(self, message: str) -> None:
        """Write a warning, once a table."""
        if self.find("warning", message) is None:
            self._append("warning", {"key": message, "message": message})
            print(f"qra_bo: {message}", file=sys.stderr)

    def _describe(self, executor: Executor) -> None:
        """Write where results come from, once a session, and warn of what changed.

        Raises:
            JournalError: If results before and after would not compare.
        """
        if self._described:
            return
        now = json.loads(canonical(collect(executor.describe())))
        differences = [] if self._provenance is None else changes(self._provenance, now)
        self._described = True
        self._append("provenance", now)
        if differences:
            self.warn(f"since the table was last worked on: {'; '.join(differences)}; a row's seeds that were trained "
                      "before and after may differ a little for that")
        for note in now.get("notes", ()):
            self.warn(note)

    def _append(self, kind: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        event = self._journal.append(kind, fields)
        self._take_in(event)
        return event

    def _take_in(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "provenance":
            self._provenance = event
            self._provenances.add(canonical({k: v for k, v in event.items() if k not in RESERVED}))
        elif event.get("state") != TrialState.FAILED.value or event["session"] == self._session:
            # What a lost worker left without a result is tried again in another session.
            self._events[event["event"], str(event.get("key", ""))] = event
