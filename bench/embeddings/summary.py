"""Rows, targets and table of the study of embeddings; what is not measured yet is null."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.embeddings.fits import fits
from bench.embeddings.plan import FORMAT, STEPS, before, calibration, choice, trained
from bench.length.plan import UNSEEN_SEEDS
from bench.length.summary import difference
from bench.length.trials import Found
from bench.report import Target, publish
from qra_bo.config import RunConfig, make_space, make_spec
from qra_bo.memory.embeddings import WIDTHS
from qra_bo.pipeline.build import make_memory
from qra_bo.study.intervals import LEAST_SEEDS
from qra_bo.study.setting import BytesPredictor

COLUMNS = ("part", "task", "model", "embeddings", "card_gb", "untrained", "mean", "seeds", "difference",
           "predicted_bytes", "measured_bytes", "stored_bytes", "file_bytes", "qlora_bytes", "best_uniform")
HARMLESS = 0.001
"""Largest rise of the test loss, in nats a token, that counts as harmless: the end of its interval stays below."""
UNDER, OVER = 0.005, 0.05
"""How far a prediction may lie below a measured peak, and above."""
Row = dict[str, Any]


def rows_of(texts: Sequence[str], seeds: int, found: Found, config: RunConfig) -> list[Row]:
    """Return a row for every text and width.

    Args:
        texts: Names of the texts.
        seeds: Unseen seeds of the study.
        found: Finished trials.
        config: Of any of the trials.
    """
    spec = make_spec(config)
    only = choice(spec.n_layers)
    rows = []
    for text in texts:
        settled = calibration(text, spec.n_layers, found)
        rate, by_bits = settled.rates.get(FORMAT), dict[int, dict[int, float]]()
        for bits in WIDTHS:
            events = {seed: found.get(trained(text, bits, only.allocation, rate, seed).key)
                      for seed in UNSEEN_SEEDS[:seeds]} if rate is not None else {}
            losses = by_bits[bits] = {seed: float(event["loss"]) for seed, event in events.items()
                                      if event is not None and event["loss"] is not None}
            untrained = found.get(before(text, bits, only.allocation).key)
            peaks = {event["measured_bytes"] for event in events.values() if event is not None} - {None}
            memory = make_memory(config.with_changes(embeddings=bits), spec, "cpu")
            predict, stored = (BytesPredictor(replace(memory, scope=scope), make_space(config, spec))
                               for scope in ("peak", "stored"))
            rows.append({
                "part": only.name, "task": text, "model": config.model_name, "embeddings": bits, "steps": STEPS,
                "untrained": None if untrained is None else untrained["loss"],
                "learning_rate": None if rate is None else rate * config.adapter.lr,
                "rate_trials": [[factor * config.adapter.lr, loss if math.isfinite(loss) else None]
                                for factor, loss in sorted(settled.tried[FORMAT].items())],
                "test_losses": [losses.get(seed) for seed in UNSEEN_SEEDS[:seeds]], "seeds": len(losses),
                "mean": statistics.fmean(losses.values()) if losses else None,
                "minus_16_bits": None if bits == 16 else difference(losses, by_bits[16]),
                "predicted_bytes": predict(only.allocation), "measured_bytes": max(peaks, default=None),
                "embedding_bytes": memory.embedding_bytes, "stored_bytes": stored(only.allocation),
                "file_bytes": predict.file_bytes(only.allocation)})
    return rows


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """Return, for every text and width, whether the loss is harmless and the peak is as predicted."""
    targets = []
    for row in rows:
        where, d, measured = f"{row['task']}, embedding in {row['embeddings']} bits", row["minus_16_bits"], \
            row["measured_bytes"]
        if row["embeddings"] != 16:
            what, target = f"{where}: test loss less that with 16 bits", f"interval below {HARMLESS} nats"
            if d is None:
                targets.append(Target(what, target, None, False, "fewer than two seeds are finished"))
            else:
                what += f" ({d['low']:+.4f} to {d['high']:+.4f}, {d['seeds']} seeds)"
                targets.append(Target(what, target, d["mean"], d["high"] < HARMLESS and d["seeds"] >= LEAST_SEEDS))
        what, target = f"{where}: predicted peak over the measured one", f"{1 - UNDER} to {1 + OVER}"
        ratio = None if measured is None else row["predicted_bytes"] / measured
        targets.append(Target(what, target, None, False, "no trial is finished") if ratio is None else
                       Target(what, target, ratio, 1 - UNDER <= ratio <= 1 + OVER))
    return targets


def summarise(texts: Sequence[str], seeds: int, found: Found, config: RunConfig, folder: Path) -> None:
    """Print the table and the targets, and write ``embeddings.json`` to ``folder``."""
    rows = rows_of(texts, seeds, found, config)
    for row in rows:
        row["difference"] = _text(row["minus_16_bits"])
    publish("embeddings", targets_of(rows), [*rows, *fits()], COLUMNS, folder=folder)


def _text(d: Mapping[str, Any] | None) -> str | None:
    return None if d is None else f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"
