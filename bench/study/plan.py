"""Plan of a study, as a YAML file holds it; ``plans/`` has examples.

    name: formats                       # of bench/results/NAME.json
    overrides: [quantizer.rounding=gptq]  # of the configuration of every trial
    texts: {plays: [data=plays], gsm8k: [data=jsonl, data.max_cut=1]}   # a JSONL file is given by --data gsm8k=FILE
    comparisons:
      - {text: plays, steps: [24, 240], seeds: 5, learning_rates: [0.001, 0.002, 0.004], opponents: [hqq3],
         choices: {hqq3: "uniform:hqq3,8", int3: "uniform:int3-g64,8"}}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.memory.budget import Simple, format_for, parse_budget, simple_choice
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.given import parse_allocation
from qra_bo.space import Allocation, SearchSpace, uniform
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import read_object

UNIFORM, MIX = "uniform:", "mix:"
ORDERS = 55
"""First word of the seed of drawn orders."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Choice(_Strict):
    """What is trained: a choice written as text is its allocation.

    Args:
        allocation: ``uniform:BITS,RANK``, ``uniform:FORMAT,RANK``, ``mix:BITS,RANK`` (units by the blind rule) or
            ``mix:BITS,RANK@N`` (in an order of their own, the ``N``-th that is drawn), a file like ``best.json`` or the
            folder of a run (relative to the plan), or the lists ``formats`` and ``ranks``.
        learning_rate: Peak rate (``adapter.lr``), or one by number of steps; ``None``: calibrated.
        codes: ``"rtn"``: round to nearest; ``None``: as configured.
        overrides: Of the configuration, for this choice alone: it is trained in a worker process of its own.
        facts: Numbers that its rows of the results repeat, such as what a search spent on it.
    """

    allocation: str | dict[str, Any]
    learning_rate: float | dict[int, float] | None = None
    codes: str | None = None
    overrides: tuple[str, ...] = ()
    facts: dict[str, float] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"allocation": value} if isinstance(value, str) else value

    def rate(self, steps: int) -> float | None:
        """Return the fixed learning rate of trainings of ``steps``, ``None`` where it is calibrated."""
        return self.learning_rate.get(steps) if isinstance(self.learning_rate, dict) else self.learning_rate


class Comparison(_Strict):
    """Choices that are compared on one text after each number of steps.

    Args:
        label: In the results, such as the limit that the choices fit in.
        seeds: Unseen training seeds, on the test split.
        learning_rates: Tried first for each choice without a rate, on the validation split at the search's seed; others
            follow in the same ratio while the best one is the least or the largest.
        most_rates: Most rates of a choice.
        opponents: Choices that the others are compared with.
    """

    text: str
    label: str = ""
    steps: tuple[int, ...]
    seeds: int = Field(ge=0)
    learning_rates: tuple[float, ...] = ()
    most_rates: int = 6
    opponents: tuple[str, ...] = ()
    choices: dict[str, Choice]

    @model_validator(mode="after")
    def _check(self) -> "Comparison":
        if lost := sorted(set(self.opponents) - set(self.choices)):
            raise ValueError(f"opponents must be among the choices; {', '.join(lost)} is not")
        rates = self.learning_rates
        if any(c.rate(s) is None for c in self.choices.values() for s in self.steps) and (
                len(rates) < 2 or sorted(set(rates)) != list(rates) or len(rates) > self.most_rates):
            raise ValueError("choices without a learning_rate need learning_rates, at least two, ascending, at most "
                             f"most_rates={self.most_rates}; got {list(rates)}")
        return self


class Plan(_Strict):
    """A study."""

    name: str
    overrides: tuple[str, ...] = ()
    texts: dict[str, tuple[str, ...]]
    comparisons: tuple[Comparison, ...]

    @model_validator(mode="after")
    def _check(self) -> "Plan":
        if lost := sorted({c.text for c in self.comparisons} - set(self.texts)):
            raise ValueError(f"every text of a comparison must be among texts; {', '.join(lost)} is not")
        return self


@dataclass(frozen=True)
class Arm:
    """One choice of one comparison at one length, resolved.

    Args:
        setting: Text and overrides of its trials: what one worker process serves, and part of a trial's identity.
        overrides: The same as overrides of the configuration.
    """

    comparison: Comparison
    name: str
    choice: Choice
    steps: int
    allocation: Allocation
    setting: str
    overrides: tuple[str, ...]


class Study:
    """A plan whose allocations are resolved.

    Args:
        plan: Of the study.
        folder: That paths of allocations are relative to.
        files: Data file of texts that need one.

    Raises:
        ConfigError: If an override is wrong, or an allocation is not one of the model's.
        SpaceError: If an allocation is malformed.
    """

    def __init__(self, plan: Plan, folder: Path, files: Mapping[str, Path] | None = None) -> None:
        self.plan, self._folder, self._files = plan, folder, dict(files or {})
        self._spaces: dict[tuple[str, ...], SearchSpace] = {}

    @cached_property
    def comparisons(self) -> list[list[Arm]]:
        """Arms of every comparison and length, in the order of the plan."""
        return [[self._arm(c, name, choice, steps) for name, choice in c.choices.items()]
                for c in self.plan.comparisons for steps in c.steps]

    def config(self, arm: Arm) -> RunConfig:
        """Return the configuration of an arm's trials.

        Raises:
            ConfigError: If a value is wrong, for example a text needs a file and ``files`` has none.
        """
        text = arm.comparison.text
        file = [f"data.path={json.dumps(str(self._files[text]))}"] if text in self._files else []
        return load_config([*arm.overrides, *file])

    def _arm(self, comparison: Comparison, name: str, choice: Choice, steps: int) -> Arm:
        of_model = (*self.plan.overrides, *choice.overrides)
        if of_model not in self._spaces:
            config = load_config(list(of_model))
            self._spaces[of_model] = make_space(config, make_spec(config))
        overrides = (*self.plan.texts[comparison.text], *of_model)
        return Arm(comparison, name, choice, steps, self._allocation(choice.allocation, self._spaces[of_model]),
                   " ".join((f"{comparison.text}:", *overrides)), overrides)

    def _allocation(self, given: str | Mapping[str, Any], space: SearchSpace) -> Allocation:
        units = [unit.name for unit in space.units]
        if not isinstance(given, str):
            return parse_allocation(given, self._folder, units)[0]
        if given.startswith(MIX):
            text, _, drawn = given.partition("@")
            choice = parse_budget(text)
            assert isinstance(choice, Simple)
            rng = np.random.default_rng([ORDERS, int(drawn)]) if drawn else None
            return simple_choice(choice, space, None if rng is None else rng.permutation(space.n_units).tolist())
        if not given.startswith(UNIFORM):
            path = self._folder / given
            return parse_allocation(read_object(path / "best.json" if path.is_dir() else path), path, units)[0]
        what, _, rank = given.removeprefix(UNIFORM).partition(",")
        if not rank.strip().isdigit():
            raise ConfigError(f"allocation must be uniform:BITS,RANK or uniform:FORMAT,RANK; got {given}")
        fmt = format_for(int(what), space) if what.isdigit() else parse_format(what)
        return uniform(space.n_units, fmt.name, int(rank))


def load_study(path: Path, files: Mapping[str, Path] | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a plan; ``overrides`` follow its own.

    Raises:
        ConfigError: If it can't be read or has unknown or wrong fields.
    """
    try:
        plan = Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"the plan {path} is not valid: {error}") from error
    return Study(plan.model_copy(update={"overrides": (*plan.overrides, *overrides)}), path.parent, files)
