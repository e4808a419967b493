"""``export/merged``: the model with its adapter merged in, in 16 bits, as any tool loads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from qra_bo.export.comparison import Loader, Reference, View, plain_model
from qra_bo.export.load import dense_base, dequantise_embeddings
from qra_bo.export.run import MERGED_BASE, FinishedRun
from qra_bo.export.weights import linears_of, save_generation
from qra_bo.finetune.manifest import Manifest, read_manifest
from qra_bo.finetune.models.load import cast_parameters
from qra_bo.utils.files import follow_umask

FOLDER = "export/merged"
DEQUANTISED, ORIGINAL = MERGED_BASE, "original"
MEANING = {
    DEQUANTISED: "dequant(Q) + scale B A, the base that the adapter was trained on: the run's own function, up to "
                 "rounding to 16 bits",
    ORIGINAL: "W16 + scale B A: the adapter then also corrects quantisation errors that are not there, so evaluate the "
              "model before use"}
"""Bases that an adapter may be merged into."""


def write(run: FinishedRun) -> list[Path]:
    """Write the model merged into ``run.merged_base``, with a card.

    Raises:
        ModelError: If the base model is not at hand or another.
        OutputError: If the run lacks a file, or its adapter is not the manifest's.
    """
    base, target = run.merged_base, run.folder / FOLDER
    model, tokenizer = merged_model(run, read_manifest(run.folder), base)
    save_model(model, tokenizer, target)
    other = ORIGINAL if base == DEQUANTISED else DEQUANTISED
    (target / "README.md").write_text(
        f"# {run.best['model']}, adapter merged into the {base} base\n\n{MEANING[base]}.\n\nThe other choice is "
        f"the {other} base: {MEANING[other]}.\n\n`task=export out=RUN export.merged_base={base} export.check=true` "
        "measures the difference of the logits of both to the run's own model.\n", encoding="utf-8")
    return sorted(p for p in target.iterdir() if p.is_file())


def merged_model(run: FinishedRun, manifest: Manifest, base: str) -> tuple[Any, Any]:
    """The merged model, on the CPU in 16 bits, and its tokenizer."""
    model, tokenizer = dense_base(manifest, run.folder, run.trust_remote_code)
    with torch.no_grad():
        for linear, weights in linears_of(model, manifest, run):
            if base == DEQUANTISED:
                linear.weight.data = weights.merged(half(manifest))
            elif weights.lora is not None:
                # rounded at once: a whole model in fp32 would take twice its memory
                merged = linear.weight.to(half(manifest)).float() + weights.lora.update
                linear.weight.data = merged.to(half(manifest))
        if base == DEQUANTISED:
            dequantise_embeddings(model, manifest, run.folder)
    cast_parameters(model, half(manifest))
    return model.eval(), tokenizer


def half(manifest: Manifest) -> torch.dtype:
    """The 16-bit type nearest to the run's compute type."""
    return torch.float16 if manifest.compute_dtype == "float16" else torch.bfloat16


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model, which loses its defaults for generation, with these and its tokenizer."""
    settings, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(str(folder), safe_serialization=True)
    save_generation(settings, folder)
    tokenizer.save_pretrained(str(folder))
    follow_umask(*folder.glob("*.safetensors"))


def _views(run: FinishedRun, reference: Reference) -> Iterator[View]:
    written = plain_model(run.folder / FOLDER, run.trust_remote_code)
    yield View("merged, as written", reference.logits(written), note="the one below that export.merged_base chose")
    for base, note in MEANING.items():
        model = merged_model(run, read_manifest(run.folder), base)[0].float()
        yield View(f"merged into the {base} base", reference.logits(model), note=note)


LOADER = Loader("transformers", _views)
