"""From a configuration to the setting of a run and its budget in bytes, checked before anything is loaded."""

from pathlib import Path

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.memory.budget import Auto, check_budget
from qra_bo.pipeline.given import check_given
from qra_bo.pipeline.host_memory import check_ram
from qra_bo.pipeline.pricing import budget_bytes, check_card, make_memory, training_device, with_dtype
from qra_bo.pipeline.text import RunText
from qra_bo.study import Setting
from qra_bo.study.baselines import check_uniform
from qra_bo.study.header import Given
from qra_bo.study.reading import begun_study


def make_setting(config: RunConfig, folder: Path | None = None, text: RunText | None = None,
                 given: Given | None = None) -> Setting:
    """Return space and memory model of a configuration.

    A run that has begun in ``folder`` goes on with the compute type that it began with.
    Its ``text`` is checked before all else that takes long.

    Raises:
        DeviceError: If fine-tuning needs more RAM than is available, or a CUDA device that is not there.
        DataError: If the data is missing or malformed.
        UserError: If the model's shapes are not available.
    """
    device = training_device(config)
    spec, trained = make_spec(config), with_dtype(config, folder)
    space = make_space(config, spec)
    memory = make_memory(trained, spec, device)
    if config.oracle.trains and not config.executor.elsewhere:
        (text or RunText(config)).check()
        check_ram(trained, spec, space, budget_bytes(config, config.budget[0], memory, space), device)
    return Setting(config, space, memory, given)


def checked_budget(setting: Setting, folder: Path | None = None) -> int:
    """Return the bytes of the single budget; ``auto`` keeps its value from when the run in ``folder`` began.

    Raises:
        BudgetError: If the device can't meet it or has less, or nothing fits it, or not what was given.
        JournalError: If the run's journal can't be read.
    """
    config = setting.config
    study = begun_study(folder) if folder is not None and isinstance(config.budget[0], Auto) else None
    if study is not None:
        budget = study.header.budget_bytes
    else:
        budget = budget_bytes(config, config.budget[0], setting.memory, setting.space)
    if setting.given is None:
        check_card(config, setting.memory, budget)
        check_budget(budget, setting.costs(budget), setting.space, setting.memory)
        check_uniform(setting.rules(budget))
    else:
        check_given(setting, setting.given, budget)
    return budget
