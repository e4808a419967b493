"""``export/bitsandbytes``: the mixed base of a search over 4 and 16 bits as plain transformers and vLLM load it."""

import tempfile
from pathlib import Path

import torch

from qra_bo.export.comparison import Loader, Reference, View, plain_model, with_adapter
from qra_bo.export.load import dense_base, dequantise_embeddings, stored_states
from qra_bo.export.merged import half, packing_device, save_model
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import read_manifest
from qra_bo.finetune.models.load import cast_parameters
from qra_bo.utils.errors import ModelError, OutputError

FOLDER = "export/bitsandbytes"
SERVABLE = ("nf4", "fp16")
"""Formats that bitsandbytes mixes in one model that plain transformers and vLLM load."""


def write(run: FinishedRun) -> list[Path]:
    """Write the base with the run's own codes; the adapter stays beside it.

    Raises:
        OutputError: If some layer is in another format than NF4 or 16 bits, or packed weights are damaged.
        ModelError: If bitsandbytes did not store the layers as asked.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # slow to import, for this target alone
    manifest, target = read_manifest(run.folder), run.folder / FOLDER
    others = sorted({r.format.name for r in manifest.modules.values()} - set(SERVABLE))
    if others:
        raise OutputError(f"plain transformers and vLLM load bitsandbytes models of 4 and 16 bits alone, and this run "
                          f"uses {', '.join(others)}; search with \"bits=[4,16]\", or load the run with qra_bo.load")
    dense = [name for name, r in manifest.modules.items() if r.format.name == "fp16"]
    own = {} if manifest.packed is None else stored_states(manifest, run.folder) or {}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=half(manifest), llm_int8_skip_modules=[*dense, "lm_head"])
    where = "cpu" if own else packing_device(manifest)  # the run's own codes replace those that are made here
    base, tokenizer = dense_base(manifest, run.folder, run.trust_remote_code)
    cast_parameters(base, getattr(torch, manifest.compute_dtype), manifest.modules)
    dequantise_embeddings(base, manifest, run.folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    # transformers quantises while it loads from a folder; that of temporary files is often small, or in memory
    with tempfile.TemporaryDirectory(prefix=".bitsandbytes-", dir=target.parent) as folder:
        save_model(base.to(half(manifest)), tokenizer, Path(folder))
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=half(manifest), device_map={"": where},
            trust_remote_code=run.trust_remote_code)
        for name in manifest.modules:
            kind = type(model.get_submodule(name)).__name__
            if kind != ("Linear" if name in dense else "Linear4bit"):
                raise ModelError(f"bitsandbytes made {name} a {kind}, not the run's own kind of layer; use qra_bo.load")
        for name in (own.keys() & manifest.modules.keys()) - set(dense):
            weight, state = model.get_submodule(name).weight, own[name]  # a Params4bit with double quantisation
            weight.data = state["codes"].view_as(weight.data).to(weight.device)
            outer = weight.quant_state
            outer.absmax = state["absmax"].to(weight.device)
            outer.state2.absmax = state["nested_absmax"].to(weight.device)
            outer.offset = state["offset"].to(weight.device)
        save_model(model, tokenizer, target)
    return sorted(p for p in target.iterdir() if p.is_file())


def _views(run: FinishedRun, reference: Reference) -> list[View]:
    # asked for fp32, transformers casts biases and leaves weights, which then do not multiply
    model = with_adapter(plain_model(run.folder / FOLDER, run.trust_remote_code, "auto"), run.adapter)
    return [View("bitsandbytes, with the adapter", reference.logits(model),
                 note="bitsandbytes multiplies by kernels of its own, in 16 bits")]


LOADER = Loader("transformers and peft", _views)
