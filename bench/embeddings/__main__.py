"""Train what the study of embeddings still wants, one trial at a time; it may be stopped and started again.

    python -m bench.embeddings --out FILE.jsonl
    python -m bench.embeddings --out FILE.jsonl --gsm8k RECORDS.jsonl --hours 8
    python -m bench.embeddings --out FILE.jsonl --gsm8k RECORDS.jsonl --summary

Finished trials are lines of --out; checkpoints are kept beside it. --summary trains nothing: it writes
bench/results/embeddings.json, with what fits common cards. Further arguments are overrides of the configuration.
"""

import sys
from collections.abc import Sequence
from functools import partial

from bench.embeddings.plan import following, setting
from bench.embeddings.summary import summarise
from bench.length.command import add_file_options, run, study_config, study_parser
from bench.length.study import work
from bench.length.trials import load
from qra_bo.config import make_spec
from qra_bo.memory.embeddings import WIDTHS


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("embeddings", __doc__)
    add_file_options(parser)
    options, overrides = parser.parse_known_args(arguments)
    texts = ("plays",) if options.gsm8k is None else ("plays", "gsm8k")

    def job() -> None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        configs = {setting(text, bits): study_config(text, options.gsm8k,
                                                     ["bits=[4]", "dtype=float32", f"embeddings={bits}", *overrides])
                   for text in texts for bits in WIDTHS}
        config = configs[setting("plays", 16)]
        if options.summary:
            summarise(texts, options.seeds, load(options.out), config, options.results)
            return
        work(partial(following, texts, options.seeds, make_spec(config).n_layers), options.out, configs,
             options.trials, options.hours)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
