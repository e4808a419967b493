"""``gguf/``: the run for llama.cpp, Ollama and LM Studio: searched base, adapter, and both merged."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Form

from qra_bo.export.comparison import Loader, Reference, Row
from qra_bo.export.gguf_blocks import BLOCK, is_exact
from qra_bo.export.gguf_file import SAMPLING, Source
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.gguf_tokenizer import vocabulary_of
from qra_bo.export.llamacpp import PACKAGE, LlamaCpp
from qra_bo.export.run import FinishedRun, render
from qra_bo.export.weights import refuse_formats, weights_of
from qra_bo.finetune.models.files import bases_of
from qra_bo.finetune.models.load import gguf_of
from qra_bo.space.decoder import expert_of

FOLDER, MODELFILE = "gguf", "Modelfile"
ADAPTER, UNPACKED = "adapter", "base-f32"
MERGED = {"merged-f16": Form.F16, "merged-q8_0": Form.Q8_0}
"""Form of the linears with an adapter in the merged files."""
FILES = {
    "base": "the searched base: the run's own codes and scales",
    ADAPTER: "the LoRA adapter, for the base; every rank with its own scale",
    "merged-f16": "both in one; linears with an adapter in F16, the others in their searched form",
    "merged-q8_0": "both in one; linears with an adapter in Q8_0, the others in their searched form",
    UNPACKED: "the base unpacked to fp32, to compare"}
"""Files that ``export.gguf`` may name, and what they hold."""
_LONGEST = 80
"""Characters of a name that Ollama takes."""
_ROUNDING = "llama.cpp multiplies packed weights by activations rounded to 8 bits, and 16-bit ones by 16 bits"


def write(run: FinishedRun) -> list[Path]:
    """Write the files that ``run.gguf`` names, a README with the commands of servers, and Ollama's Modelfile."""
    refuse_formats("gguf", run.manifest.modules, BLOCK)
    weights = weights_of(run)
    layout = layout_of(weights.config)  # first: in other families the embedding has another name
    rows = len(weights.others["model.embed_tokens.weight"])
    source = Source(weights, layout, vocabulary_of(weights.tokenizer, rows), str(run.best["model"]))
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    wanted = [name for name in run.gguf if name != "base" or not run.manifest.untouched]  # which is the user's file
    written = [folder / f"{name}.gguf" for name in wanted]
    for name, path in zip(wanted, written, strict=True):
        if name == ADAPTER:
            source.write_adapter(path)
        else:
            source.write_model(path, MERGED.get(name), dense=name == UNPACKED)
    files = _at_hand(run)
    rounded = sorted({linear.format.name for linear in weights.linears.values() if not is_exact(linear.format)})
    texts = {"README.md": render("gguf.md", run, files=files, rounded=rounded, notes=source.vocabulary.notes,
                                 meaning=FILES, merged=_merged(run.gguf) or _merged(files), label=_label(run),
                                 base=_base(run, files))}
    if (merged := _merged(run.gguf)) is not None:
        settings = ((key, getattr(weights.generation_config, name, None)) for name, (_, key) in SAMPLING.items())
        lines = [f"PARAMETER {key} {value:g}" for key, value in settings if value is not None]
        texts[MODELFILE] = "\n".join([f"FROM ./{merged}.gguf", *lines]) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*written, *(folder / name for name in texts)]


def refuse_base(model: Any, tokenizer: Any) -> None:
    """Refuse a base model, or its tokenizer, that has no form in GGUF."""
    layout = layout_of(model.config)
    for name in (name for name, _ in model.named_parameters() if expert_of(name) is None):  # packed tables are buffers
        layout.name(name)
    vocabulary_of(tokenizer, model.get_input_embeddings().num_embeddings)


def _label(run: FinishedRun) -> str:
    """Return a name that Ollama takes and other runs don't have: a name that is there already would be replaced."""
    model, folder = str(run.best["model"]), run.folder.resolve().name
    text = folder if folder.startswith(model) else f"{model}-{folder}"
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())[-_LONGEST:].strip("-.") or "tuned"


def start(run: FinishedRun) -> dict[str, str]:
    """Return the commands of llama.cpp's server, with the adapter beside the searched base where both are there, and of
    Ollama, which is given the merged file and asks it."""
    folder, files = run.folder.resolve() / FOLDER, _at_hand(run)
    merged, base, served, found = _merged(files), _base(run, files), [], {}
    if base and ADAPTER in files:
        served = [str(folder / base), "--lora", str(folder / "adapter.gguf")]
    elif merged is not None:
        served = [str(folder / f"{merged}.gguf")]
    if served:
        found["gguf"] = shlex.join(["llama-server", "-m", *served, "--host", "127.0.0.1", "--port", "8080"])
    if (folder / MODELFILE).is_file():
        found["Ollama"] = f"cd {shlex.quote(str(folder))} && ollama create {_label(run)} -f {MODELFILE} && " \
                          f"ollama run {_label(run)}"
    return found


def _at_hand(run: FinishedRun) -> list[str]:
    """Return the names of the files that the run's folder holds."""
    return [name for name in FILES if (run.folder / FOLDER / f"{name}.gguf").is_file()]


def _base(run: FinishedRun, files: Sequence[str]) -> str | None:
    """Return the base's path, from the export's folder: of the run's own file, or the one that it trained on."""
    if run.manifest.untouched:
        return str(gguf_of(*bases_of(run.manifest.model)))
    return "base.gguf" if "base" in files else None


def _merged(files: Sequence[str]) -> str | None:
    return next((name for name in files if name in MERGED), None)


def _views(run: FinishedRun, reference: Reference) -> Iterator[Row]:
    folder, ids, files = run.folder / FOLDER, reference.ids.tolist(), _at_hand(run)
    for name in (name for name in dict.fromkeys(["base"] * run.manifest.untouched + files) if name != ADAPTER):
        path = folder / (_base(run, files) or "" if name == "base" else f"{name}.gguf")
        for lora in (False,) if name in MERGED or ADAPTER not in files else (False, True):
            with LlamaCpp(path, folder / f"{ADAPTER}.gguf" if lora else None, length=len(ids),
                          exact=name == UNPACKED) as model:
                logits = torch.from_numpy(model.logits(ids))
            yield reference.row(f"gguf, {name}{' with the adapter' if lora else ''}", logits,
                                "" if name == UNPACKED else _ROUNDING, adapted=lora or name in MERGED)


LOADER = Loader("llama.cpp", _views, ("llama_cpp_py_sync",), PACKAGE)
