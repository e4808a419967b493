"""Results of a study: a row for every choice and length, with paired differences to its opponents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.report import publish
from bench.store import TrialStore
from bench.study.plan import Study
from bench.study.run import finder
from bench.study.schedule import Settled, settle
from qra_bo.memory.formats import parse_format
from qra_bo.study.intervals import interval_of
from qra_bo.trials import SequenceLosses

COLUMNS = ("text", "label", "steps", "name", "bits", "rank", "learning_rate", "seeds", "loss", "difference")
Row = dict[str, Any]


def difference(one: Settled, other: Settled) -> Row | None:
    """Return the mean difference of two choices over common seeds with its 95 % interval; ``None`` below two seeds.

    The interval holds for other held-out text too, as ``over_text`` says, where both sides' trials have the losses of
    every sequence.
    """
    seeds = [seed for seed in one.losses if seed in other.losses]
    if len(seeds) < 2:
        return None
    mine, theirs = ([s.tested[seed].sequence_losses for seed in seeds] for s in (one, other))
    return interval_row([one.losses[seed] - other.losses[seed] for seed in seeds], mine, theirs)


def interval_row(differences: Sequence[float], mine: Sequence[SequenceLosses],
                 theirs: Sequence[SequenceLosses]) -> Row:
    """Return ``interval_of`` as a row, with the number of seeds."""
    interval, over_text = interval_of(differences, mine, theirs)
    return {**asdict(interval), "seeds": len(differences), "over_text": over_text}


def rows_of(study: Study, stores: list[TrialStore]) -> list[Row]:
    """Return the rows in the order of the plan; what is not measured is null."""
    rows = []
    for arms in study.comparisons:
        settled = {arm.name: settle(arm, finder(stores)) for arm in arms}
        rows += [_row(s, settled) for s in settled.values()]
    return rows


def _row(s: Settled, all_of_them: Mapping[str, Settled]) -> Row:
    arm, losses = s.arm, s.losses
    minus = {name: None if name == arm.name else difference(s, all_of_them[name])
             for name in arm.comparison.opponents}
    return {"text": arm.comparison.text, "label": arm.comparison.label, "steps": arm.steps, "name": arm.name,
            **arm.allocation.to_json(), "bits": fmean(parse_format(f).bits for f in arm.allocation.formats),
            "rank": fmean(arm.allocation.ranks), "learning_rate": s.rate,
            "rates_tried": [[rate, loss if math.isfinite(loss) else None] for rate, loss in sorted(s.tried.items())],
            "rate_is_inside": min(s.tried) < s.rate < max(s.tried) if s.tried and s.rate is not None else None,
            "seeds": len(losses), "losses": {str(seed): loss for seed, loss in losses.items()},
            "loss": fmean(losses.values()) if losses else None, "minus": minus, **arm.choice.facts}


def summarise(study: Study, stores: list[TrialStore], folder: Path) -> None:
    """Print the table and write ``NAME.json`` to ``folder``, with the machine and commit of the last trials."""
    rows = rows_of(study, stores)
    shown = [{**row, "difference": _text(next(iter(row["minus"].values()), None))} for row in rows]
    sessions = [session for store in stores for session in store.sessions()]
    publish(study.plan.name, (), rows, COLUMNS, shown=shown, folder=folder, made=sessions[-1] if sessions else None)


def _text(d: Mapping[str, Any] | None) -> str | None:
    return None if d is None else f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"
