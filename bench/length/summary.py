"""Results of the length study as JSON and a figure; what is not measured yet is null."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.length.plan import EFFECTS, LIMITS, SEARCH_SEED, UNSEEN_SEEDS, Block, Choice, Settled, settle
from bench.length.plot import draw
from bench.length.trials import NAME, Found, load, trial_of
from qra_bo.config import make_space, make_spec
from qra_bo.config.schema import RunConfig
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.build import make_memory
from qra_bo.report.style import png_bytes
from qra_bo.space import Allocation
from qra_bo.study.intervals import paired_interval
from qra_bo.study.setting import BytesPredictor
from qra_bo.utils.files import write_json

COMMAND = "python -m bench.length --gsm8k FILE.jsonl; python -m bench.length --summary"


def predictors(config: RunConfig) -> dict[str, BytesPredictor]:
    """By memory scope, what predicts the bytes of an allocation on a CPU."""
    spec = make_spec(config)
    scopes = {s: config.with_changes(memory=config.memory.with_changes(scope=s)) for s in ("peak", "stored")}
    return {scope: BytesPredictor(make_memory(scopes[scope], spec, "cpu"),
                                  make_space(config, spec)) for scope in ("stored", "peak")}


def difference(losses: Mapping[int, float], others: Mapping[int, float]) -> dict[str, Any] | None:
    """Paired mean difference over common seeds with its 95 % interval; ``None`` below two seeds."""
    pairs = [losses[seed] - others[seed] for seed in losses if seed in others]
    if len(pairs) < 2:
        return None
    interval = paired_interval(pairs)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "seeds": len(pairs)}


def summarise(plan: Sequence[Block], found: Found, config: RunConfig) -> dict[str, Any]:
    """All rows of the comparisons and of the effects.

    Args:
        plan: Blocks.
        found: Finished trials.
        config: Of the trials on the plays.
    """
    size = predictors(config)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for block in plan:
        settled = settle(block, found)
        if block.limit == EFFECTS:
            curves += [_curve(settled, choice, found) | facts(choice.allocation, size) for choice in block.choices]
            continue
        best = settled.best_uniform
        rows += [_row(settled, c.name, c, size, config) for c in block.choices if c.kind != "uniform"]
        if any(c.kind == "uniform" for c in block.choices):
            rows.append(_row(settled, "best uniform choice" if best is None else best.name, best, size, config))
    return {"schema_version": 1, "command": COMMAND, "model": config.model_name, "unit": "nats per token",
            "search_seed": SEARCH_SEED, "unseen_seeds": list(UNSEEN_SEEDS), "limits": LIMITS, "rows": rows,
            "curves": curves}


def publish(folder: Path, config: RunConfig, plan: Sequence[Block], figure: Path | None = None,
            beside: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write ``length.json`` to ``folder``, and ``figure`` (by default ``length.png`` there) once there are differences
    to draw; rows ``beside`` those of the study are drawn too."""
    summary = summarise(plan, load(folder / NAME), config)
    write_json(folder / "length.json", summary)
    if any(r["minus_best_uniform"] is not None for r in summary["rows"]):
        (figure or folder / "length.png").write_bytes(png_bytes(draw([*summary["rows"], *beside])))
    print(f"written to {folder}")


def _row(settled: Settled, name: str, choice: Choice | None, size: Mapping[str, BytesPredictor],
         config: RunConfig) -> dict[str, Any]:
    """A row of the comparisons; ``choice`` is ``None`` while the best uniform one is not known."""
    block, losses = settled.block, _finite(settled.tested.get(name, {}))
    rate_class, uniform = "" if choice is None else choice.rate_class, settled.best_uniform
    rate, tried = settled.rates.get(rate_class), settled.tried.get(rate_class, {})
    others = {} if uniform is None else _finite(settled.tested.get(uniform.name, {}))
    return {
        "task": block.task, "limit": block.limit, "steps": block.steps,
        "tokens": block.steps * config.train.step_tokens, "name": name,
        "kind": "uniform" if choice is None else choice.kind,
        **facts(None if choice is None else choice.allocation, size),
        "learning_rate": None if rate is None else rate * config.adapter.lr,
        "rate_trials": [[factor * config.adapter.lr, _finite(tried).get(factor)] for factor in sorted(tried)],
        "rate_is_inside": None if rate is None else min(tried) < rate < max(tried),
        "test_losses": [losses.get(seed) for seed in UNSEEN_SEEDS[:block.seeds]],
        "mean": statistics.fmean(losses.values()) if len(losses) == block.seeds else None,
        "minus_best_uniform": difference(losses, others) if choice is not None and choice.kind == "find" else None}


def _finite(losses: Mapping[Any, float]) -> dict[Any, float]:
    return {key: loss for key, loss in losses.items() if math.isfinite(loss)}


def facts(allocation: Allocation | None, size: Mapping[str, BytesPredictor]) -> dict[str, Any]:
    """Average bits and rank and predicted bytes; null without an allocation."""
    if allocation is None:
        return dict.fromkeys(("average_bits", "average_rank", "stored_bytes", "peak_bytes"))
    bits = [parse_format(name).bits for name in allocation.formats]
    return {"average_bits": statistics.fmean(bits), "average_rank": statistics.fmean(allocation.ranks),
            **{f"{scope}_bytes": predict(allocation) for scope, predict in size.items()}}


def _curve(settled: Settled, choice: Choice, found: Found) -> dict[str, Any]:
    """A row of the effects: validation loss at recorded steps, null while it is not measured; where a block
    calibrates no rates, that of the least loss among all rates that were tried at its length."""
    block, rate = settled.block, settled.rates.get(choice.rate_class)
    event = None if rate is None else found.get(block.trial(choice, SEARCH_SEED, "validation", rate).key)
    if not block.calibrated:
        own = block.trial(choice, SEARCH_SEED, "validation", 1.0)
        others = [e for e in found.values() if e["loss"] is not None
                  and replace(trial_of(e), lr_scale=1.0).key == own.key]
        event = min(others, key=lambda e: float(e["loss"]), default=None)
    return {"block": block.limit, "name": choice.name, **choice.allocation.to_json(), "steps": block.steps,
            "lr_scale": rate if event is None else event["lr_scale"], "loss": event and event["loss"],
            "curve": event and event["curve"]}
