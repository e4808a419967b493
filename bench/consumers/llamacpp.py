"""Logits of a GGUF export in llama.cpp, in an environment without qra_bo.

    pip install llama-cpp-py-sync numpy
    python bench/consumers/llamacpp.py RUN/gguf RUN/adapter TOKENS.npy OUT.npz

The adapter that llama.cpp reads is ``gguf/adapter.gguf``; PEFT's folder is not used. OUT holds logits (n x vocabulary,
fp32): ``logits`` of ``base.gguf`` with the adapter, as a server computes them, and ``logits_NAME`` of every other model
of the folder (``base-f32`` with the adapter, and keys and values in fp32); ``load_seconds`` and ``bytes`` of what a
server loads, and ``version``.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from types import ModuleType

import numpy as np


def loader() -> ModuleType:
    """The module of the exporter that talks to llama.cpp, run as a file: it imports nothing of its package."""
    path = Path(__file__).resolve().parents[2] / "qra_bo" / "export" / "llamacpp.py"
    spec = importlib.util.spec_from_file_location("llamacpp_of_the_exporter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("export", "adapter", "tokens", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    llamacpp, ids, adapter = loader(), np.load(given.tokens).tolist(), given.export / "adapter.gguf"
    found = {}
    for path in sorted(given.export.glob("*.gguf")):
        if path == adapter:
            continue
        start = time.perf_counter()
        lora = None if path.stem.startswith("merged") else adapter
        with llamacpp.LlamaCpp(path, lora, length=len(ids), exact=path.stem == "base-f32",
                               threads=given.threads) as model:
            seconds = time.perf_counter() - start
            logits = model.logits(ids)
        if path.stem == "base":
            found |= {"logits": logits, "load_seconds": np.float64(seconds), "version": np.str_(llamacpp.version()),
                      "bytes": np.int64(path.stat().st_size + adapter.stat().st_size)}
        else:
            found[f"logits_{path.stem}"] = logits
    np.savez(given.out, **found)


if __name__ == "__main__":
    main()
