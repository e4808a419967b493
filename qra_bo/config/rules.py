"""What the fields of a configuration mean together: every problem at once, before anything is loaded."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from qra_bo.config.decode import Problem, check
from qra_bo.config.schema import ModelConfig, RunConfig
from qra_bo.memory.budget import parse_budget, parse_size
from qra_bo.memory.formats import default_format, parse_format
from qra_bo.memory.optimizers import is_paged
from qra_bo.oracle.emulator.table import TASK as TASK_FILE
from qra_bo.oracle.emulator.table import folder_of
from qra_bo.pipeline.build import NUMBERS, make_space, make_spec
from qra_bo.searchers.priors import prior_file, shipped_priors
from qra_bo.space import Ladder
from qra_bo.tasks import TASKS
from qra_bo.trials import OWN_BASE
from qra_bo.utils.errors import UserError, nearest_first
from qra_bo.utils.redact import redact

OTHER_RATES = "distinct positive factors other than 1, e.g. [0.5,2]"
OF_A_RUN = ("export", "report")
"""Tasks on a run's folder: they need nothing but that."""


def problems_of(config: RunConfig) -> list[Problem]:
    """Every problem of a well-typed configuration; empty where it can work."""
    found: list[Problem] = list(_model(config))
    if found:  # without a model nothing else has a meaning
        return found
    for rule in (_task, _budget, _ladders, _rounding, _numbers, _train, _sources, _executor, _mirror,
                 _device, _optimizer):
        found += rule(config)
    if not any(p.key in ("bits", "ranks", "quantizer.formats") for p in found):
        found += _space(config)
    return found


def _try(key: str, action: Callable[[], object]) -> Iterator[Problem]:
    """The message of a user error as a problem of ``key``."""
    try:
        action()
    except UserError as error:
        yield Problem(key, f"{key}: {str(error).rstrip('.')}.")


def _model(config: RunConfig) -> Iterator[Problem]:
    yield from (mismatches := check(ModelConfig, config.model, "model."))
    numbers = {key: config.model.get(key) for key in ("family", *NUMBERS)}
    if mismatches or all(value is None for value in numbers.values()):
        return
    missing = [f"model.{key}" for key, value in numbers.items() if value is None]
    if missing:
        yield Problem("model.n_layers", "The numbers of a model are given together or not at all; "
                                        f"{', '.join(missing)} are missing.")
    for key, value in numbers.items():
        yield from _rule(f"model.{key}", value, type(value) is not int or value >= 1, "at least 1")


def _task(config: RunConfig) -> Iterator[Problem]:
    if config.task not in TASKS:
        yield Problem("task", f"Unknown task {config.task!r}; known, nearest first: "
                              f"{', '.join(nearest_first(config.task, TASKS))}.")
    if config.task in OF_A_RUN and config.out is None:
        yield Problem("out", f"task={config.task} needs out=FOLDER, the folder of a run; got null.")
    asks = bool(config.eval.tasks)
    if config.task == "evaluate" and (config.allocation is None) != asks:
        yield Problem("allocation", "task=evaluate needs allocation=uniform:BITS,RANK or a JSON file such as a "
                                    "best.json, or eval.tasks=[...] and out=RUN to ask the model of a finished run; got"
                                    f" {'both' if asks else 'neither'}.")
    if asks and (config.task != "evaluate" or config.out is None):
        yield Problem("eval.tasks", "eval.tasks needs task=evaluate and out=RUN, the folder of a finished run; got "
                                    f"task={config.task} and out={'null' if config.out is None else config.out}.")


def _budget(config: RunConfig) -> Iterator[Problem]:
    if not config.budget:
        yield Problem("budget", "budget must name at least one size, e.g. 10GB; got an empty list.")
    for text in config.budget:
        yield from _try("budget", lambda text=text: parse_budget(text))  # type: ignore[misc]
    repeated = sorted({text for text in config.budget if config.budget.count(text) > 1})
    if repeated:
        yield Problem("budget", f"budget lists a size twice: {repeated}; give each once.")
    yield from _try("memory.headroom", lambda: parse_size(config.memory.headroom))


def _ladders(config: RunConfig) -> Iterator[Problem]:
    yield from _try("bits", lambda: Ladder("bits", config.bits))
    yield from _try("ranks", lambda: Ladder("ranks", config.ranks))
    for bits in (b for b in config.bits if b > 0):
        names = config.quantizer.formats.get(bits, ())
        if not names:
            unknown = list(_try("bits", lambda bits=bits: default_format(bits)))  # type: ignore[misc]
            yield from unknown
            if not unknown:
                yield Problem("quantizer.formats", f"quantizer.formats must name a storage format for {bits} bits, "
                                                   f"e.g. quantizer.formats.{bits}=[{default_format(bits).name}].")
    for bits, names in config.quantizer.formats.items():
        for name in names:
            wrong = list(_try("quantizer.formats", lambda name=name: parse_format(name)))  # type: ignore[misc]
            yield from wrong
            if not wrong and parse_format(name).bits != bits:
                yield Problem("quantizer.formats", f"quantizer.formats.{bits} lists {name!r}, which stores "
                                                   f"{parse_format(name).bits} bits.")
        if len(set(names)) < len(names):
            yield Problem("quantizer.formats", f"quantizer.formats.{bits} names a format twice: {list(names)}.")


def _rounding(config: RunConfig) -> Iterator[Problem]:
    q = config.quantizer
    yield from _rule("quantizer.tokens", q.tokens, q.tokens >= 1, "at least 1")
    if q.rounding != "rtn" and not config.oracle.trains:
        yield Problem("quantizer.rounding", f"quantizer.rounding={q.rounding} chooses codes on real text, and oracle="
                                            f"{config.oracle.name} has none: use quantizer.rounding=rtn.")
    if q.rounding != "rtn" and config.adapter.init in OWN_BASE:
        yield Problem("adapter.init", f"adapter.init={config.adapter.init} quantises what the adapters leave of every "
                                      "weight, to the round-to-nearest codes: use quantizer.rounding=rtn, or another start.")


def _rule(key: str, value: object, ok: bool, rule: str) -> Iterator[Problem]:
    if not ok:
        shown = list(value) if isinstance(value, tuple) else value
        yield Problem(key, f"{key} must be {rule}; got {shown}.")


def _numbers(config: RunConfig) -> Iterator[Problem]:
    c = config
    limit = c.max_average_bits
    yield from _rule("max_average_bits", limit, limit is None or not c.bits or limit >= c.bits[0],
                     f"at least the lowest of bits={list(c.bits)}, or null")
    yield from _rule("seed", c.seed, c.seed >= 0, "at least 0")
    yield from _rule("max_hours", c.max_hours, c.max_hours is None or c.max_hours > 0, "more than 0, or null")
    yield from _rule("effort.max_full_trials", c.effort.max_full_trials, c.effort.max_full_trials >= 1, "at least 1")
    yield from _rule("effort.uniform_baselines", c.effort.uniform_baselines, c.effort.uniform_baselines is None or c.effort.uniform_baselines >= 1,
                     "at least 1, or null for all")
    noise = c.oracle.noise
    yield from _rule("oracle.noise", noise, (noise or 0.0) >= 0 and (noise is not None or c.oracle.name == "benchmark"),
                     "at least 0, or null for what the repeats of oracle=benchmark show")
    yield from _rule("adapter.alpha_over_rank", c.adapter.alpha_over_rank, c.adapter.alpha_over_rank > 0, "more than 0")
    yield from _rule("adapter.iterations", c.adapter.iterations, c.adapter.iterations >= 1, "at least 1")
    yield from _rule("adapter.lr", c.adapter.lr, c.adapter.lr > 0, "more than 0")
    yield from _rule("data.held_out", c.data.held_out, 0 < c.data.held_out < 0.5, "between 0 and 0.5")
    yield from _rule("data.max_records", c.data.max_records, c.data.max_records is None or c.data.max_records >= 3,
                     "at least 3, or null for all")
    yield from _rule("data.calibration", c.data.calibration, c.data.calibration >= 1, "at least 1")
    yield from _rule("confirm.seeds", c.confirm.seeds, c.confirm.seeds == 0 or c.confirm.seeds >= 2,
                     "0 (no confirmation) or at least 2")
    yield from _rule("final.steps", c.final.steps, c.final.steps is None or c.final.steps >= 0, "at least 0, or null")
    yield from _rule("final.epochs", c.final.epochs, c.final.epochs >= 0, "at least 0")
    yield from _rule("worker.checkpoint_seconds", c.worker.checkpoint_seconds, c.worker.checkpoint_seconds >= 0,
                     "at least 0")
    for key, seconds in (("deadline_seconds", c.worker.deadline_seconds), ("slowdown", c.worker.slowdown)):
        yield from _rule(f"worker.{key}", seconds, seconds is None or seconds > 0, "more than 0, or null")
    yield from _rule("worker.retries", c.worker.retries, c.worker.retries >= 0, "at least 0")
    scales = c.calibrate.lr_scales
    yield from _rule("calibrate.lr_scales", scales, bool(scales) and min(scales) > 0 and len(set(scales)) == len(scales),
                     "distinct positive factors, e.g. [0.5,1,2]")
    yield from _rule("effort.rate_factors", c.effort.rate_factors, are_other_rates(c.effort.rate_factors), OTHER_RATES)
    yield from _rule("effort.calibration_baselines", c.effort.calibration_baselines,
                     c.effort.calibration_baselines >= 1, "at least 1")
    yield from _rule("confirm.ranking_factor", c.confirm.ranking_factor, c.confirm.ranking_factor >= 1, "at least 1")


def are_other_rates(factors: Sequence[float]) -> bool:
    """Return whether ``factors`` on a calibrated learning rate are ``OTHER_RATES``."""
    return all(f > 0 and f != 1 for f in factors) and len(set(factors)) == len(factors)


def _train(config: RunConfig) -> Iterator[Problem]:
    t, f = config.train, config.fidelity
    yield from _rule("train.batch", t.batch, t.batch >= 1, "at least 1")
    yield from _rule("train.length", t.length, t.length >= 2, "at least 2")
    yield from _rule("train.warmup", t.warmup, 0 <= t.warmup < 1, "at least 0 and below 1")
    yield from _rule("train.lr_floor", t.lr_floor, 0 <= t.lr_floor <= 1, "between 0 and 1")
    yield from _rule("train.weight_decay", t.weight_decay, t.weight_decay >= 0, "at least 0")
    yield from _rule("train.betas", t.betas, len(t.betas) == 2 and all(0 <= b < 1 for b in t.betas),
                     "two numbers of at least 0 and below 1")
    yield from _rule("train.eps", t.eps, t.eps > 0, "more than 0")
    yield from _rule("train.clip", t.clip, t.clip >= 0, "at least 0 (0: no clipping)")
    yield from _rule("train.logits_chunk", t.logits_chunk, t.logits_chunk >= 1, "at least 1")
    yield from _rule("fidelity.high", f.high, f.high >= 1, "at least 1")
    yield from _rule("fidelity.low", f.low, f.low is None or 1 <= f.low < f.high,
                     f"at least 1 and below fidelity.high={f.high}, or null")
    yield from _rule("eval.tokens", config.eval.tokens, config.eval.tokens >= t.length,
                     f"at least one sequence (train.length={t.length})")
    yield from _rule("eval.batch", config.eval.batch, config.eval.batch >= 1, "at least 1")
    limit = config.eval.limit
    yield from _rule("eval.limit", limit, limit is None or limit >= 1, "at least 1, or null for all")


def _finetunes(config: RunConfig) -> bool:
    """Whether the run will train: only then need data and device be there."""
    return config.oracle.trains and config.task not in (*OF_A_RUN, "memory")


def _sources(config: RunConfig) -> Iterator[Problem]:
    if config.model["source"] == "path" and not config.model["path"]:
        yield Problem("model.path", "+model=hf needs model.path: a hub id such as ORG/NAME, or a folder with "
                                    "config.json and *.safetensors; got null.")
    if _finetunes(config) and config.data.kind == "jsonl":
        path = config.data.path
        if path is None:
            yield Problem("data.path", "data=jsonl needs data.path=FILE, one JSON object a line; got null.")
        elif not Path(path).expanduser().is_file():
            yield Problem("data.path", f"data.path must name a JSON or JSONL file; there is no file {path!r}.")
    profile = config.sensitivity.path
    if config.task not in (*OF_A_RUN, "memory") and profile is not None and not Path(profile).expanduser().is_file():
        yield Problem("sensitivity.path", "sensitivity.path must name a file such as the profile.json of a "
                                          f"task=profile, or be null to measure; there is no file {profile!r}.")
    prior = config.surrogate.prior
    if config.task not in (*OF_A_RUN, "memory") and prior is not None and not prior_file(prior).is_file():
        yield Problem("surrogate.prior", "surrogate.prior must name a file that python -m qra_bo.prior wrote, or one "
                                         f"that comes with qra_bo ({', '.join(shipped_priors())}), or be null; there "
                                         f"is no file {prior!r}.")
    table = config.oracle.table
    if config.oracle.name == "benchmark" and (table is None or not (folder_of(Path(table)) / TASK_FILE).is_file()):
        yield Problem("oracle.table", "oracle=benchmark needs oracle.table=FOLDER, a table of real evaluations such as "
                                      f"bench/data/plays; got {table!r}.")


def _executor(config: RunConfig) -> Iterator[Problem]:
    e = config.executor
    yield from _rule("executor.workers", e.workers, e.workers >= 1, "at least 1")
    for key, value in (("cpus", e.cpus), ("gpus", e.gpus)):
        yield from _rule(f"executor.{key}", value, value is None or 0 <= value < float("inf"), "at least 0, or null")
    if e.memory is not None:
        yield from _try("executor.memory", lambda: parse_size(str(e.memory)))
    for key, given in (("address", e.address), ("cpus", e.cpus), ("gpus", e.gpus), ("memory", e.memory)):
        if e.name == "local" and given is not None:
            yield Problem(f"executor.{key}", f"executor.{key}={given} is for executor=ray; executor=local has workers "
                                             "alone.")


def _mirror(config: RunConfig) -> Iterator[Problem]:
    if config.mirror is not None and not re.fullmatch(r"sqlite|[a-z][a-z0-9+]*://\S+", config.mirror):
        yield Problem("mirror", "mirror must be sqlite, the URL of an Optuna storage such as "
                                "postgresql://USER@HOST/NAME, or null; got " + redact(repr(config.mirror)) + ".")


def _device(config: RunConfig) -> Iterator[Problem]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        yield Problem("device", f"device must be auto, cpu, cuda or cuda:N; got {config.device!r}.")
    elif config.device.startswith("cuda") and _finetunes(config) and config.executor.address is None:
        import torch

        count, wanted = torch.cuda.device_count(), int(config.device.partition(":")[2] or 0)
        if wanted >= count:
            yield Problem("device", f"device={config.device} needs a CUDA device that torch can use; it sees {count}; "
                                    "use device=auto or device=cpu.")


def _optimizer(config: RunConfig) -> Iterator[Problem]:
    if not is_paged(config.train.optimizer) or not _finetunes(config):
        return
    import torch

    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        other = config.train.optimizer.removeprefix("paged_")
        yield Problem("train.optimizer", f"train.optimizer={config.train.optimizer} moves optimiser states between a "
                                         f"GPU and the host, and this run is on the CPU; use train.optimizer={other} "
                                         "here, or device=cuda where there is one.")


def _space(config: RunConfig) -> Iterator[Problem]:
    if config.model["n_layers"] is not None:  # else its shapes come from files, or a hub
        yield from _try("ranks", lambda: make_space(config, make_spec(config)))
