"""Rows and table of the study of levers; what is not measured yet is null."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.length.plan import UNSEEN_SEEDS
from bench.length.summary import difference
from bench.length.trials import NAME, Found, load
from bench.levers.plan import LENGTHS, LEVERS, Judged, Lever, Variant, allocation_of, gain, judge, sources_of
from bench.levers.predicted import PROFILED, Prediction, Predictions, load_profiles, predictions_of, profile_path
from bench.report import publish
from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.build import make_memory
from qra_bo.space import Allocation, average_bits
from qra_bo.study.setting import BytesPredictor

COLUMNS = ("lever", "task", "bits", "rank", "stored_bytes", "learning_rate", "validation_gain", "mean", "base_mean",
           "seeds", "difference", "units", "cpu_seconds")
Row = dict[str, Any]


def rows_of(text: str, steps: int, predictions: Predictions, found: Found, config: RunConfig) -> list[Row]:
    """Return a row for every lever.

    Args:
        text: Name of the text.
        steps: Length of the trainings.
        predictions: Of the profiles that are measured.
        found: Finished trials.
        config: Of any trial.
    """
    spec = make_spec(config)
    space = make_space(config, spec)
    stored = BytesPredictor(make_memory(config, spec, "cpu"), space)
    return [_row(text, steps, lever, predictions, found, config, stored) for lever in LEVERS]


def _row(text: str, steps: int, lever: Lever, predictions: Predictions, found: Found, config: RunConfig,
         stored: BytesPredictor) -> Row:
    units = stored.space.n_units
    sides = {side: _side(text, steps, variant, allocation_of(variant, predictions, units), found, config, stored)
             for side, variant in (("", lever.variant), ("base_", lever.base))}
    (allocation, variant), (base_allocation, base) = ((side.pop("allocation"), side.pop("judged"))
                                                      for side in sides.values())
    same = allocation is not None and allocation == base_allocation and lever.variant.change == lever.base.change
    losses, others = _finite(variant.tested), _finite(base.tested)
    common = [losses[seed] - others[seed] for seed in UNSEEN_SEEDS if seed in losses and seed in others]
    return {"part": "lever", "lever": lever.name, "task": text, "model": config.model_name, "limit": lever.limit,
            "steps": steps, "same_allocation": same,
            **{f"{side}{key}": value for side, facts in sides.items() for key, value in facts.items()},
            "validation_gain": None if same else gain(variant, base), "seeds": 0 if same else len(common),
            "one_seed": common[0] if len(common) == 1 and not same else None,
            "minus_base": None if same else difference(losses, others)}


def _side(text: str, steps: int, variant: Variant, allocation: Allocation | None, found: Found,
          config: RunConfig, stored: BytesPredictor) -> Row:
    judged = Judged() if allocation is None else judge(text, steps, variant, allocation, found)
    losses = _finite(judged.tested)
    return {
        "allocation": allocation, "judged": judged, "name": variant.name,
        "bits": None if allocation is None else average_bits([parse_format(f).bits for f in allocation.formats],
                                                             stored.space.unit_numel),
        "rank": None if allocation is None else statistics.fmean(allocation.ranks),
        "stored_bytes": None if allocation is None else stored(allocation),
        "learning_rate": None if judged.rate is None else judged.rate * config.adapter.lr,
        "rate_trials": [[rate * config.adapter.lr, loss if math.isfinite(loss) else None]
                        for rate, loss in sorted(judged.tried.items())],
        "test_losses": [losses.get(seed) for seed in UNSEEN_SEEDS],
        "mean": statistics.fmean(losses.values()) if losses else None}


def costs(folder: Path, text: str) -> list[Row]:
    """Return a row for every profile that is measured, with what it cost."""
    return [{"part": "profile", "lever": f"profile by {granularity}", "task": text, "granularity": granularity,
             **json.loads(path.read_text(encoding="utf-8"))["cost"]}
            for granularity in PROFILED if (path := profile_path(folder, text, granularity)).exists()]


def profile_seconds(variant: Variant, rows: Sequence[Row]) -> float | None:
    """Return the CPU seconds of the profile that a prediction takes, in the formats of its ladder: all cost alike."""
    source = variant.source
    if not isinstance(source, Prediction):
        return None
    cost = next((r for r in rows if r.get("granularity") == source.granularity), None)
    return None if cost is None else float(cost["cpu_seconds"] / cost["formats"] * len(source.bits))


def most_known(rows: Sequence[Row]) -> Row:
    """Return of one lever's rows, each of the trials of one machine, the one with the most seeds; else the first."""
    return max(rows, key=lambda row: (row["seeds"], row["validation_gain"] is not None))


def summarise(texts: Sequence[str], config: RunConfig, folder: Path, results: Path) -> None:
    """Print the table, and write ``levers.json`` to ``results``; ``config`` is of any trial on any text.

    Trials of other machines are in folders of ``folder``. Trainings of two machines are never compared: rounding alone
    moved a loss by 0.03. Of trainings longer than the first length there are rows where something was measured.
    """
    rows: list[Row] = []
    machines = [load(path) for path in (folder / NAME, *sorted(folder.glob(f"*/{NAME}")))]
    for text in texts:
        profiles, own = load_profiles(folder, text), costs(folder, text)
        for steps in LENGTHS:
            predictions = predictions_of(sources_of(LEVERS), profiles, config, steps)
            each = zip(*(rows_of(text, steps, predictions, found, config) for found in machines), strict=True)
            for lever, row in zip(LEVERS, map(most_known, each), strict=True):
                if steps == LENGTHS[0] or row["validation_gain"] is not None:
                    rows.append({**row, "profile_seconds": profile_seconds(lever.variant, own)})
        rows += own
    for row in rows:
        if (d := row.get("minus_base")) is not None:
            row["difference"] = f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"
        elif row.get("one_seed") is not None:
            row["difference"] = f"{row['one_seed']:+.4f}"
    publish("levers", [], rows, COLUMNS, folder=results)


def _finite(losses: Mapping[int, float]) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if math.isfinite(loss)}
