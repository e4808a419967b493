"""Rows, targets and table of the study of formats; what is not measured yet is null."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.formats.plan import WIDTHS, bits_a_weight, family_of, make_block, reference_of, untrained
from bench.formats.untrained_weights import DIVERGENCE
from bench.length.plan import UNSEEN_SEEDS, Block, Choice, Settled, settle
from bench.length.summary import difference
from bench.length.trials import Found
from bench.report import Target, publish
from qra_bo.config import RunConfig, make_spec
from qra_bo.memory.formats import parse_format
from qra_bo.space import DecoderSpec
from qra_bo.study.intervals import LEAST_SEEDS

COLUMNS = ("task", "measure", "steps", "bits", "format", "bits_a_weight", "untrained", "learning_rate", "mean", "seeds",
           "reference", "difference", "default", "difference_from_default")
TRAINED, TEST_LOSS = "uniform choices, fine-tuned", "test loss"
Row = dict[str, Any]


def rows_of(blocks: Sequence[Block], found: Found, config: RunConfig) -> list[Row]:
    """Return a row for every format of every block.

    Args:
        blocks: One for each width, text and number of steps, with all seeds.
        found: Finished trials.
        config: Of any of the trials: model and learning rate are the same in all.
    """
    spec = make_spec(config)
    return [_row(settled, choice, found, spec, config.adapter.lr)
            for block in blocks for settled in (_settle(block, found),) for choice in block.choices]


def _settle(block: Block, found: Found) -> Settled:
    """Return what the trials decide; a family without a rate keeps no other one's tests back."""
    settled = settle(block, found)
    rated = replace(block, choices=tuple(c for c in block.choices if c.rate_class in settled.rates))
    return replace(settled, tested=settle(rated, found).tested)


def _row(settled: Settled, choice: Choice, found: Found, spec: DecoderSpec, lr: float) -> Row:
    block, losses = settled.block, _finite(settled.tested.get(choice.name, {}))
    rate, tried = settled.rates.get(choice.rate_class), settled.tried[choice.rate_class]
    bits, before = parse_format(choice.name).bits, found.get(untrained(block, choice).key)
    default, reference = WIDTHS[bits][0], reference_of(choice.name, spec)

    def minus(other: str | None) -> dict[str, Any] | None:
        return None if other in (None, choice.name) else difference(losses, _finite(settled.tested.get(str(other), {})))

    return {
        "part": TRAINED, "task": block.task, "measure": TEST_LOSS, "steps": block.steps, "bits": bits,
        "format": choice.name, "family": family_of(choice.name), "rank": choice.allocation.ranks[0],
        "bits_a_weight": bits_a_weight(choice.name, spec), "untrained": None if before is None else before["loss"],
        "learning_rate": None if rate is None else rate * lr,
        "rate_trials": [[factor * lr, tried[factor] if math.isfinite(tried[factor]) else None]
                        for factor in sorted(tried)],
        "rate_is_inside": None if rate is None else min(tried) < rate < max(tried),
        "test_losses": [losses.get(seed) for seed in UNSEEN_SEEDS[:block.seeds]],
        "mean": statistics.fmean(losses.values()) if losses else None, "seeds": len(losses),
        "reference": reference, "minus_reference": minus(reference),
        "default": default, "minus_default": minus(default)}


def _finite(losses: Mapping[int, float]) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if math.isfinite(loss)}


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """Return, for every integer format with groups of 64, whether it beats the format that is nearest in bytes; and
    for those of 4 bits, whether they diverge less than NF4 on weights that were never quantised."""
    targets = []
    for row in rows:
        if not row["format"].endswith("-g64") or row["measure"] not in (TEST_LOSS, DIVERGENCE):
            continue
        where = f"{row['task']}, {row['steps']} steps" if row["part"] == TRAINED else f"{row['task']} weights"
        what = f"{where}, {row['bits']} bits: {row['measure']} of {row['format']} less that of {row['reference']}"
        d, target = row["minus_reference"], "< 0, its interval too"
        if d is None:
            targets.append(Target(what, target, None, False, "fewer than two seeds are finished"))
            continue
        what += f" ({d['low']:.4f} to {d['high']:.4f}, {d['seeds']} seeds)"
        targets.append(Target(what, target, d["mean"], d["high"] < 0 and d["seeds"] >= LEAST_SEEDS))
    return targets


def summarise(tasks: Sequence[str], steps: Sequence[int], seeds: int, found: Found, config: RunConfig,
              never_quantised: Sequence[Row], folder: Path) -> None:
    """Print the table and the targets, and write ``formats.json`` to ``folder``."""
    blocks = [make_block(task, length, bits, seeds, make_spec(config).n_layers) for bits in WIDTHS
              for task in tasks for length in steps]
    rows = [*rows_of(blocks, found, config), *never_quantised]
    for row in rows:
        row["difference"], row["difference_from_default"] = (_text(row.get(key)) for key in
                                                             ("minus_reference", "minus_default"))
    publish("formats", targets_of(rows), rows, COLUMNS, folder=folder)


def _text(d: Mapping[str, Any] | None) -> str | None:
    return None if d is None else f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f})"
