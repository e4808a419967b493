"""Measure what the study of levers still wants, one trial at a time; it may be stopped and started again.

    python -m bench.levers
    python -m bench.levers --tasks plays,gsm8k --gsm8k RECORDS.jsonl --hours 1
    python -m bench.levers --only "weighted initialisation" --steps 24,240
    python -m bench.levers --tasks plays,gsm8k --summary

Profiles and finished trials are kept in --out, trials as lines of trials.jsonl; those of another machine belong into a
folder there, with the profiles copied. --summary trains nothing: it writes bench/results/levers.json. Further arguments
are overrides of the configuration.
"""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from bench.length.command import add_folders, add_tasks, run, study_parser, tasks_of
from bench.length.plan import FORMATS
from bench.length.study import Study, work
from bench.length.trials import NAME, Found, PlannedTrial
from bench.levers.plan import LENGTHS, LEVERS, PLAIN, SCHEDULE, START, setting, sources_of, wanted
from bench.levers.predicted import (
    PROFILED,
    Predictions,
    joined,
    load_profile,
    load_profiles,
    predictions_of,
    profile_path,
    save_profile,
    trial_config,
)
from bench.levers.summary import summarise
from bench.report import RESULTS
from qra_bo.config import make_spec
from qra_bo.sensitivity.io import profile_from_json
from qra_bo.space import make_units
from qra_bo.utils.errors import WorkerError

FOLDER = RESULTS / "levers"
CHANGES = {START: "bench.levers.worker:start", SCHEDULE: "bench.levers.worker:schedule"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = study_parser("levers", __doc__)
    add_tasks(parser)
    parser.add_argument("--steps", default=str(LENGTHS[0]), help=f"of {','.join(map(str, LENGTHS))}")
    parser.add_argument("--only", default="", help="train the levers whose names contain this")
    add_folders(parser, FOLDER)
    options, overrides = parser.parse_known_args(arguments)
    path: Path = options.out / NAME
    texts, lengths = tasks_of(parser, options), tuple(map(int, options.steps.split(",")))
    levers = [lever for lever in LEVERS if options.only in lever.name]
    if unknown := sorted(set(lengths) - set(LENGTHS)):
        parser.error(f"--steps takes {' and '.join(map(str, LENGTHS))}; got {', '.join(map(str, unknown))}")
    if not levers:
        parser.error(f"no lever's name contains {options.only!r}: {'; '.join(lever.name for lever in LEVERS)}")

    def job() -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.summary:
            summarise(texts, trial_config("plays", None, overrides), options.out, options.results)
            return
        configs = {text: trial_config(text, options.gsm8k, overrides) for text in texts}
        sources = sources_of(levers)
        predictions: dict[tuple[str, int], Predictions] = {}

        def profile(study: Study) -> None:
            for text, config in configs.items():
                measure_profiles(study, options.out, text, {source.granularity for source in sources})
                for steps in lengths:
                    predictions[text, steps] = predictions_of(sources, load_profiles(options.out, text), config, steps)

        modules = len(make_units(make_spec(configs[texts[0]]), "module"))

        def following(found: Found) -> tuple[PlannedTrial, str] | None:
            return next((trial for steps in lengths for text in texts for trial in
                         wanted(text, steps, levers, predictions[text, steps], modules, found)), None)

        work(following, path, {setting(text, change): config for text, config in configs.items()
                               for change in (PLAIN, *CHANGES)}, options.trials, options.hours,
             changed={setting(text, change): function for text in texts for change, function in CHANGES.items()},
             first=profile)

    return run(job)


def measure_profiles(study: Study, folder: Path, text: str, wanted: Collection[str]) -> None:
    """Measure and save the profiles of granularities that are missing, or their missing formats.

    Raises:
        WorkerError: If formats that were measured later took other sequences.
    """
    for granularity, bits in PROFILED.items():
        if granularity not in wanted:
            continue
        path = profile_path(folder, text, granularity)
        known = load_profile(path) if path.exists() else None
        formats = [FORMATS[b] for b in bits if known is None or FORMATS[b] not in known[0].formats]
        if not formats:
            continue
        print(f"profile by {granularity} in {', '.join(formats)}", flush=True)
        found = study.open(setting(text, PLAIN)).call(
            "bench.levers.worker:measure", {"granularity": granularity, "formats": formats},
            lambda what, done, total: None)
        profile, cost = profile_from_json(found["profile"], "the worker"), dict(found["cost"])
        print(f"  {cost}", flush=True)
        if known is not None:
            if cost["sequences"] != known[1]["sequences"]:
                raise WorkerError(f"the formats of {path} were measured on {known[1]['sequences']} sequences, and "
                                  f"others on {cost['sequences']}; remove that file to measure all of them anew")
            profile, cost = joined(known[0], profile), {**cost, **{
                key: known[1][key] + cost[key] for key in ("cpu_seconds", "forward_tokens", "formats")}}
        save_profile(path, profile, cost)


if __name__ == "__main__":
    sys.exit(main())
