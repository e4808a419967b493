"""Logits of a compressed_tensors export in plain transformers: ``python transformers.py EXPORT ADAPTER TOKENS OUTPUT``.

OUTPUT (.npz) holds ``base`` and ``logits`` (``n x v``, fp32), the latter with the adapter by PEFT, ``load_seconds`` and
``version``. Nothing but transformers, peft, compressed-tensors, torch and NumPy is imported.
"""

import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
# This file has the name of the package that it measures.


def main(export: str, adapter: str, tokens: str, output: str) -> None:
    import torch  # these after the mending of the path
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.from_numpy(np.load(tokens)).unsqueeze(0)
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        base = model(input_ids=ids, use_cache=False).logits[0].numpy()
        adapted = PeftModel.from_pretrained(model, adapter).eval()
        logits = adapted(input_ids=ids, use_cache=False).logits[0].numpy()
    version = " + ".join(f"{name} {metadata.version(name)}" for name in ("transformers", "compressed-tensors", "peft"))
    np.savez(output, base=base, logits=logits, load_seconds=seconds, version=version)


if __name__ == "__main__":
    main(*sys.argv[1:])
