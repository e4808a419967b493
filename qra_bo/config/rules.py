"""Rules between the fields of a configuration: every problem at once, before anything is loaded."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from omegaconf import OmegaConf

from qra_bo.config.check import Problem
from qra_bo.config.derive import NUMBERS, make_space, make_spec
from qra_bo.config.overrides import CONF, options
from qra_bo.config.schema import RunConfig
from qra_bo.finetune.models.files import bases_of
from qra_bo.memory.budget import OF_ALLOCATION, OfAllocation
from qra_bo.memory.embeddings import embedding_format
from qra_bo.memory.formats import BITS, default_format, parse_format
from qra_bo.memory.serving import ANY, CONSUMERS, EXPORT_TARGETS, REMOVED_TARGETS, TARGET_FORMATS
from qra_bo.searchers.rates.model import shipped_rates
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import UserError, nearest_first
from qra_bo.utils.files import user_path

TRAINING = ("search", "finetune", "profile")
"""Tasks that need torch and a device with ``oracle=finetune``."""
ON_A_RUN = ("evaluate", "export", "report")
"""Tasks on a run's folder: they need nothing else."""


def problems_of(config: RunConfig) -> list[Problem]:
    """Every problem of a well-typed configuration; empty where it can work."""
    found = list(_model(config))
    if found:  # without a model the other rules can't be applied
        return found
    for rule in (_task, _codes, _formats, target_problems, serve_problems, _numbers, _method, _files, _device):
        found += rule(config)
    if config.stored and not found:
        found += _try("model", lambda: make_space(config, make_spec(config)))
    elif config.model["n_layers"] is not None and not any(p.key in ("bits", "quantizer.formats") for p in found):
        found += _try("ranks", lambda: make_space(config, make_spec(config)))
        found += _try("embeddings", lambda: embedding_format(config.embedding_bits, make_spec(config).hidden_size))
    return found


def _try(key: str, action: Callable[[], object]) -> Iterator[Problem]:
    """The message of a user error as a problem of ``key``."""
    try:
        action()
    except UserError as error:
        yield Problem(key, f"{key}: {str(error).rstrip('.')}.")


def _model(config: RunConfig) -> Iterator[Problem]:
    numbers = {f"model.{key}": value for key, value in config.model.items() if key in ("family", *NUMBERS)}
    missing = [key for key, value in numbers.items() if value is None]
    if missing and len(missing) < len(numbers):
        yield Problem("model.n_layers",
                      f"The numbers of a model are given together or not at all; {', '.join(missing)} are missing.")
    if config.model["source"] == "path" and not config.model["path"]:
        yield Problem("model.path", "+model=hf needs model.path: a hub id such as ORG/NAME, or a folder with "
                                    "config.json and *.safetensors; got null.")
    if config.model["source"] == "wheel" and not str(config.model["path"]).isidentifier():
        yield Problem("model.path", f"model.path={config.model['path']} needs +model=hf, or +model=NAME of its shapes.")


def _task(config: RunConfig) -> Iterator[Problem]:
    task, out, asks = config.task, config.out, bool(config.eval.tasks)
    if task in ON_A_RUN and out is None:
        yield Problem("out", f"task={task} needs out=FOLDER, the folder of a run; got null.")
    if (task == "evaluate") != asks:
        yield Problem("eval.tasks", "task=evaluate and eval.tasks=[...], questions for a finished run's model, need "
                                    f"each other; got task={task} and {'some' if asks else 'no'} eval.tasks.")
    if task == "finetune" and config.allocation is None:
        yield Problem("allocation", "task=finetune needs allocation=uniform:BITS,RANK such as uniform:4,16, "
                                    "mix:BITS,RANK, a best.json or a run's folder; task=memory names one that fits.")
    if task != "finetune" and config.allocation is not None:
        yield Problem("allocation", f"allocation={config.allocation} is trained by task=finetune; got task={task}. "
                                    "task=memory budget=uniform:BITS,RANK plans for one.")
    if task == "finetune" and not config.oracle.trains:
        yield Problem("oracle", f"task=finetune trains a model, and oracle={config.oracle.name} trains none: leave "
                                "oracle out.")
    if task in TRAINING and len(config.budget) > 1:
        listed = ",".join(map(str, config.budget))
        yield Problem("budget", f"task={task} takes one budget; got {len(config.budget)}. For one run each, "
                                f"the same command with --multirun and \"budget={listed}\". A list is for task=memory.")
    if task != "finetune" and any(isinstance(budget, OfAllocation) for budget in config.budget):
        yield Problem("budget", f"budget={OF_ALLOCATION} is for task=finetune; got task={task}: name a size, e.g. 8GB.")


def _codes(config: RunConfig) -> Iterator[Problem]:
    """Keys that need codes made here, or weights in 16 bits, beside the codes of a file."""
    folder, several = config.model["gguf_file"] is None, len(bases_of(config.model)) > 1
    server = "llamacpp" if not folder else "exllamav3" if several else ANY
    others = [name for name in config.export.targets or () if name in {*TARGET_FORMATS} - {*CONSUMERS[server].exports}]
    reasons = {
        "model.gguf_file": (folder and config.model["source"] != "path", "it trains on a GGUF file, such "
                            "as +model=hf model.path=FILE.gguf, or model.path=ORG/NAME model.gguf_file=FILE.gguf"),
        "bits": (bool(config.bits), "each linear keeps the bits that it has in the file: leave bits out"),
        "max_average_bits": (config.max_average_bits is not None, "the file's bits are as they are: leave it out"),
        "serve": (config.serve not in (ANY, server), f"it loads other codes: use serve={server}"),
        "export.targets": (bool(others), f"{', '.join(others)} can't hold these codes: leave it out, or use merged")}
    if config.stored:
        yield from (Problem(key, f"{key} beside codes=stored: {why}.") for key, (bad, why) in reasons.items() if bad)
    elif several:
        yield Problem("codes", "several of model.path, gguf_file or revision are for codes=stored: give that, or one.")
    elif not config.bits:
        yield Problem("bits", "bits must name the bit-widths that a unit may have, e.g. [2,4,8]; got [].")


def _formats(config: RunConfig) -> Iterator[Problem]:
    key, formats = "quantizer.formats", config.quantizer.formats
    for bits in (b for b in config.bits if not formats.get(b) and b not in _lacking(config)):
        unknown = list(_try("bits", partial(default_format, bits)))
        yield from unknown or [Problem(key, f"{key} must name a storage format for {bits} bits, e.g. "
                                            f"{key}.{bits}=[{default_format(bits).name}].")]


def _named(config: RunConfig) -> list[StorageFormat]:
    """Return the formats that ``quantizer.formats`` names for the run's bits."""
    return [parse_format(name) for bits in config.bits for name in config.quantizer.formats.get(bits, ())]


def _lacking(config: RunConfig) -> list[int]:
    """Return the run's bit-widths of which the consumer named by ``serve`` loads no format."""
    return [bits for bits in config.bits if bits in BITS and bits not in CONSUMERS[config.serve].widths]


def target_problems(config: RunConfig, given: bool = False) -> Iterator[Problem]:
    """Yield the export targets that are unknown, and those that refuse formats which a search may choose or a ``given``
    allocation has: the result could not be exported."""
    for name in (name for name in config.export.targets or () if name not in EXPORT_TARGETS):
        loaded = CONSUMERS[name].exports if name in CONSUMERS else ()
        answer = f"no longer an export target: {REMOVED_TARGETS[name]}" if name in REMOVED_TARGETS else \
            f"a program, which loads {', '.join(loaded)}" if loaded else \
            f"no export target; known, nearest first: {', '.join(nearest_first(name, EXPORT_TARGETS))}"
        yield Problem("export.targets", f"export.targets: {name!r} is {answer}.")
    why = "the allocation has" if given else "the search may choose"
    for target, (holds, instead) in TARGET_FORMATS.items():
        if not (given or config.task == "search") or target not in (config.export.targets or ()):
            continue
        if lost := [fmt.name for fmt in _named(config) if not holds(fmt)]:
            yield Problem("export.targets", f"the export {target} has no form for {', '.join(lost)}, which {why}: use "
                                            f"{instead}, or leave {target} out.")


def serve_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield the problem that the consumer named by ``serve`` does not load everything that may be chosen."""
    consumer, family = CONSUMERS[config.serve], config.model["family"]
    lacking = _lacking(config)
    others = [fmt.name for fmt in _named(config) if fmt.bits not in lacking and not consumer.loads(fmt)]
    wrong, ways = [], []
    if lacking:
        listed = ", ".join(map(str, lacking))
        wrong.append(f"{listed} bits (it has {', '.join(map(str, consumer.widths))})")
        ways.append(f"leave {listed} out of bits")
    if others:
        wrong.append(f"the formats {', '.join(others)} of quantizer.formats")
        ways.append(f"leave quantizer.formats out, or name formats that it loads ({consumer.loaded})")
    if config.granularity not in consumer.granularities:
        wrong.append(f"granularity={config.granularity}, where projections of one input (q, k, v; gate, up) may differ")
        ways.append(f"use granularity={' or '.join(consumer.granularities)}")
    if consumer.families and family is not None and family not in consumer.families:
        wrong.append(f"the model's family {family}")
        ways.append(f"take a model of {', '.join(consumer.families)}")
    if wrong:
        yield Problem("bits" if lacking else "quantizer.formats" if others else "serve",
                      f"serve={config.serve} searches only what {consumer.title} loads exactly, which is not so of "
                      f"{'; '.join(wrong)}: {'; '.join(ways)}; or use serve=any.")


def _numbers(config: RunConfig) -> Iterator[Problem]:
    limit, bits, rounding = config.max_average_bits, config.bits, config.quantizer.rounding
    low, high = config.fidelity.low, config.fidelity.high
    if rounding != "rtn" and not config.oracle.trains:
        yield Problem("quantizer.rounding", f"quantizer.rounding={rounding} needs calibration text, which oracle="
                                            f"{config.oracle.name} does not have: use quantizer.rounding=rtn.")
    if limit is not None and bits and limit < bits[0]:
        yield Problem("max_average_bits",
                      f"max_average_bits must be at least the lowest of bits={list(bits)}, or null; got {limit}.")
    if low is not None and low >= high:
        yield Problem("fidelity.low", f"fidelity.low must be below fidelity.high={high}, or null; got {low}.")


def _method(config: RunConfig) -> Iterator[Problem]:
    if not config.method.target:
        yield Problem("method", "method must hold _target_, the dotted path of a searcher's class, e.g. "
                                "my_package.MySearcher; got none.")
    elif (known := _targets(_shipped("method", config.method.name))) and _targets(config.method.target) != known:
        yield Problem("method", f"method.name={config.method.name} is the name of {', '.join(known)}; got _target_="
                                f"{', '.join(_targets(config.method.target))}: give method.name=NAME too.")


@cache
def _shipped(group: str, name: str) -> Mapping[str, Any]:
    """Return the values of an option of this package by its name; empty for a name that it does not have."""
    if name not in options()[group]:
        return {}
    node: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=False)
    return {**_shipped(group, node["defaults"][0]), **node} if "defaults" in node else node


def _targets(node: Mapping[str, Any]) -> list[str]:
    """Return the dotted paths of a node and of its parts."""
    parts = (target for value in node.values() if isinstance(value, Mapping) for target in _targets(value))
    return [str(node["_target_"]), *parts] if "_target_" in node else [*parts]


def _finetunes(config: RunConfig) -> bool:
    """Whether the run will train: only then need data and device be there."""
    return config.oracle.trains and config.task in TRAINING


def _files(config: RunConfig) -> Iterator[Problem]:
    own = _shipped("data", config.data.name).get("path")
    if own is not None and getattr(config.data, "path", own) != own:
        yield Problem("data.path", f"data.path is a key of data=jsonl and data=hub alone; data={config.data.name} "
                                   f"reads {own}: leave data.path out, or choose one of those.")
    if config.data.kind == "jsonl" and _finetunes(config):
        yield from _file("data.path", config.data.path, "a JSON or JSONL file, one object a line")
    if config.data.kind == "hub" and config.data.path is None and _finetunes(config):
        yield Problem("data.path", "data.path must be the id of a data set on the hub, such as ORG/NAME, or a folder; "
                                   "got null.")
    if config.task in TRAINING and config.surrogate.rates not in shipped_rates():
        yield from _file("surrogate.rates", config.surrogate.rates, "a file of exchange rates, or "
                         f"one that comes with qra_bo ({', '.join(shipped_rates())})")


def _file(key: str, path: str | None, wanted: str) -> Iterator[Problem]:
    if path is None:
        yield Problem(key, f"{key} must name {wanted}; got null.")
    elif not os.path.isfile(user_path(path)):
        yield Problem(key, f"{key} must name {wanted}; there is no file {path!r}.")


def _device(config: RunConfig) -> Iterator[Problem]:
    if not _finetunes(config) or not config.device.startswith("cuda") or config.executor.elsewhere:
        return
    import torch  # heavy, and needed by this choice alone
    count = torch.cuda.device_count()
    if int(config.device.partition(":")[2] or 0) >= count:
        yield Problem("device", f"device={config.device} needs a CUDA device that torch can use; it sees {count}; use "
                                "device=auto or device=cpu.")
