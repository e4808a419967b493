"""``gguf/``: the run for llama.cpp, Ollama and LM Studio: searched base, adapter, and both merged."""

from collections.abc import Callable
from pathlib import Path

from gguf import GGMLQuantizationType as Form

from qra_bo.export.gguf_blocks import form_of, is_exact
from qra_bo.export.gguf_file import Source
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.gguf_tokenizer import vocabulary_of
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import RunWeights, weights_of
from qra_bo.utils.errors import ConfigError

FOLDER = "gguf"
FILES: dict[str, Callable[[Source, Path], None]] = {
    "base": lambda source, path: source.write_model(path),
    "adapter": lambda source, path: source.write_adapter(path),
    "merged-f16": lambda source, path: source.write_model(path, adapted=Form.F16),
    "merged-q8_0": lambda source, path: source.write_model(path, adapted=Form.Q8_0),
    "base-f32": lambda source, path: source.write_model(path, dense=True)}
"""Files that ``export.gguf`` may name."""


def write(run: FinishedRun) -> list[Path]:
    """Write the files that ``run.gguf`` names, a README with the commands of servers, and Ollama's Modelfile.

    Raises:
        ConfigError: If the base model, its tokenizer or a format has no form in GGUF.
        ModelError: If the base model is not at hand or another.
        OutputError: If the run lacks a file, or its adapter is not the manifest's.
    """
    source = source_of(run)
    folder = run.folder / FOLDER
    folder.mkdir(exist_ok=True)
    written = [folder / f"{name}.gguf" for name in run.gguf]
    for name, path in zip(run.gguf, written, strict=True):
        FILES[name](source, path)
    return written


def source_of(run: FinishedRun) -> Source:
    """Read a run for its GGUF files; the errors are those of ``write``."""
    weights = weights_of(run)
    check_formats(weights)
    rows = weights.config.vocab_size
    return Source(weights, layout_of(weights.config), vocabulary_of(weights.tokenizer, rows), str(run.best["model"]))


def check_formats(weights: RunWeights) -> None:
    """Refuse a run that holds formats without a form in GGUF.

    Raises:
        ConfigError: With all of them.
    """
    lost: dict[str, int] = {}
    for linear in weights.linears.values():
        if form_of(linear.format, linear.shape[1]) is None:
            lost[linear.format.name] = lost.get(linear.format.name, 0) + 1
    if lost:
        found = ", ".join(f"{name} ({count} linears)" for name, count in lost.items())
        raise ConfigError(f"export.targets=[gguf]: {found} of this run has no form in GGUF. Search again with "
                          "serve=llamacpp, which keeps to formats that have one (sym2 to sym8, int2 to int4), or "
                          "export.targets=[merged]")


def rounded(weights: RunWeights) -> list[str]:
    """Return the names of the formats that GGUF holds up to a rounded offset."""
    return sorted({linear.format.name for linear in weights.linears.values() if not is_exact(linear.format)})
