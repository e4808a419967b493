"""Train what the study of embeddings still wants, one trial at a time; it may be stopped and started again.

    python -m bench.embeddings --out FILE.jsonl
    python -m bench.embeddings --out FILE.jsonl --gsm8k RECORDS.jsonl --hours 8
    python -m bench.embeddings --out FILE.jsonl --gsm8k RECORDS.jsonl --summary

Finished trials are lines of --out; checkpoints are kept beside it. --summary trains nothing: it writes
bench/results/embeddings.json, with what fits common cards. Further arguments are overrides of the configuration.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench.embeddings.plan import following, setting
from bench.embeddings.summary import summarise
from bench.length.__main__ import study_config
from bench.length.study import work
from bench.length.trials import load
from bench.report import RESULTS
from qra_bo.config import make_spec
from qra_bo.memory.embeddings import WIDTHS
from qra_bo.pipeline.build import prepare_worker_environment
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.study.signals import RunInterrupted
from qra_bo.utils.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.embeddings", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSONL file of the trials")
    parser.add_argument("--gsm8k", type=Path, help="JSONL file with GSM8K's training records; without it plays alone")
    parser.add_argument("--seeds", type=int, default=LEAST_SEEDS, help=f"unseen training seeds, at most {LEAST_SEEDS}")
    parser.add_argument("--trials", type=int, help="stop after so many")
    parser.add_argument("--hours", type=float, help="start none after so long")
    parser.add_argument("--summary", action="store_true", help="only write the results of what is finished")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options, overrides = parser.parse_known_args(arguments)
    if not 1 <= options.seeds <= LEAST_SEEDS:
        parser.error(f"--seeds takes 1 to {LEAST_SEEDS}; got {options.seeds}")
    texts = ("plays",) if options.gsm8k is None else ("plays", "gsm8k")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    prepare_worker_environment()
    try:
        configs = {setting(text, bits): study_config(text, options.gsm8k,
                                                     ["bits=[4]", f"embeddings={bits}", *overrides])
                   for text in texts for bits in WIDTHS}
        config = configs[setting("plays", 16)]
        if options.summary:
            summarise(texts, options.seeds, load(options.out), config, options.results)
            return 0
        work(partial(following, texts, options.seeds, make_spec(config).n_layers), options.out, configs,
             options.trials, options.hours)
    except (UserError, RunInterrupted) as stop:
        print(stop, file=sys.stderr)
        return stop.exit_status
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
