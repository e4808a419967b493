"""Choices that follow from the model and the device where the user made none: trainer, budget, learning rate, text."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from omegaconf import OmegaConf

from qra_bo.config.derive import NUMBERS
from qra_bo.config.overrides import CONF
from qra_bo.config.rules import TRAINING
from qra_bo.config.schema import RunConfig
from qra_bo.finetune.models.files import bases_of
from qra_bo.finetune.models.gguf_header import EMBEDDING, read_header
from qra_bo.memory.budget import OF_ALLOCATION
from qra_bo.memory.file_formats import STORED
from qra_bo.oracle.protocol import FINETUNE
from qra_bo.space.decoder import spec_from_numbers
from qra_bo.utils.device import planned_device, resolve_device, resolve_dtype
from qra_bo.utils.errors import ConfigError, UserError
from qra_bo.utils.files import read_object, user_path
from qra_bo.utils.formatting import cut

CPU_PARAMETERS = 10**9
"""Largest model that ``train=cpu`` is chosen for: a rule of thumb, as larger ones are fine-tuned on a GPU."""
BASE_LR, BASE_WIDTH = 2e-4, 4096
"""QLoRA's learning rate of its 7 B model and that model's width; the rate falls as 1 / width, which gives 1e-4 at 8192,
QLoRA's rate of its 65 B model (Dettmers et al. 2023, table 9). It stands for models whose width is not known yet."""
CPU_LR, CPU_WIDTH = 2e-3, 576
"""The same for the short steps of ``train=cpu``: SmolLM2-135M's rate and width. Narrower models keep the rate."""


def choices(overrides: Sequence[str], raw: Mapping[str, Any]) -> list[str]:
    """Return further overrides for what the given ones leave open: the trainer, the budget, which a given allocation
    or a named card brings, the user's data where ``data.path`` is a file, no bits beside stored codes, no options of
    the default method beside a class of the user's own, and no tries beside a learning rate of ``task=finetune``.

    What a profile chooses stays: a trainer or a budget other than the default of ``conf/config.yaml``.

    Args:
        overrides: Normalised overrides, a model among them.
        raw: Plain values that they compose to, not checked yet; what they hold already is not returned.
    """
    given, chosen = {re.split("[=@]", text)[0].lstrip("+") for text in overrides}, []
    name, suits = _group(raw, "train").get("name"), trainer_of(raw)[0]
    if name not in (None, suits) and "train" not in given and ("profile" not in given or name == "cpu"):
        chosen.append(f"train={suits}")
    if raw.get("codes") == STORED and "bits" not in given:
        chosen.append("bits=[]")
    path = _group(raw, "data").get("path")
    if "data.path" in given and "data" not in given and isinstance(path, str) and \
            (path.endswith((".jsonl", ".json")) or os.path.isfile(user_path(path))):
        chosen.append("data=jsonl")
    if "method._target_" in given and "method" not in given:
        own = str(_group(raw, "method").get("_target_")).rpartition(".")[2]
        chosen.append("method=_own")
        if own.isidentifier() and "method.name" not in given:
            chosen.append(f"method.name={own}")
    if raw.get("task") == "finetune" and "calibrate.lr_scales" not in given and \
            _group(raw, "adapter").get("lr", "auto") != "auto":
        chosen.append("calibrate.lr_scales=[1.0]")
    budget = OF_ALLOCATION if raw.get("task") == "finetune" else None if raw.get("gpu") is None else "auto"
    if budget and "budget" not in given and raw.get("budget") == OmegaConf.load(CONF / "config.yaml").budget:
        chosen.append(f"budget={budget}")
    return chosen


def _group(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the values of a group, which is not checked yet; empty where it is none."""
    group = raw.get(name)
    return group if isinstance(group, Mapping) else {}


def with_learning_rate(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return plain values in which ``adapter.lr`` is a number where it was ``auto``."""
    adapter, model = _group(raw, "adapter"), _group(raw, "model")
    if adapter.get("lr") != "auto" or not model:
        return raw
    known = _width(model)
    if _group(raw, "train").get("name") == "cpu":
        lr = CPU_LR * CPU_WIDTH / max(known or CPU_WIDTH, CPU_WIDTH)
    else:
        lr = BASE_LR * BASE_WIDTH / (known or BASE_WIDTH)
    return {**raw, "adapter": {**adapter, "lr": float(f"{lr:.2g}")}}


def with_workers(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return plain values in which ``executor.workers`` is a number where it was ``auto``: in what ends in a final
    fine-tune one a card that torch sees, unless ``device`` names one of them, and 1 in all else."""
    executor = _group(raw, "executor")
    if executor.get("workers") != "auto" or executor.get("name") != "local":
        return raw
    workers, unnamed = 1, ":" not in str(raw.get("device"))
    if raw.get("task") in ("search", "finetune") and unnamed and trains(raw) and device_of(raw) == "cuda":
        import torch  # a simulation and a run on a CPU do without it here
        workers = max(1, torch.cuda.device_count())
    return {**raw, "executor": {**executor, "workers": workers}}


def _width(model: Mapping[str, Any]) -> int | None:
    """Return the width of a node of ``conf/model``, or else of the model in the folder that its path names."""
    width, base = model.get("hidden_size"), bases_of(model)[0]
    folder = user_path(str(base.get("path")))
    if width is None:  # of a hub id, whose file is not here, nothing is known; a wrong path is refused later
        with suppress(UserError, KeyError):
            if name := base.get("gguf_file"):
                return int(read_header(folder / str(name)).tensors[EMBEDDING].shape[0])
            found = read_object(folder / "config.json")
            part = found.get("text_config", found)
            width = part.get("hidden_size") if isinstance(part, Mapping) else None
    return width if isinstance(width, int) and width > 0 else None


def with_model_path(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return plain values in which GGUF files that ``model.path`` names are their folder and ``model.gguf_file``, and a
    model of ``+model=hf`` has its name. Raises ``ConfigError`` if a list is of neither files nor folders."""
    model = _group(raw, "model")
    given = model.get("path")
    paths = [user_path(str(path)) for path in (given if isinstance(given, list) else [given])]
    folders, names = {path.parent for path in paths}, [path.name for path in paths]
    files = [path.suffix.lower() == ".gguf" and (isinstance(given, list) or path.is_file()) for path in paths]
    if not files or (any(files) and not (all(files) and len(folders) == 1)):
        raise ConfigError(f"model.path takes a list of GGUF files of one folder, or of folders; got {cut(given)}")
    if given and model.get("name") == "hf":
        model = {**model, "name": (paths[0].parent if files[0] and names[1:] else paths[0]).resolve().name or "hf"}
    if files[0]:
        model = {**model, "path": str(*folders), "gguf_file": names if names[1:] else names[0]}
    return {**raw, "model": model} if model else raw


def trainer_of(raw: Mapping[str, Any]) -> tuple[str, str]:
    """Return the option of ``train`` that suits plain or checked values of a configuration, and the reason."""
    if raw.get("gpu") is not None:
        return "gpu", f"gpu={raw['gpu']}"
    device, count = str(raw.get("device")), parameters(raw.get("model"))
    if device_of(raw) == "cuda":
        return "gpu", "a CUDA device" if device == "auto" else f"device={device}"
    if count is not None and count > CPU_PARAMETERS:
        return "gpu", f"{count / 1e9:.1f} B parameters; train=cpu is for at most {CPU_PARAMETERS / 1e9:.0f} B on a CPU"
    return "cpu", "a CPU" if count is None else f"{count / 1e6:,.1f} M parameters on a CPU"


def device_of(raw: Mapping[str, Any]) -> str:
    """Return the kind of device, ``"cuda"`` or ``"cpu"``, that a run with these plain values trains on or plans for.

    A run that trains with ``device=auto`` asks torch where NVIDIA's driver is there: torch may be built without CUDA.
    """
    device = str(raw.get("device"))
    planned = planned_device(device)
    return resolve_device(device) if trains(raw) and device == "auto" and planned == "cuda" else planned


def trains(raw: Mapping[str, Any]) -> bool:
    """Return whether plain values of a configuration are of a run that fine-tunes a model."""
    return raw.get("task") in TRAINING and _group(raw, "oracle").get("name") == FINETUNE


def parameters(model: Any) -> int | None:
    """Return the parameters of a node of ``conf/model``; ``None`` where its numbers are missing or make no sense."""
    try:
        spec = spec_from_numbers(model["name"], model["family"], **{key: model[key] for key in NUMBERS})
    except (UserError, KeyError, TypeError):
        return None
    return spec.linear_numel + spec.other_numel


def preset_notes(config: RunConfig) -> list[str]:
    """Return lines for the plan: which trainer, card and text the run uses, and why."""
    train, raw = config.train, config.to_dict()
    suits, reason = trainer_of(raw)
    why = f"chosen for {reason}" if train.name == suits else f"as given; {suits} suits {reason}"
    step = f"{train.batch * train.accumulate} x {train.length} tokens a step"
    if train.accumulate > 1:
        step += f" ({train.batch} x {train.length} at once)"
    low = "" if config.fidelity.low is None else f", a low-fidelity one {config.fidelity.low}"
    workers = config.executor.workers
    lines = [f"train={train.name} ({why}): {step}, {train.optimizer}"
             f"{', checkpointing' if train.checkpointing else ''}, learning rate {config.adapter.lr:.2g} at rank 16; a "
             f"trial has {config.fidelity.high} steps{low}"]
    if workers > 1 and not config.executor.elsewhere and device_of(raw) == "cuda":
        lines.append(f"executor.workers={workers}: {workers} trials at once, on a card each within the whole budget; "
                     f"the final fine-tune runs on {config.final_workers} of these cards, which share every step (not "
                     "tried on GPUs). Another number of cards gives other proposals")
    if config.gpu is None and not config.executor.elsewhere and device_of(raw) != planned_device(config.device):
        lines.append(f"device=auto: this machine has NVIDIA's driver, but torch {version('torch')} sees no CUDA "
                     "device: the run trains on the CPU. To train on the GPU, install a build of torch for the "
                     "driver's version of CUDA (https://pytorch.org/get-started/locally); if the CPU is meant, give "
                     "device=cpu")
    if (card := config.card) is not None:
        lines.append(f"gpu={config.gpu}: {card.title}, {card.total_bytes / 1e9:.1f} GB, "
                     f"{resolve_dtype('auto', 'cuda', card.capability)} on CUDA; nothing here was measured on it")
    if config.oracle.trains and config.data.kind in ("hub", "plays"):
        text = f"{config.data.path} from the hub" if config.data.kind == "hub" else \
            "the embedded plays of Shakespeare, for a first try"
        lines.append(f"data={config.data.name}: {text}; your own text: data=jsonl data.path=FILE")
    return lines
