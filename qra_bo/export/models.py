"""Exports that hold weights of the base: packed as the run left them, merged in 16 bits, or for bitsandbytes."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qra_bo.export.load import dense_base, load, stored_states
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import MANIFEST, PACKED, Manifest, flatten, read_manifest, tensors_digest
from qra_bo.finetune.quantization.base import State, packed
from qra_bo.utils.errors import ModelError, OutputError
from qra_bo.utils.files import write_json

MERGED, BITSANDBYTES = "export/merged", "export/bitsandbytes"
DEQUANTISED, ORIGINAL = "dequantised", "original"
BASES = (DEQUANTISED, ORIGINAL)
"""What an adapter may be merged into: the base that it was trained on, unpacked to 16 bits, or the 16-bit original."""
SERVABLE = ("nf4", "fp16")
"""Formats that bitsandbytes mixes in one model that plain transformers and vLLM load."""


def write_packed(run: FinishedRun) -> list[Path]:
    """Keep the packed weights beside the manifest: loading then neither quantises nor depends on library versions.

    Raises:
        OutputError: If the packed weights can't be had again as they were.
        ModelError: If the base model is not at hand or another.
    """
    folder, manifest = run.folder, read_manifest(run.folder)
    if manifest.packed is None:
        model, _ = load(folder, manifest.packed_on, adapter=False, trust_remote_code=run.trust_remote_code)
        layers = {name: packed(model.get_submodule(name)) for name in manifest.modules}
        states = {name: layer.packed_state() for name, layer in layers.items()}
        wrong = _unlike(manifest, states)
        if wrong:
            raise OutputError(f"the packed weights of {wrong[0]} do not have the checksum of the manifest in {folder}; "
                              "nothing was written")
        save_file({key: tensor.cpu() for key, tensor in flatten(states).items()}, folder / PACKED)
        write_json(folder / MANIFEST, replace(manifest, packed=PACKED).to_json())
    return [folder / PACKED, folder / MANIFEST]


def write_merged(run: FinishedRun, base: str) -> list[Path]:
    """The model with its adapter merged into ``base`` (of ``BASES``), in 16 bits, as any tool loads it.

    Raises:
        ModelError: If the base model is not at hand or another.
        OutputError: If the run lacks a file.
    """
    manifest, target = read_manifest(run.folder), run.folder / MERGED
    model, tokenizer = merged_model(run, manifest, base)
    unmarked(model).save_pretrained(str(target), safe_serialization=True)
    tokenizer.save_pretrained(str(target))
    card = target / "README.md"
    other = ORIGINAL if base == DEQUANTISED else DEQUANTISED
    card.write_text(
        f"# {run.best['model']}, adapter merged into the {base} base\n\n{MEANING[base]}\n\nThe other choice is the "
        f"{other} base: {MEANING[other]}\n\n`task=export out=RUN export.merged_base={base} export.check=true` measures "
        "how far the logits of both are from the run's own model.\n", encoding="utf-8")
    return sorted(p for p in target.iterdir() if p.is_file())


MEANING = {
    DEQUANTISED: "dequant(Q) + scale B A: the quantised base that the adapter was trained on, unpacked, plus the "
                 "adapter. It computes what the run measured, up to rounding to 16 bits; it takes 16 bits a weight.",
    ORIGINAL: "W16 + scale B A: the original 16-bit base plus the adapter, which then also corrects quantisation "
              "errors that are not there. Its loss is not the one that the run measured: evaluate it before use.",
}


def merged_model(run: FinishedRun, manifest: Manifest, base: str) -> tuple[Any, Any]:
    """The merged model, on the CPU in 16 bits, and its tokenizer."""
    trust = run.trust_remote_code
    model, tokenizer = dense_base(manifest, run.folder, trust)
    model.to(half(manifest))
    source = load(run.folder, _device(manifest), adapter=False, trust_remote_code=trust)[0] if base == DEQUANTISED \
        else None
    updates = dict(adapter_updates(run))
    with torch.no_grad():
        for name in manifest.modules:
            linear = model.get_submodule(name)
            weight = linear.weight if source is None else packed(source.get_submodule(name)).unpack().cpu()
            merged = weight.float() + updates[name] if name in updates else weight.float()
            linear.weight.copy_(merged)
    return model.eval(), tokenizer


def adapter_updates(run: FinishedRun) -> Iterator[tuple[str, torch.Tensor]]:
    """Every adapted linear and its update ``scale B A``, ``out x in`` in float32.

    Raises:
        OutputError: If the adapter's weights are missing.
    """
    path = run.folder / "adapter" / "adapter_model.safetensors"
    if not path.is_file():
        raise OutputError(f"{path} is missing; the run has no adapter to merge")
    tensors = load_file(path)
    for name, rank in run.module_ranks.items():
        down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"].float() for x in "AB")
        if down.shape[0] != rank:
            raise OutputError(f"{path}: {name} has rank {down.shape[0]}; adapter_config.json states {rank}")
        yield name, float(run.best["alpha_over_rank"]) * (up @ down)


def write_bitsandbytes(run: FinishedRun) -> list[Path]:
    """The mixed base of a search over 4 and 16 bits as transformers and vLLM load it; the adapter stays beside it.

    Raises:
        OutputError: If some layer is in another format than NF4 or 16 bits.
        ModelError: If bitsandbytes did not store the layers as asked.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    manifest, target = read_manifest(run.folder), run.folder / BITSANDBYTES
    others = sorted({r.format.name for r in manifest.modules.values()} - set(SERVABLE))
    if others:
        raise OutputError(f"plain transformers and vLLM load bitsandbytes models of 4 and 16 bits alone, and this run "
                          f"uses {', '.join(others)}; search with \"bits=[4,16]\", or load the run with qra_bo.load")
    dense = [name for name, r in manifest.modules.items() if r.format.name == "fp16"]
    own = {} if manifest.packed is None else _own_states(manifest, run.folder, dense)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=half(manifest), llm_int8_skip_modules=[*dense, "lm_head"])
    with _sixteen_bits(run, manifest) as (folder, tokenizer):
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=half(manifest),
                                                     device_map={"": _device(manifest)},
                                                     trust_remote_code=run.trust_remote_code)
        for name in manifest.modules:
            kind = type(model.get_submodule(name)).__name__
            if kind != ("Linear" if name in dense else "Linear4bit"):
                raise ModelError(f"bitsandbytes made {name} a {kind}, not what the run has there; use qra_bo.load")
        for name, state in own.items():
            _put_nf4(model.get_submodule(name).weight, state)
        model.save_pretrained(str(target), safe_serialization=True)
        tokenizer.save_pretrained(str(target))
    return sorted(p for p in target.iterdir() if p.is_file())


def _unlike(manifest: Manifest, states: Mapping[str, State]) -> list[str]:
    """Linears whose packed tensors do not have the checksum of the manifest, or are missing."""
    return [name for name, record in manifest.modules.items() if tensors_digest(states.get(name, {})) != record.sha256]


def _own_states(manifest: Manifest, folder: Path, dense: Sequence[str]) -> dict[str, State]:
    """What the run packed, which need not be what bitsandbytes chooses, of all linears but the ``dense`` ones.

    Raises:
        OutputError: If its file is missing or damaged.
    """
    stored = stored_states(manifest, folder) or {}
    wrong = _unlike(manifest, stored)
    if wrong:
        raise OutputError(f"the packed weights of {wrong[0]} do not have the checksum of the manifest in {folder}: "
                          f"{manifest.packed} is damaged or belongs to another run")
    return {name: state for name, state in stored.items() if name not in dense}


def _put_nf4(weight: Any, state: State) -> None:
    """Replace what a ``Params4bit`` with double quantisation holds."""
    weight.data = state["codes"].view_as(weight.data).to(weight.device)
    outer = weight.quant_state
    outer.absmax = state["absmax"].to(weight.device)
    outer.state2.absmax = state["nested_absmax"].to(weight.device)
    outer.offset = state["offset"].to(weight.device)


@contextmanager
def _sixteen_bits(run: FinishedRun, manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """A folder that transformers loads the 16-bit base from, wherever it comes from; gone afterwards."""
    model, tokenizer = dense_base(manifest, run.folder, run.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as folder:
        unmarked(model).to(half(manifest)).save_pretrained(folder, safe_serialization=True)
        yield folder, tokenizer


def unmarked(model: Any) -> Any:
    """The same model without the mark that transformers leaves on one read from a GGUF file: its weights are dense by
    now, and the mark keeps it from being saved."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None
        del model.config.quantization_config
    return model


def half(manifest: Manifest) -> torch.dtype:
    """The 16-bit type nearest to what the run computed in."""
    return torch.float16 if manifest.compute_dtype == "float16" else torch.bfloat16


def _device(manifest: Manifest) -> str:
    return "cuda" if manifest.packed_on == "cuda" and torch.cuda.is_available() else "cpu"

