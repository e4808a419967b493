"""The first hour on a GPU: everything that only a card can show, in parts that are sized for ten minutes each.

    python -m scripts.first_gpu_hour PART [PART ...] | all | table [--tiny] [--out FILE] [--work FOLDER]

Every part writes its rows to the results file as it goes. Parts that are done are skipped. The search alone is stopped
after eight minutes, and goes on where the last call stopped it (exit status 75: call again). ``table`` prints the
results as Markdown. ``--tiny`` runs every part with a tiny decoder, on a CPU too, which shows that the parts run and
measures nothing.
"""

import argparse
import os
import pkgutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from qra_bo.utils.device import expand_segments
from scripts.gpu_hour.results import RESULTS, ROOT, Results, UnfinishedError, table

PARTS = {
    "round-trip": ("Packing and unpacking against the CPU", "layers:round_trip"),
    "alternating": ("Allocated bytes over alternating trials", "trials:alternating"),
    "grid": ("Predicted against reserved bytes, expandable segments", "grid:grid"),
    "grid-plain": ("Predicted against reserved bytes, without expandable segments", "grid:grid"),
    "gptq": ("Time of GPTQ on one decoder layer", "layers:gptq"),
    "unpack": ("Time of unpacking one matrix", "layers:unpack"),
    "steps": ("Time of a training step", "steps:steps"),
    "repeats": ("The same trial twice", "trials:repeats"),
    "out-of-memory": ("Recovery from a lack of memory", "trials:out_of_memory"),
    "search": ("A whole search", "end_to_end:search"),
    "load": ("Loading the search's result", "end_to_end:load")}
"""Title and function of every part, in the order in which they run."""
TITLES = {name: title for name, (title, _) in PARTS.items()}
CONTINUE = 75
"""Exit status that asks for the same call again (EX_TEMPFAIL of sysexits.h)."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all", "table"], metavar="PART",
                        help=f"{', '.join(PARTS)}; all; table")
    parser.add_argument("--tiny", action="store_true", help="a tiny decoder, on a CPU too")
    parser.add_argument("--out", type=Path, help="results file; by default bench/results/first_gpu_hour.json, with "
                        "--tiny in the folder of --work")
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "first-gpu-hour",
                        help="folder of models and runs")
    args = parser.parse_args(arguments)
    path = args.out or (args.work / "tiny.json" if args.tiny else RESULTS)
    if args.parts == ["table"]:
        print(table(path, TITLES))
        return 0
    wanted = list(PARTS) if "all" in args.parts else [part for part in args.parts if part != "table"]
    if len(wanted) > 1 and {"grid", "grid-plain"} <= set(wanted) and not args.tiny:
        parser.error("grid and grid-plain need a process each, as the allocator is set up once: call the parts one by "
                     "one, as make first-gpu-hour does")
    if "grid-plain" in wanted and not args.tiny:
        os.environ.update(PYTORCH_ALLOC_CONF="expandable_segments:False",
                          PYTORCH_CUDA_ALLOC_CONF="expandable_segments:False")
    expand_segments()  # before torch is imported; leaves settings alone
    return run(wanted, args.tiny, path, args.work)


def run(wanted: Sequence[str], tiny: bool, path: Path, work: Path) -> int:
    """Run the parts that are not done; return the exit status."""
    import torch

    from scripts.gpu_hour.stage import Stage

    if not torch.cuda.is_available() and not tiny:
        print("the parts need a GPU, and torch sees none; --tiny runs them on a CPU with a tiny decoder, which "
              "measures nothing", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    results = Results(path, {"card": card, "torch": torch.__version__, "tiny": tiny})
    stage, status = Stage(torch.device("cpu" if card is None else "cuda"), tiny, work), 0
    work.mkdir(parents=True, exist_ok=True)
    for part in wanted:
        if results.is_done(part):
            print(f"{part}: done before", flush=True)
            continue
        begun = time.monotonic()
        results.begin(part)
        problem = None
        try:
            for row in pkgutil.resolve_name(f"scripts.gpu_hour.{PARTS[part][1]}")(stage):
                results.add(part, row)
                print(f"{part}: {row}", flush=True)
        except UnfinishedError as error:
            problem, status = str(error), CONTINUE
        except Exception as error:  # the other parts are worth their time whatever happens to this one
            problem, status = f"{type(error).__name__}: {error}", 1
        results.end(part, time.monotonic() - begun, problem)
        print(f"{part}: {problem or 'done'} ({time.monotonic() - begun:.0f} s)", flush=True)
        stage.release()
    return status


if __name__ == "__main__":
    sys.exit(main())
