"""From a configuration to the setting of a run and its budget in bytes, checked before anything is loaded."""

from dataclasses import replace
from pathlib import Path

from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.memory import MemoryModel
from qra_bo.memory.advice import with_embeddings
from qra_bo.memory.budget import Auto, Simple, check_budget
from qra_bo.memory.serving import experts_problems
from qra_bo.pipeline.given import check_given
from qra_bo.pipeline.host_memory import check_ram
from qra_bo.pipeline.pricing import budget_bytes, check_card, make_memory, training_device, with_dtype
from qra_bo.pipeline.text import RunText
from qra_bo.space import SearchSpace
from qra_bo.study.baselines import check_uniform
from qra_bo.study.header import Given
from qra_bo.study.lines import begun_study
from qra_bo.study.setting import Setting
from qra_bo.trials import embeddings_of
from qra_bo.utils.errors import ConfigError


def make_setting(config: RunConfig, folder: Path | None = None, text: RunText | None = None,
                 given: Given | None = None) -> Setting:
    """Return space and memory model of a configuration.

    A run that has begun in ``folder`` goes on with the compute type and the bits of the embedding that it began with;
    these are a number in the setting's configuration. Its ``text`` is checked before all else that takes long.

    Raises:
        DeviceError: If fine-tuning needs more RAM than is available, or a CUDA device that is not there.
        DataError: If the data is missing or malformed.
        ConfigError: If the model is a mixture of experts, and an export that is asked for holds none.
        UserError: If the model's shapes are not available.
    """
    device = training_device(config)
    spec, trained = make_spec(config), with_dtype(config, folder)
    if spec.n_experts and (problems := experts_problems(config.export.targets or (), config.serve)):
        raise ConfigError(problems)
    space = make_space(config, spec)
    memory = make_memory(trained, spec, device)
    if config.embeddings == "auto":
        memory = _with_embeddings(config, memory, space, folder, given)
        config, trained = (c.with_changes(embeddings=memory.shape.embeddings) for c in (config, trained))
    if config.oracle.trains and not config.executor.elsewhere:
        (text or RunText(config)).check()
        check_ram(trained, spec, space, budget_bytes(config, config.budget[0], memory, space), device)
    return Setting(config, space, memory, given)


def _with_embeddings(config: RunConfig, memory: MemoryModel, space: SearchSpace, folder: Path | None,
                     given: Given | None) -> MemoryModel:
    """Return the memory model with the embedding of the run in ``folder``, or chosen by the budget: 16 bits where that
    is what a uniform choice needs."""
    study, budget = None if folder is None else begun_study(folder), config.budget[0]
    if study is not None:
        return replace(memory, shape=replace(memory.shape, embeddings=embeddings_of(study.header.config)))
    if isinstance(budget, Simple) and given is None:
        return memory
    return with_embeddings(memory, space, budget_bytes(config, budget, memory, space),
                           most_bits=config.max_average_bits, given=None if given is None else given.allocations[0])


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
    check_card(config, setting.memory, budget)
    if setting.given is None:
        check_budget(budget, setting.costs(budget), setting.space, setting.memory)
        check_uniform(setting.rules(budget))
    else:
        check_given(setting, setting.given, budget)
    return budget
