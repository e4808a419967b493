"""Host memory and time of loading, packing, profiling and one trial of a 1.1B decoder on a CPU.

    python -m bench.load [KEY=VALUE ...] [--layers 22] [--profile] [--label after]

The weights are random, in bf16, in shards of at most 500 MB; the shape is TinyLlama's. One process loads the model,
packs every layer in every format, measures the sensitivity profile (``--profile``), and trains one trial. The kernel
keeps its largest resident size; what it holds after its imports is subtracted. Mapped files count as resident where
they were read, although the system may drop them. Rows of other labels in the results file stay.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.memory.real import begin_peak, resident_bytes
from bench.report import RESULTS, Target, publish

SHARD = "500MB"
TINYLLAMA = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
             "vocab_size": 32000}
LARGEST = 1.3
"""Largest peak, as a multiple of the bank, the largest shard and what a trial holds beside its weights."""
SETTINGS = ["data=tiny", "device=cpu", "dtype=bfloat16", "train.batch=1", "train.length=128", "eval.sequences=1",
            "data.calibration=1", "data.max_records=64", "quantizer.tokens=128", "quantizer.rounding=rtn"]
COLUMNS = ("label", "phase", "seconds", "cpu_seconds", "peak_bytes", "share")


def write_model(folder: Path, layers: int) -> None:
    """Save a random decoder in bf16 shards."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from qra_bo.finetune.data.load import byte_tokenizer
    torch.set_default_dtype(torch.bfloat16)
    torch.default_generator.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINYLLAMA, num_hidden_layers=layers))
    model.save_pretrained(folder, max_shard_size=SHARD)
    byte_tokenizer().save_pretrained(folder)


def measure(model: Path, profile: bool, overrides: list[str], out: Path) -> None:
    """Load, pack, profile and run one trial in this process; write phases, peaks and seconds as JSON to ``out``."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    import qra_bo.pipeline.finetune_oracle as pipeline
    from qra_bo.config import load_config, make_space, make_spec
    from qra_bo.memory.formats import metadata_bytes, weight_bytes
    from qra_bo.pipeline.oracles import make_oracle
    from qra_bo.pipeline.pricing import bank_formats, make_memory
    from qra_bo.space import Allocation
    from qra_bo.trials import TrialSpec
    torch.set_num_threads(1)
    vars(pipeline)["keeps_dense"] = lambda *_: False  # no unpacked copies, for which memory has to be plentiful
    config = load_config(["+model=hf", f"model.path={model}", *SETTINGS, *overrides])
    spec = make_spec(config)
    space = make_space(config, spec)
    parts = make_memory(config, spec, "cpu").breakdown(
        space, allocation := Allocation(tuple(space.formats[i % len(space.formats)].name for i in range(space.n_units)),
                                        (8,) * space.n_units))
    bank = sum(weight_bytes(f, m.out_features, m.in_features) + metadata_bytes(f, m.out_features, m.in_features)
               for f in bank_formats(config, space) for m in spec.linears) + parts["unquantised"]
    beside = sum(size for part, size in parts.items() if part not in ("weights", "quant_metadata", "unquantised"))
    shard = max(file.stat().st_size for file in model.glob("*.safetensors"))
    before, rows = begin_peak(), []

    def phase(name: str, begun: tuple[float, float]) -> tuple[float, float]:
        now = time.monotonic(), time.process_time()
        peak = resident_bytes("VmHWM") - before
        rows.append({"phase": name, "seconds": now[0] - begun[0], "cpu_seconds": now[1] - begun[1],
                     "peak_bytes": peak, "share": peak / (bank + shard + beside)})
        print(rows[-1], flush=True)
        return time.monotonic(), time.process_time()

    clock = time.monotonic(), time.process_time()
    oracle: Any = make_oracle(config.to_dict(), str(out.parent))
    clock = phase("load", clock)
    oracle.bank.build()
    clock = phase("pack", clock)
    if profile:
        oracle.profile(lambda *_: None)
        clock = phase("profile", clock)
    oracle.evaluate(TrialSpec(allocation, 2, 2, 1, config.adapter.lr), lambda *_: None)
    phase("trial", clock)
    out.write_text(json.dumps([{**row, "bank_bytes": bank, "shard_bytes": shard, "trial_bytes": beside,
                                "layers": spec.n_layers, "settings": [*SETTINGS, *overrides]} for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--profile", action="store_true", help="measure the sensitivity profile too")
    parser.add_argument("--label", default="after", help="name of this measurement in the results")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure is not None:
        measure(args.model, args.profile, args.overrides, args.measure)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, found = Path(temporary) / "model", Path(temporary) / "found.json"
        write_model(folder, args.layers)
        subprocess.run([sys.executable, "-m", "bench.load", *args.overrides, "--model", str(folder), "--measure",
                        str(found), *(["--profile"] if args.profile else [])], check=True,
                       env={**os.environ, "QRA_BO_CACHE": str(Path(temporary) / "cache")})
        rows = [{"label": args.label, **row} for row in json.loads(found.read_text())]
    path = args.out / "load.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [row for row in kept if row["label"] != args.label] + rows
    shares = {row["label"]: row["share"] for row in rows}  # of the last phase, which is the peak of all
    targets = [Target(f"peak of {label}, over bank + largest shard + trial", f"at most {LARGEST}", share,
                      share <= LARGEST) for label, share in shares.items()]
    publish("load", targets, rows, COLUMNS, threads=1, folder=args.out)


if __name__ == "__main__":
    main()
