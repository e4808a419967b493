"""Results of the length study as JSON, a Markdown table and a figure; what is not measured yet is null."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.length.plan import CURVES, EFFECTS, LIMITS, SEARCH_SEED, UNSEEN_SEEDS, Block, Choice, Settled, settle
from bench.length.plot import draw
from bench.length.trials import NAME, Found, load
from qra_bo.config import make_space, make_spec
from qra_bo.config.schema import RunConfig
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.build import make_memory
from qra_bo.report.style import png_bytes
from qra_bo.space import Allocation
from qra_bo.study.intervals import paired_interval
from qra_bo.study.setting import BytesPredictor
from qra_bo.utils.files import write_json

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
COMMAND = "python -m bench.length --gsm8k FILE.jsonl; python -m bench.length --summary"
HEAD = ("allocation", "bits", "rank", "stored MB", "peak MB", "learning rate", "test loss", "seeds",
        f"{MINUS} best uniform (95 %)")


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
    """All rows of the comparisons and of the table of curves.

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
        if block.limit in (CURVES, EFFECTS):
            curves += [_curve(settled, choice, found) | _facts(choice.allocation, size) for choice in block.choices]
            continue
        best = settled.best_uniform
        rows += [_row(settled, c.name, c, size, config) for c in block.choices if c.kind != "uniform"]
        if any(c.kind == "uniform" for c in block.choices):
            rows.append(_row(settled, "best uniform choice" if best is None else best.name, best, size, config))
    return {"schema_version": 1, "command": COMMAND, "model": config.model_name, "unit": "nats per token",
            "search_seed": SEARCH_SEED, "unseen_seeds": list(UNSEEN_SEEDS), "limits": LIMITS, "rows": rows,
            "curves": curves}


def publish(folder: Path, config: RunConfig, plan: Sequence[Block]) -> None:
    """Write ``length.json``, ``length.md`` and ``length.png`` to ``folder``."""
    summary = summarise(plan, load(folder / NAME), config)
    write_json(folder / "length.json", summary)
    (folder / "length.md").write_text(to_markdown(summary), encoding="utf-8")
    (folder / "length.png").write_bytes(png_bytes(draw(summary["rows"])))
    print(f"written to {folder}/length.json, length.md and length.png")


def to_markdown(summary: Mapping[str, Any]) -> str:
    """A table for every text, limit and number of steps."""
    done = sum(c["loss"] is not None for c in summary["curves"])
    lines = ["# Length study", "", f"{summary['model']}, two CPU cores, 512 tokens a step, loss on the test split in "
             f"{summary['unit']}. The finds come from searches on the plays at 24 steps. Each class of allocations has "
             "its learning rate calibrated at this length with three trials; a dash marks what is not measured. Made "
             f"by `{summary['command']}`.", ""]
    blocks = dict.fromkeys((r["task"], r["limit"], r["steps"], r["tokens"]) for r in summary["rows"])
    for task, limit, steps, tokens in blocks:
        lines += [f"## {task}, {limit}, {steps} steps ({tokens:,} tokens)", "", "| " + " | ".join(HEAD) + " |",
                  "|---" * len(HEAD) + "|"]
        lines += [_line(r) for r in summary["rows"] if (r["task"], r["limit"], r["steps"]) == (task, limit, steps)]
        lines += [""]
    return "\n".join([*lines, f"Table of curves: {done} of {len(summary['curves'])} allocations are trained.", ""])


def _line(row: Mapping[str, Any]) -> str:
    d = row["minus_best_uniform"]
    compared = DASH if d is None else f"{d['mean']:+.4f} ({d['low']:+.4f} to {d['high']:+.4f}), {d['seeds']} seeds"
    seeds = sum(loss is not None for loss in row["test_losses"])
    cells = [row["name"], _number(row["average_bits"], ".2f"), _number(row["average_rank"], ".2f"),
             *(_number(row[key] and row[key] / 1e6, ".1f") for key in ("stored_bytes", "peak_bytes")),
             _number(row["learning_rate"], "g"), _number(row["mean"], ".4f"), f"{seeds} of {len(row['test_losses'])}",
             compared]
    return "| " + " | ".join(cells) + " |"


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


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
        **_facts(None if choice is None else choice.allocation, size),
        "learning_rate": None if rate is None else rate * config.adapter.lr,
        "rate_trials": [[factor * config.adapter.lr, _finite(tried).get(factor)] for factor in sorted(tried)],
        "rate_is_inside": None if rate is None else min(tried) < rate < max(tried),
        "test_losses": [losses.get(seed) for seed in UNSEEN_SEEDS[:block.seeds]],
        "mean": statistics.fmean(losses.values()) if len(losses) == block.seeds else None,
        "minus_best_uniform": difference(losses, others) if choice is not None and choice.kind == "find" else None}


def _finite(losses: Mapping[Any, float]) -> dict[Any, float]:
    return {key: loss for key, loss in losses.items() if math.isfinite(loss)}


def _facts(allocation: Allocation | None, size: Mapping[str, BytesPredictor]) -> dict[str, Any]:
    """Average bits and rank and predicted bytes; null without an allocation."""
    if allocation is None:
        return dict.fromkeys(("average_bits", "average_rank", "stored_bytes", "peak_bytes"))
    bits = [parse_format(name).bits for name in allocation.formats]
    return {"average_bits": statistics.fmean(bits), "average_rank": statistics.fmean(allocation.ranks),
            **{f"{scope}_bytes": predict(allocation) for scope, predict in size.items()}}


def _curve(settled: Settled, choice: Choice, found: Found) -> dict[str, Any]:
    """A row of the table of curves: validation loss at recorded steps, null while it is not measured."""
    rate = settled.rates.get(choice.rate_class)
    event = None if rate is None else found.get(settled.block.trial(choice, SEARCH_SEED, "validation", rate).key)
    return {"block": settled.block.limit, "name": choice.name,
            **choice.allocation.to_json(), "steps": settled.block.steps, "lr_scale": rate,
            "loss": event and event["loss"], "curve": event and event["curve"]}
