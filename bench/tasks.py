"""Texts, budgets and spaces of the tables of real trials in ``bench/data``."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.memory.budget import allocation_bytes
from qra_bo.pipeline.pricing import make_memory
from qra_bo.space import Allocation, SearchSpace
from qra_bo.utils.errors import DataError

DATA = Path(__file__).resolve().parent / "data"
TASKS = {"plays": "plays", "gsm8k": "jsonl"}
"""Data set of every task; ``jsonl`` needs the path of a file."""
REFERENCE_BUDGETS = (("uniform:4,4", "peak"), ("uniform:4,16", "stored"))
FORMATS = ("quantizer.formats.2=[hqq2]", "quantizer.formats.3=[hqq3]")
"""Of the published tables, where they are no longer the default."""
RATES = "rates.json"
"""File of the exchange rates learned from one table, in its folder (python -m bench.learn_rates)."""


def task_config(task: str, data_path: str | None, device: str = "cpu") -> RunConfig:
    """The run's configuration behind a table.

    Raises:
        DataError: If the task needs a file and none was named, or the other way round.
        ConfigError: If a value is wrong.
    """
    needs = TASKS[task] == "jsonl"
    if needs != (data_path is not None):
        raise DataError(f"the task {task} " + ("needs the path of the JSONL file with its records" if needs else
                                               "has its text built in: name no file"))
    # answers are cut at 128 tokens, and the published tables were trained on questions without a chat template
    more = [f"data.path={json.dumps(data_path)}", "data.max_cut=1", "data.render=plain"] if needs else []
    return load_config([f"data={TASKS[task]}", "dtype=bfloat16", f"device={device}",
                        "quantizer.rounding=rtn", *FORMATS, *more])


def predictors_of(config: RunConfig) -> tuple[SearchSpace, dict[str, Callable[[Allocation], int]]]:
    """The space and, by scope, what predicts bytes of any allocation: on a CPU, whatever the machine."""
    spec = make_spec(config)
    space = make_space(config, spec)
    found = dict[str, Callable[[Allocation], int]]()
    for scope in sorted({scope for _, scope in REFERENCE_BUDGETS}):
        scoped = config.with_changes(memory=config.memory.with_changes(scope=scope))
        found[scope] = cache(partial(allocation_bytes, make_memory(scoped, spec, "cpu"), space))
    return space, found
