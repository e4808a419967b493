"""``export/bitsandbytes``: the mixed base of a search over 4 and 16 bits as plain transformers and vLLM load it."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from qra_bo.export.comparison import Loader, Reference, View, plain_model, with_adapter
from qra_bo.export.load import dense_base, dequantise_embeddings, packed_linears
from qra_bo.export.merged import half, save_model
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import Manifest, read_manifest
from qra_bo.finetune.quantization.base import HALF, State
from qra_bo.utils.errors import ModelError, OutputError

FOLDER = "export/bitsandbytes"
SERVABLE = ("nf4", "fp16")
"""Formats that bitsandbytes mixes in one model that plain transformers and vLLM load."""


def write(run: FinishedRun) -> list[Path]:
    """Write the base with the run's own codes and 16-bit weights; the adapter stays beside it.

    Raises:
        OutputError: If some layer is in another format than NF4 or 16 bits, the 16-bit layers are of several types, or
            packed weights are damaged.
        ModelError: If the base is not the one that the run quantised, or bitsandbytes did not store the layers as
            asked.
        DeviceError: If the run packed its weights on CUDA, kept none, and there is no CUDA here.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # slow to import, for this target alone
    manifest, target = read_manifest(run.folder), run.folder / FOLDER
    others = sorted({r.format.name for r in manifest.modules.values()} - set(SERVABLE))
    if others:
        raise OutputError(f"plain transformers and vLLM load bitsandbytes models of 4 and 16 bits alone, and this run "
                          f"uses {', '.join(others)}; search with \"bits=[4,16]\", or load the run with qra_bo.load")
    dense = [name for name, r in manifest.modules.items() if r.format.name == "fp16"]
    base, tokenizer = dense_base(manifest, run.folder, run.trust_remote_code)
    codes: dict[str, State] = {}
    for name, linear, state in packed_linears(base, manifest, run.folder):
        if name in dense:  # a run in float32 rounds weights of a file in float32
            linear.weight.data = state["codes"].to(linear.weight.device)
        else:
            codes[name] = {key: tensor.cpu() for key, tensor in state.items()}
    dtype = _saved_type(base, manifest, dense)
    dequantise_embeddings(base, manifest, run.folder)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=[*dense, "lm_head"])
    target.parent.mkdir(parents=True, exist_ok=True)
    # transformers quantises while it loads from a folder; that of temporary files is often small, or in memory
    with tempfile.TemporaryDirectory(prefix=".bitsandbytes-", dir=target.parent) as folder:
        save_model(base.to(dtype), tokenizer, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(  # on the CPU: the run's codes replace those that are made here
            folder, quantization_config=config, dtype=dtype, device_map={"": "cpu"},
            trust_remote_code=run.trust_remote_code)
        for name in manifest.modules:
            kind = type(model.get_submodule(name)).__name__
            if kind != ("Linear" if name in dense else "Linear4bit"):
                raise ModelError(f"bitsandbytes made {name} a {kind}, not the run's own kind of layer; use qra_bo.load")
        for name, state in codes.items():
            weight = model.get_submodule(name).weight  # a Params4bit with double quantisation
            weight.data = state["codes"].view_as(weight.data)
            outer = weight.quant_state
            outer.absmax = state["absmax"]
            outer.state2.absmax = state["nested_absmax"]
            outer.offset = state["offset"]
        save_model(model, tokenizer, target)
    return sorted(p for p in target.iterdir() if p.is_file())


def _saved_type(base: Any, manifest: Manifest, dense: list[str]) -> torch.dtype:
    """Return the type in which 16-bit layers, embeddings, norms and biases are saved.

    It is the run's compute type. Of a run in float32 it is that of the layers ``dense``, which have the run's 16 bits
    in ``base``, or of the linears of the file.

    Raises:
        OutputError: If these are of several types.
    """
    if manifest.compute_dtype != "float32":
        return half(manifest)
    kinds = {base.get_submodule(name).weight.dtype for name in dense or manifest.modules} & set(HALF)
    if len(kinds) > 1:
        raise OutputError("the export bitsandbytes saves a model in one type, and the layers of this run in float32 "
                          "are in bfloat16 and in float16; load the run with qra_bo.load, or train it with "
                          "dtype=bfloat16")
    return kinds.pop() if kinds else half(manifest)


def _views(run: FinishedRun, reference: Reference) -> list[View]:
    # asked for fp32, transformers casts biases and leaves weights, which then do not multiply
    model = with_adapter(plain_model(run.folder / FOLDER, run.trust_remote_code, "auto"), run.adapter)
    return [View("bitsandbytes, with the adapter", reference.logits(model),
                 note="bitsandbytes multiplies by kernels of its own, in 16 bits")]


LOADER = Loader("transformers and peft", _views)
