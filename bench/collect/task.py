"""Tasks of collected tables, and the first files of a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.collect.writing import append_provenance, costs_to_json, facts_to_json
from bench.emulator.table import (
    MEMORY,
    PROFILE,
    PROFILE_BATCH,
    PROVENANCE,
    TASK,
    ReferenceBudget,
    TaskFacts,
    load_costs,
    load_facts,
)
from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.execution.base import Executor
from qra_bo.finetune.data.records import batches
from qra_bo.memory.budget import resolve_budget
from qra_bo.pipeline.pricing import make_memory
from qra_bo.searchers.base import SearchProblem
from qra_bo.sensitivity.io import load_profile, save_profile
from qra_bo.space import Allocation, SearchSpace
from qra_bo.study.provenance import collect
from qra_bo.study.setting import BaselineRules, BytesPredictor, training_seeds
from qra_bo.utils.errors import DataError

DATA = Path(__file__).resolve().parents[1] / "data"
TASKS = {"plays": "plays", "gsm8k": "jsonl"}
"""Data set of every task; ``jsonl`` needs the path of a file."""
REFERENCE_BUDGETS = (("uniform:4,4", "peak"), ("uniform:4,16", "stored"))
FORMATS = ("quantizer.formats.2=[hqq2]", "quantizer.formats.3=[hqq3]")
"""Of the published tables, where they are no longer the default."""
RECORD_AT = (6, 12)
RATES = "rates.json"
"""File of the exchange rates learned from one table, in its folder (python -m bench.learn_rates)."""
TRAIN_SEEDS = 3
CANDIDATE_SEEDS = 60
RESERVED = {"plays": 8, "gsm8k": 32}
"""First training sequences that no training seed of a table sees; sensitivities are measured on the first of them."""


def task_config(task: str, data_path: str | None, device: str = "cpu") -> RunConfig:
    """The run's configuration behind a table.

    Raises:
        DataError: If the task needs a file and none was named, or the other way round.
        ConfigError: If a value is wrong.
    """
    needs = TASKS[task] == "jsonl"
    if needs != (data_path is not None):
        raise DataError(f"the task {task} " + ("needs --data FILE, the JSONL file of its records" if needs else
                                               "has its text built in; leave --data out"))
    # answers are cut at 128 tokens, and the published tables were trained on questions without a chat template
    more = [f"data.path={json.dumps(data_path)}", "data.max_cut=1", "data.render=plain"] if needs else []
    return load_config([f"data={TASKS[task]}", "dtype=bfloat16", f"device={device}",
                        "quantizer.rounding=rtn", *FORMATS, *more])


@dataclass(frozen=True)
class Setting:
    """What a table's plan and rows need to be made."""

    facts: TaskFacts
    space: SearchSpace
    predictors: Mapping[str, BytesPredictor]
    problems: tuple[SearchProblem, ...]
    rules: tuple[BaselineRules, ...]

    def bytes_of(self, allocation: Allocation) -> dict[str, int]:
        """Predicted bytes by scope."""
        return {scope: predict(allocation) for scope, predict in self.predictors.items()}


def predictors_of(config: RunConfig) -> tuple[SearchSpace, dict[str, BytesPredictor]]:
    """The space and, by scope, what predicts bytes of any allocation: on a CPU, whatever the machine."""
    spec = make_spec(config)
    space = make_space(config, spec)
    found = {}
    for scope in sorted({scope for _, scope in REFERENCE_BUDGETS}):
        scoped = config.with_changes(memory=config.memory.with_changes(scope=scope))
        found[scope] = BytesPredictor(make_memory(scoped, spec, "cpu"), space)
    return space, found


def begin(folder: Path, task: str, config: RunConfig, described: Mapping[str, Any], executor: Executor) -> None:
    """Write the files that a table begins with; those that are there must be of the same task.

    Raises:
        DataError: If the folder holds the table of another task, model, text or trainer, or sensitivities would be
            measured on text that its training seeds see.
    """
    if described["calibration_blocks"] > RESERVED[task]:
        raise DataError(f"the table of {task} keeps its first {RESERVED[task]} training sequences from every training "
                        f"seed; data.calibration={described['calibration_blocks']} would measure sensitivities on more")
    space, predictors = predictors_of(config)
    budgets = tuple(ReferenceBudget(text, scope, resolve_budget(text, predictors[scope].memory, space))
                    for text, scope in REFERENCE_BUDGETS)
    facts = TaskFacts(
        task, config.model_name, described["model_sha256"], described["data_sha256"], described["train_blocks"],
        RESERVED[task], config.granularity, tuple(u.name for u in space.units),
        tuple(f.name for f in space.formats), space.ranks.values, described["dtype"],
        {"lr": config.adapter.lr, **described["train"]},
        {"init": config.adapter.init, "alpha_over_rank": config.adapter.alpha_over_rank}, config.train.length,
        config.eval.sequences * config.train.length, config.fidelity.high, RECORD_AT,
        untouched_seeds(described["train_blocks"], RESERVED[task], config), config.calibrate.lr_scales, budgets)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / TASK).exists():
        differing = differences(facts_to_json(load_facts(folder)), facts_to_json(facts))
        if differing:
            raise DataError(f"{folder} holds the table of something else: {'; '.join(differing)}. Rows that differ in "
                            "this would not compare: restore that, or give another folder with --table")
    else:
        tables = {scope: predict.memory.table(space) for scope, predict in predictors.items()}
        _write(folder / MEMORY, costs_to_json(tables))
        _write(folder / TASK, facts_to_json(facts))
    if not (folder / PROFILE).exists():
        found = executor.profile(lambda what, done, total: None)
        save_profile(found.profile, folder / PROFILE)
        append_provenance(folder / PROVENANCE, PROFILE_BATCH, {
            **collect(described), "training_tokens": found.training_tokens, "forward_tokens": found.forward_tokens})


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=None if path.name == MEMORY else 1) + "\n", encoding="utf-8")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two descriptions. Of nested ones only what both hold counts: another release may
    describe its trainer in more words."""
    return [f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in sorted({*before, *now})
            if not agree(before.get(key), now.get(key))]


def agree(a: Any, b: Any) -> bool:
    """Whether two descriptions are the same in what both hold."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(agree(a[key], b[key]) for key in a if key in b)
    return bool(a == b)


def untouched_seeds(train_blocks: int, calibration_blocks: int, config: RunConfig) -> tuple[int, ...]:
    """Training seeds whose batches hold none of the sequences that sensitivities are measured on: the first such of
    those that a search with seed 0 would use, so that its evaluations can be taken up."""
    first, others = training_seeds(0, CANDIDATE_SEEDS)
    chosen = [seed for seed in (first, *others)
              if not touches(train_blocks, calibration_blocks, config.train.step_sequences, config.fidelity.high, seed)]
    if len(chosen) < TRAIN_SEEDS:
        raise DataError(f"fewer than {TRAIN_SEEDS} of {CANDIDATE_SEEDS} training seeds leave the calibration text "
                        "alone: the data set is too small for a table")
    return tuple(chosen[:TRAIN_SEEDS])


def touches(train_blocks: int, calibration_blocks: int, batch: int, steps: int, seed: int) -> bool:
    """Whether training with ``seed`` sees the calibration text, which is the first sequences of the split."""
    return bool((batches(train_blocks, batch, steps, seed) < calibration_blocks).any())


def load_setting(folder: Path, config: RunConfig) -> Setting:
    """What the files of a table and its configuration come to."""
    facts, costs = load_facts(folder), load_costs(folder)
    profile = load_profile(folder / PROFILE)
    space, predictors = predictors_of(config)
    largest = min(min(m.out_features, m.in_features) for u in space.units for m in u.linears)
    problems = tuple(SearchProblem(space, costs[b.scope], b.bytes, profile, facts.steps, None, 0,
                                   step_tokens=facts.step_tokens)
                     for b in facts.budgets)
    rules = tuple(BaselineRules(space.n_units, facts.formats, largest, b.bytes, predictors[b.scope])
                  for b in facts.budgets)
    return Setting(facts, space, predictors, problems, rules)

