"""Train what the length study still wants, one trial at a time; it may be stopped and started again at any moment.

    python -m bench.length
    python -m bench.length --gsm8k FILE.jsonl --hours 8
    python -m bench.length --summary

Finished trials are in trials.jsonl of --out; of a trial that was interrupted a checkpoint is kept there. Without
--gsm8k the plays are trained alone.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.length.command import run, study_config, study_parser
from bench.length.finds import drawn_rows
from bench.length.plan import make_plan, wanted
from bench.length.study import work
from bench.length.summary import publish
from bench.length.trials import NAME
from bench.pages.blocks import DOCS
from bench.report import RESULTS

FOLDER = RESULTS / "length"
FIGURE = DOCS / "figures" / "length.png"
RECORD_AT = (24, 72, 120, 240, 480)
"""Steps after which a trial's validation loss is recorded: its curve."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("length", __doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of trials, table and figure")
    options = parser.parse_args(arguments)
    tasks = ("plays",) if options.gsm8k is None else ("plays", "gsm8k")

    def job() -> None:
        if options.summary:
            config = study_config("plays", None)
            publish(options.out, config, make_plan(), FIGURE if options.out == FOLDER else None,
                    drawn_rows(config.train.step_tokens))
            return
        options.out.mkdir(parents=True, exist_ok=True)
        work(lambda found: wanted(make_plan(), found, tasks), options.out / NAME,
             {task: study_config(task, options.gsm8k) for task in tasks}, options.trials, options.hours,
             record_at=RECORD_AT)

    return run(job)


if __name__ == "__main__":
    sys.exit(main())
