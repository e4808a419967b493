"""Allocations that are trained without a search: read for ``task=finetune``, or chosen where nothing binds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig
from qra_bo.config.rules import serve_problems, target_problems
from qra_bo.memory import format_size, parse_budget, parse_format
from qra_bo.memory.advice import NOTHING_BINDS, Advice, advice_on
from qra_bo.memory.budget import OfAllocation, Simple, simple_choice
from qra_bo.memory.embeddings import WIDTHS
from qra_bo.memory.file_formats import STORED
from qra_bo.memory.model import SCOPES
from qra_bo.space import Allocation, SearchSpace, uniform
from qra_bo.space.space import BLIND_RULE
from qra_bo.study.header import BY_RULE, CALIBRATED, Given
from qra_bo.study.results import BEST_NAME, check_best
from qra_bo.study.setting import Setting
from qra_bo.utils.errors import BudgetError, ConfigError, OutputError, SpaceError
from qra_bo.utils.files import read_object, user_path
from qra_bo.utils.formatting import cut

LARGEST_LR = 10.0
"""Learning rates above this are refused as a mistake in the file."""
MOST_STEPS = 10**9
"""Trials longer than this are no trials."""
AS_FOUND = {"alpha_over_rank": "adapter.alpha_over_rank", "lr_rule": "adapter.lr_rule",
            "codes": "quantizer.rounding", "embeddings": "embeddings"}
"""Fields of ``best.json`` and the keys that must agree for a training as in the search."""


def read_allocation(config: RunConfig, space: SearchSpace) -> tuple[Given, RunConfig]:
    """Read ``config.allocation``; return it and the configuration with its formats and ranks as ladders.

    The length of a trial becomes that of the search, where the file states its rate: rates of longer trainings follow
    from both. ``budget=allocation`` becomes the bytes within which the file's allocation was found, in their scope, or
    what the simple choice needs.

    Raises:
        ConfigError: If there is no such file, it does not fit the model's units, it states no budget and
            ``budget=allocation``, or the program named by ``serve`` or an export target does not hold its formats.
        SpaceError: If it is malformed.
    """
    text = str(config.allocation).strip()
    if text.lower().startswith(("uniform:", "mix:")):
        try:
            chosen = parse_budget(text)
            assert isinstance(chosen, Simple)
        except BudgetError as error:
            raise ConfigError(f"allocation={cut(text)} is no simple choice; give uniform:BITS,RANK such as "
                              "uniform:4,16, or mix:BITS,RANK such as mix:3.8,2; a format is named by "
                              "quantizer.formats.BITS=[NAME]") from error
        allocation = simple_choice(chosen, space)
        mixed = len(set(allocation.formats)) > 1
        given = Given((allocation,), f"task=finetune was given {text}", config.adapter.lr, BY_RULE,
                      rule=BLIND_RULE if mixed else None)
        whole = f"uniform:{parse_format(allocation.formats[0]).bits},{chosen.rank}"  # where no unit is wider
        budget, scope = text if mixed else whole, str(config.memory.scope)
    else:
        path = user_path(text)
        data = _read(path, config, space)
        allocation, lr = parse_allocation(data, path, [u.name for u in space.units])
        rate = (config.adapter.lr, BY_RULE) if lr is None else (lr, cut(data.get("learning_rate_source") or CALIBRATED))
        budget, scope = _budget(data, config.memory.scope)
        if config.embeddings == "auto" and data.get("embeddings") in WIDTHS:
            config = config.with_changes(embeddings=data["embeddings"])
        given = Given((allocation,), f"task=finetune was given {text}", *rate, tuple(_notes(data, config)),
                      rule=BLIND_RULE if data.get("rule") == BLIND_RULE else None)
        if lr is not None:
            config = _with_trials_of(data, config)
    if isinstance(config.budget[0], OfAllocation):
        if not budget:
            raise ConfigError(f"allocation: {text} states no budget that it was found within; give budget=SIZE")
        config = config.with_changes(budget=(parse_budget(budget),), memory=config.memory.with_changes(scope=scope))
    config = with_ladders_of(config, given.allocations)
    if problems := [p.message for p in (*serve_problems(config), *target_problems(config, given=True))]:
        raise ConfigError(problems)
    return given, config


def parse_allocation(data: Mapping[str, Any], path: Path, units: Sequence[str]) -> tuple[Allocation, float | None]:
    """Return the allocation of a JSON object such as a ``best.json``, and the learning rate where it states one.

    Args:
        data: ``formats`` (names, or objects with a ``name``) and ``ranks``, one of each for every unit; optionally
            ``units`` and ``learning_rate``.
        path: For messages.
        units: Names of the model's units.

    Raises:
        ConfigError: If it is for other units.
        SpaceError: If it is malformed.
    """
    if not isinstance(data.get("formats"), list):
        raise SpaceError(f"allocation: {path} must be an object with the lists 'formats' (names) and 'ranks' "
                         "(integers)")
    names = [f["name"] if isinstance(f, dict) and "name" in f else f for f in data["formats"]]
    allocation = Allocation.from_json({"formats": names, "ranks": data.get("ranks")})
    lr = data.get("learning_rate")
    if min(allocation.ranks) < 1:
        problem = (f"gives a unit the rank {min(allocation.ranks)}; every unit is fine-tuned through an adapter, so "
                   "ranks must be at least 1")
    elif data.get("units", list(units)) != list(units) or len(allocation) != len(units):
        problem = (f"is for {len(allocation)} units; this model has {len(units)} ({units[0]} ... {units[-1]}), and the "
                   f"file names {cut(data.get('units', 'none'))}: use the model and granularity of the file")
    elif lr is not None and (type(lr) not in (int, float) or not 0 < lr <= LARGEST_LR):
        problem = f"must give a learning_rate between 0 and {LARGEST_LR:g}; got {cut(lr)}"
    else:
        return allocation, None if lr is None else float(lr)
    raise ConfigError(f"allocation: {path} {problem}")


def _read(path: Path, config: RunConfig, space: SearchSpace) -> dict[str, Any]:
    """Return the file's object.

    Raises:
        ConfigError: If it can't be read, is not what the journal beside it says, or is of another granularity or of a
            model with other shapes.
    """
    try:
        file = path / BEST_NAME if path.is_dir() else path
        data = read_object(file)
        if file.name == BEST_NAME:
            check_best(file.parent, data)
    except OutputError as error:
        raise ConfigError("allocation must be uniform:BITS,RANK, mix:BITS,RANK, a JSON file like best.json or the "
                          f"folder of a run; {error}") from error
    model, granularity, numel = (data.get(key) for key in ("model", "granularity", "unit_numel"))
    if granularity not in (None, config.granularity):
        raise ConfigError(f"allocation: {path} was found with granularity={cut(granularity)}, and this run has "
                          f"granularity={config.granularity}; give granularity={cut(granularity)}")
    if numel not in (None, [int(n) for n in space.unit_numel]):
        raise ConfigError(f"allocation: {path} was found for {cut(model)}, whose units have other shapes than "
                          f"those of {config.model_name}; give the model it was found for, or search for this one")
    return data


def _notes(data: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Return a sentence for another model of the same shapes, and for every setting unlike that of the search."""
    used = {name: attrgetter(key)(config) for name, key in AS_FOUND.items()}
    used |= {"codes": STORED} if config.stored else {}
    notes = [f"the allocation was found with {key}={cut(data[name])} and is trained with {used[name]}; give "
             f"{key}={cut(data[name])} to train it as it was found"
             for name, key in AS_FOUND.items() if name in data and data[name] != used[name]]
    if data.get("model") not in (None, config.model_name):
        notes.insert(0, f"the allocation was found for {cut(data['model'])}, a model of the same shapes, and is "
                        f"trained on {config.model_name}; its sensitivities may differ")
    return notes


def _with_trials_of(data: Mapping[str, Any], config: RunConfig) -> RunConfig:
    """Return the configuration with the steps that a trial had when the file was written, where it states them."""
    training = data.get("training")
    steps = training.get("trial_steps") if isinstance(training, Mapping) else None
    if type(steps) is not int or not 0 < steps <= MOST_STEPS:
        return config
    low = config.fidelity.low
    return config.with_changes(fidelity=config.fidelity.with_changes(
        high=steps, low=None if low is None or low >= steps else low))


def _budget(data: Mapping[str, Any], scope: str) -> tuple[str, str]:
    """Return the budget that a file states, empty where it states none, and what that bounds, else ``scope``."""
    memory = data.get("memory")
    stated = memory if isinstance(memory, Mapping) else {}
    size, own = stated.get("budget_bytes"), stated.get("scope")
    return str(size) if type(size) is int and size > 0 else "", own if own in SCOPES else scope


def with_ladders_of(config: RunConfig, allocations: Sequence[Allocation]) -> RunConfig:
    """Return the configuration whose formats and ranks are those of ``allocations``: no other format is packed."""
    config = config.with_changes(ranks=tuple(sorted({r for a in allocations for r in a.ranks})))
    if config.stored:
        return config
    formats: dict[int, tuple[str, ...]] = {}
    for fmt in sorted({parse_format(name) for a in allocations for name in a.formats}, key=lambda f: (f.bits, f.name)):
        formats[fmt.bits] = (*formats.get(fmt.bits, ()), fmt.name)
    return config.with_changes(bits=tuple(formats), quantizer=config.quantizer.with_changes(formats=formats))


def check_given(setting: Setting, given: Given, budget: int) -> None:
    """Refuse a given allocation that is predicted to need more than ``budget`` bytes, or over ``max_average_bits``.
    Raises ``BudgetError`` with what it needs."""
    allocation = given.allocations[0]
    need = setting.predictor(allocation)
    if need > budget:
        raise BudgetError(f"the allocation needs {format_size(need)}, {format_size(need - budget)} over the budget: "
                          f"use budget={math.ceil(need / 10**5) / 10:.1f}MB or more, lower train.batch or "
                          "train.length, set train.checkpointing=true, or give another allocation")
    if not setting.rules(budget).admits(allocation):
        raise BudgetError("the allocation has more code bits on average than max_average_bits="
                          f"{setting.config.max_average_bits}; raise that, or give another allocation")


def judged(setting: Setting, budget: int) -> tuple[Setting, Advice]:
    """Return the advice on ``budget`` bytes and the setting, which trains a uniform choice where nothing binds.

    Smaller ranks follow, in case that choice measures over the budget. A simulation always searches, and so does
    ``search.force=true``.
    """
    config, space = setting.config, setting.space
    advice = advice_on(setting.memory, space, budget, most_bits=config.max_average_bits)
    if advice.region != NOTHING_BINDS or not config.oracle.trains or config.search.force:
        return setting, advice
    choices = tuple(uniform(space.n_units, space.widest.name, rank) for rank in reversed(space.ranks))
    reason = (f"uniform {space.widest.bits} bits with rank {space.ranks[-1]}, the most that bits and ranks "
              f"allow, fits the budget. {advice.offered}")
    return replace(setting, given=Given(choices, reason.rstrip(" ."), config.adapter.lr, BY_RULE)), advice
