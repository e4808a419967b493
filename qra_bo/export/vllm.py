"""``export/serve_vllm.txt``: the commands that serve a run by vLLM, its own mix where vLLM reads the formats.

vLLM reads mixed bits from compressed-tensors, module by module, and fuses the projections of one input, which must be
of one format. Of LoRA it takes PEFT's adapters. Releases that ignore rank patterns take the rank and the scale of the
configuration for every module: the adapter of one rank is right in all of them.
"""

import shlex
from pathlib import Path

from qra_bo.export import compressed_tensors, merged, uniform_rank
from qra_bo.export.record import current_exports
from qra_bo.export.run import FinishedRun, export_command
from qra_bo.memory.formats import parse_format
from qra_bo.memory.serving import CONSUMERS
from qra_bo.report.next_steps import server_rank
from qra_bo.space.decoder import fused_of

FILE = "export/serve_vllm.txt"
_FILES = ["compressed_tensors", "uniform_rank"]
"""Targets that the run's own mix is served from."""


def write(run: FinishedRun) -> list[Path]:
    """Write the commands; returns the file."""
    reason = obstacle({name: str(entry["name"]) for name, entry in run.manifest["modules"].items()})
    folder = run.folder.resolve()
    lines = _own_mix(run) if reason is None else [
        f"# {reason}: this serves a copy in 16 bits with the adapter merged in.",
        "# A search whose mix vLLM serves: serve=vllm.",
        export_command(run, ["merged"]), f"vllm serve {shlex.quote(str(folder / merged.FOLDER))}"]
    path = run.folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [path]


def obstacle(formats: dict[str, str]) -> str | None:
    """Return why vLLM does not load a mix of formats by module; ``None`` where it does."""
    others = sorted({name for name in formats.values() if not CONSUMERS["vllm"].loads(parse_format(name))})
    if others:
        return f"vLLM has no {', '.join(others)}"
    together: dict[tuple[str, str], set[str]] = {}
    for module, name in formats.items():
        parent, _, leaf = module.rpartition(".")
        together.setdefault((parent, fused_of(leaf)), set()).add(name)
    unlike = [fused for (_, fused), names in together.items() if len(names) > 1]
    return f"vLLM fuses projections that have different formats here ({', '.join(sorted(set(unlike)))})" \
        if unlike else None


def _own_mix(run: FinishedRun) -> list[str]:
    widths = sorted({int(entry["bits"]) for entry in run.manifest["modules"].values()} - {16})
    where = "on a GPU and on a CPU" if set(widths) <= {4} else "on a GPU" if set(widths) <= {4, 8} else \
        "on CUDA with its Humming kernels installed"
    return [f"# The run's own mix ({', '.join(map(str, widths)) or '16'} bits), {where}.",
            "# The adapter has one rank, padded with zeros.",
            export_command(run, _FILES),
            _serve(run),
            "# Requests name the model qra_bo; without an adapter it is the folder's path."]


def _serve(run: FinishedRun) -> str:
    folder = run.folder.resolve()
    return shlex.join(["vllm", "serve", str(folder / compressed_tensors.FOLDER), "--enable-lora", "--max-lora-rank",
                       str(server_rank(run.best["ranks"])), "--lora-modules",
                       f"qra_bo={folder / uniform_rank.FOLDER}"])


def start(run: FinishedRun) -> str | None:
    """Return the command that serves the run's own mix; ``None`` where its files are not there."""
    there = set(_FILES) <= current_exports(run) and all(
        (run.folder / part).is_dir() for part in (compressed_tensors.FOLDER, uniform_rank.FOLDER))
    reason = obstacle({name: str(entry["name"]) for name, entry in run.manifest["modules"].items()})
    return _serve(run) if there and reason is None else None
