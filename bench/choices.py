"""What the choice of layers is worth: tables and figure of the study of simple choices.

    python -m bench.choices      (writes bench/results/simple_choices.json, simple_draws.json, docs/figures/choices.png)

At every limit: uniform, the blind rule of a fractional choice, units drawn at random, the order by weight error alone,
and the predicted mix, trained on the same unseen seeds and read on the same text. Five draws beside the rule, all with
the codes of one encoder, are a study of their own. The last table is README's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.report import RESULTS, publish
from bench.study.plan import load_study
from bench.study.run import finder, stores_in
from bench.study.schedule import Settled, settle
from bench.study.summary import interval_row
from qra_bo.memory.budget import parse_size
from qra_bo.memory.formats import parse_format
from qra_bo.report.style import BLUE, GREEN, MB, MUTED, SKY, VERMILLION, axes, dress, legend, png_bytes
from qra_bo.trials import SequenceLosses
from qra_bo.utils.formatting import DASH, signed

PLANS, STUDIES = Path(__file__).parent / "study" / "plans", ("simple_choices", "simple_choices_0_5b")
DRAWS = "simple_draws"
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "choices.png"
DRAWN, RULE, UNIFORM, PREDICTED = "drawn", "rule", "uniform", "predicted"
LOOKS = ((UNIFORM, "uniform", BLUE, "s"), (f"{RULE}, rank 4", "rule, at rank 4", SKY, "o"),
         ("weight error, rank 4", "by weight error, at rank 4", MUTED, "D"), (RULE, "rule", GREEN, "o"),
         (PREDICTED, "predicted", VERMILLION, "*"))
TEXTS = {"plays": "plays", "gsm8k": "GSM8K"}
HEADINGS = ("stored", "best uniform choice", "mix by rule", "predicted mix", "mix by rule less uniform, nats (95 %)")
COLUMNS = ("text", "limit", "steps", "choice", "bits", "rank", "seeds", "loss", "less the rule", "less the draws")
Row = dict[str, Any]


def mean_of(choices: Sequence[Settled]) -> dict[int, SequenceLosses]:
    """Return the mean of several choices by seed: the loss (nats, summed) and the tokens of every sequence."""
    seeds = set.intersection(*({*s.tested} for s in choices)) if choices else set()
    return {seed: [(float(loss), round(tokens), round(document)) for loss, tokens, document in np.mean(
        [s.tested[seed].sequence_losses for s in choices], axis=0)] for seed in sorted(seeds)}


def difference(one: Mapping[int, SequenceLosses], other: Mapping[int, SequenceLosses]) -> Row | None:
    """Return the mean difference over common seeds with its 95 % interval over seeds and text; ``None`` below two."""
    seeds = [seed for seed in one if seed in other]
    if len(seeds) < 2:
        return None
    mine, theirs = ([side[seed] for seed in seeds] for side in (one, other))
    return interval_row([loss_of(a) - loss_of(b) for a, b in zip(mine, theirs, strict=True)], mine, theirs)


def loss_of(sequences: SequenceLosses) -> float:
    """Return the mean loss of a token."""
    return sum(s[0] for s in sequences) / sum(s[1] for s in sequences)


def rows(studies: Sequence[str]) -> list[Row]:
    """Return the rows in the order of the plans; the draws of a limit are one, with the losses of each."""
    found = []
    for name in studies:
        study, find = load_study(PLANS / f"{name}.yaml"), finder(stores_in(RESULTS / name))
        found += [row for arms in study.comparisons for row in _limit([settle(arm, find) for arm in arms])]
    return found


def _limit(settled: Sequence[Settled]) -> list[Row]:
    draws = [s for s in settled if s.arm.name.startswith(DRAWN)]
    sides = {s.arm.name: mean_of([s]) for s in settled if s not in draws} | {DRAWN: mean_of(draws)}
    first = {s.arm.name: s.arm for s in settled} | ({DRAWN: draws[0].arm} if draws else {})
    found = []
    for name, losses in sides.items():
        if not losses:
            continue
        arm = first[name]
        found.append({
            "text": arm.comparison.text, "limit": arm.comparison.label, "choice": name, "steps": arm.steps,
            "bits": fmean(parse_format(f).bits for f in arm.allocation.formats), "rank": fmean(arm.allocation.ranks),
            "seeds": len(losses), "loss": fmean(loss_of(s) for s in losses.values()),
            "of_draws": [fmean(loss_of(s.tested[seed].sequence_losses) for seed in losses) for s in draws]
            if name == DRAWN else None,
            "less_rule": None if name == RULE else difference(losses, sides[RULE]),
            "less_draws": None if name == DRAWN else difference(losses, sides[DRAWN])})
    return found


def draw(found: Sequence[Row]) -> Figure:
    """Draw the test loss of every choice over the memory limit, with a band from the best to the worst draw: of the
    first text and length, which have several limits."""
    fig, ax = axes(8.0, 4.2)
    text, steps = found[0]["text"], found[0]["steps"]
    of: dict[str, list[tuple[float, Row]]] = {}
    shown = [r for r in found if (r["text"], r["steps"]) == (text, steps)]
    for r in sorted(shown, key=lambda r: parse_size(r["limit"].replace(" ", ""))):
        of.setdefault(r["choice"], []).append((parse_size(r["limit"].replace(" ", "")) / MB, r))
    if bands := [(x, r["of_draws"]) for x, r in of.get(DRAWN, ())]:
        x, losses = zip(*bands, strict=True)
        ax.fill_between(x, [min(v) for v in losses], [max(v) for v in losses], color=SKY, alpha=0.25, linewidth=0,
                        label="layers drawn at random, at rank 4")
    for choice, label, colour, marker in LOOKS:
        if points := of.get(choice):
            ax.plot([x for x, _ in points], [r["loss"] for _, r in points], color=colour, marker=marker, linewidth=1.4,
                    markersize=10 if marker == "*" else 6, label=label)
    dress(ax, "memory limit, MB stored", "test loss, nats (lower is better)",
          f"SmolLM2-135M, {text}, {steps} training steps")
    legend(fig, ax)
    return fig


def markdown(found: Sequence[Row]) -> str:
    """Return the table of the smaller model as README has it."""
    lines = [HEADINGS, ["---"] * len(HEADINGS)]
    for row in dict.fromkeys((r["limit"], r["text"], r["steps"]) for r in found if r["text"] in TEXTS):
        of = {r["choice"]: r for r in found if (r["limit"], r["text"], r["steps"]) == row}
        d = of[UNIFORM]["less_rule"]
        longer = "" if row[2] == found[0]["steps"] else f", {row[2]} steps"
        lines.append((f"{row[0]}, {TEXTS[row[1]]}{longer}",
                      *(f"{of[name]['loss']:.3f}" for name in (UNIFORM, RULE, PREDICTED)),
                      _text(d and {"mean": -d["mean"], "low": -d["high"], "high": -d["low"]}) or DASH))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def published(studies: Sequence[str]) -> list[Row]:
    """Return the rows of studies, and write them to the results of the first."""
    found = rows(studies)
    shown = [{**row, "less the rule": _text(row["less_rule"]), "less the draws": _text(row["less_draws"])}
             for row in found]
    sessions = [session for store in stores_in(RESULTS / studies[0]) for session in store.sessions()]
    publish(studies[0], (), found, COLUMNS, shown=shown, made=sessions[-1] if sessions else None)
    return found


def main() -> None:
    published([DRAWS])
    found = published(STUDIES)
    FIGURE.write_bytes(png_bytes(draw(found)))
    print(markdown(found))


def _text(d: Mapping[str, Any] | None) -> str | None:
    if d is not None and d["mean"] == d["low"] == d["high"] == 0:
        return "the same mix"
    return None if d is None else f"{signed(d['mean'])} ({signed(d['low'])} to {signed(d['high'])})"


if __name__ == "__main__":
    main()
