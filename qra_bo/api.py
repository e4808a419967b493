"""The Python interface: search, fine-tune and plan, with the keys of the configuration as keyword arguments."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from qra_bo.config import RunConfig
from qra_bo.config.compose import load_config
from qra_bo.config.resume import flatten
from qra_bo.config.rules import problems_of
from qra_bo.memory.plan import Plan
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.formatting import cut, override_value

if TYPE_CHECKING:
    from qra_bo.pipeline.run import Result

__all__ = ["allocate", "configure", "fine_tune", "plan", "search"]


def search(config: RunConfig | Sequence[str] | None = None, *, config_dir: str | None = None,
           **keywords: Any) -> "Result":
    """Find the best allocation within the budget, fine-tune it and write a run's folder.

    Args:
        config: A checked configuration, or overrides as on the command line, e.g.
            ``["model=tiny", "budget=uniform:4,4"]``.
        config_dir: Your own folder of configuration groups, as ``--config-dir`` on the command line.
        **keywords: Keys of the configuration, see ``configure``.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On a signal that stops a run, after a clean journal.
    """
    from qra_bo.pipeline.run import run  # loads matplotlib
    checked = configure(config, config_dir, **keywords)
    if checked.task not in ("search", "finetune"):
        raise ConfigError(f"search() runs task=search or task=finetune; got task={checked.task}, which is a command: "
                          f"python -m qra_bo task={checked.task}")
    return run(checked)


def allocate(config: RunConfig | Sequence[str] | PurePath | None = None, *, config_dir: str | None = None,
             **keywords: Any) -> "Result":
    """Predict the best allocation from a profile, without a search, fine-tune it and write a run's folder. A text such
    as ``"mix:3.8,2"``, or a path, is an allocation and needs no profile: ``fine_tune`` with it as the ``allocation``.

    The same as ``search(effort="instant")``: ``best["prediction"]`` holds the predicted difference to the best uniform
    choice. ``search`` with more effort and this ``out`` goes on. Arguments and errors are those of ``search``.
    """
    if isinstance(config, str | PurePath):
        return fine_tune(config_dir=config_dir, allocation=config, **keywords)
    keywords = keywords if isinstance(config, RunConfig) else {"effort": "instant", **keywords}
    checked = configure(config, config_dir, **keywords)
    if checked.effort.max_full_trials:
        raise ConfigError(f"allocate() runs no trials and needs effort=instant; got effort={checked.effort.name}. Use "
                          "search() for a search")
    return search(checked)


def fine_tune(config: RunConfig | Sequence[str] | None = None, *, config_dir: str | None = None,
              **keywords: Any) -> "Result":
    """Fine-tune one given ``allocation`` without a search, and write a run's folder: ``"uniform:BITS,RANK"``,
    ``"mix:BITS,RANK"``, a ``best.json`` or the folder of a run. Arguments and errors are those of ``search``; an
    allocation that measured over the budget is a ``UserError`` too.
    """
    keywords = keywords if isinstance(config, RunConfig) else {"task": "finetune", **keywords}
    return search(config, config_dir=config_dir, **keywords)


def plan(config: RunConfig | Sequence[str] | None = None, *, config_dir: str | None = None, **keywords: Any) -> Plan:
    """Price uniform choices, budgets and cards; needs no weights, no GPU and no download. Arguments as for ``search``.

    >>> plan(model="llama2_7b", budget="10GB", device="cpu", dtype="float32")
    Plan(llama2_7b, 32 units, 10GB: int8, rank 32, embeddings=8)

    Raises:
        UserError: If a value is wrong or the model's shapes are not available.
    """
    from qra_bo.pipeline.pricing import make_plan  # reads the configuration's decoder: not needed by search
    keywords = keywords if isinstance(config, RunConfig) else {"task": "memory", **keywords}
    return make_plan(configure(config, config_dir, **keywords))


def configure(config: RunConfig | Iterable[str] | None = None, config_dir: str | None = None,
              **keywords: Any) -> RunConfig:
    """Compose and check a configuration from overrides and keyword arguments.

    >>> config = configure(model="tiny", budget="1MB", train={"length": 64})
    >>> config.model_name, str(config.budget[0]), config.train.length
    ('tiny', '1MB', 64)

    Args:
        config: Overrides as on the command line; a ``RunConfig`` is returned as it is.
        config_dir: Your own folder of configuration groups.
        **keywords: Keys of the configuration: a group by its option (``model="tiny"``), a value by its dotted key
            (``**{"train.length": 64}``) or in a dictionary (``train={"length": 64}``).

    Raises:
        ConfigError: With every problem at once.
    """
    if isinstance(config, RunConfig):
        if keywords:
            raise ConfigError(f"a RunConfig is complete, and {', '.join(sorted(keywords))} can't be set beside it; "
                              "give overrides, or config.with_changes(...)")
        if problems := problems_of(config):  # of with_changes
            raise ConfigError(p.message for p in problems)
        return config
    given: list[Any] = list(config or ()) if isinstance(config or (), Iterable) else [config]
    if isinstance(config, str | Mapping) or not all(isinstance(text, str) for text in given):
        raise ConfigError(f"overrides must be a list of texts, such as ['model=tiny', 'budget=8MB']; got "
                          f"{cut(config)}. Keys of the configuration are keyword arguments too: model='tiny'")
    texts = (f"{key}={_text(key, value)}" for key, value in flatten(keywords).items())
    return load_config([*given, *texts], None if config_dir is None else str(config_dir))


def _text(key: str, value: Any) -> str:
    """A value of ``key`` in Hydra's grammar. Raises ``ConfigError`` if it has none."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of numpy and torch
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | PurePath):
        return f"[{','.join(_text(key, item) for item in value)}]"
    if isinstance(value, bytes) or (not isinstance(value, str) and repr(value).startswith("<")):  # such as a function
        raise ConfigError(f"{key} must be a text, a number, a list or a dictionary; got {cut(value)}")
    return str(float(value)) if isinstance(value, Real | Decimal) else override_value(str(value))
