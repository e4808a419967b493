"""Logits of an MLX export by mlx-lm alone: ``python mlx.py EXPORT ADAPTER TOKENS.npy OUTPUT.npz``.

EXPORT is the folder ``mlx`` of a run, ADAPTER the folder of its adapter in it or ``-``, TOKENS ``n`` integers. OUTPUT
holds ``logits`` (``n x v``, fp32, products in fp32), ``served`` (those of the first ``SERVED_TOKENS`` with products in
the file's own fp16, which take seconds a token on a CPU), ``load_seconds`` and ``version``. Nothing but mlx, mlx-lm and
NumPy is imported.
"""

import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
# This file has the name of the package that it measures.
SERVED_TOKENS = 64


def main(export: str, adapter: str, tokens: str, output: str) -> None:
    import mlx.core as mx  # after the mending of the path
    from mlx_lm.utils import load_adapters, load_model

    ids = mx.array(np.load(tokens).reshape(1, -1).astype(np.int32))
    start = time.perf_counter()
    model, _ = load_model(Path(export))
    if adapter != "-":
        load_adapters(model, adapter)
    seconds = time.perf_counter() - start

    def logits(some: mx.array) -> np.ndarray[Any, Any]:
        return np.array(model(some)[0].astype(mx.float32))

    model.eval()
    served = logits(ids[:, :SERVED_TOKENS])
    model.set_dtype(mx.float32)
    np.savez(output, logits=logits(ids), served=served, load_seconds=seconds, version=metadata.version("mlx-lm"))


if __name__ == "__main__":
    main(*sys.argv[1:])
