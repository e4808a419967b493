"""Health cards of a run: questions about its result, each with a status, one sentence and what to do."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from qra_bo.memory.budget import format_size
from qra_bo.study.state import Study
from qra_bo.utils.formatting import number, signed

PASS: Final = "pass"
WARN: Final = "warn"
FAIL: Final = "fail"
UNKNOWN: Final = "not measured"
CHANCE = 1.645
"""Standard deviations that chance exceeds once in 20 times. A rank correlation of ``m`` pairs has a standard deviation
of 1 / sqrt(m - 1) where there is no relation (Kendall, Rank Correlation Methods, 1970)."""
CHANCE_SHARE = 0.05
"""The same for the number of intervals that miss."""
LEAST_OVER, MOST_OVER = -0.005, 0.05
"""Range of predicted over measured bytes, less 1, that is promised: lower may run out of memory, higher wastes it."""
LAST = 0.2
"""Last part of a final fine-tune in which its loss should have settled: its learning rate is at its lowest."""
FALLING = 0.01
"""Fall of the loss in that part (nats) that shows an unfinished training: 1 % of the perplexity."""
Answered = tuple[str, str, str]
"""Status, finding and action of an answer."""
LONGER = "Train longer: final.epochs, final.max_steps or final.steps."


@dataclass(frozen=True, slots=True)
class Card:
    """One question about a run's result.

    Args:
        name: Key for scripts.
        question: A few words for people.
        status: ``PASS``, ``WARN``, ``FAIL`` or ``UNKNOWN``.
        finding: One sentence with the numbers.
        action: What to do about it; empty where nothing is to be done.
    """

    name: str
    question: str
    status: str
    finding: str
    action: str = ""


def health(study: Study) -> list[Card]:
    """Return the cards that the numbers of a run answer; before its end most are not measured."""
    return [Card("surrogate", "Surrogate predictive?", *_surrogate(study)),
            Card("memory", "Memory as predicted?", *_memory(study)),
            Card("length", "Had its loss settled?", *_length(study))]


def _surrogate(study: Study) -> Answered:
    """Judge the ranking of the better half, where a search decides, and the intervals."""
    check = study.surrogate_check
    if study.untried:
        return UNKNOWN, "Nothing was searched.", ""
    if check is None or check.coverage_90 is None:
        if study.end is None:
            return UNKNOWN, "The search has not ended.", ""
        return UNKNOWN, "The method has no surrogate, or the search made too few trials to check it.", \
            "A larger effort makes more trials."
    from scipy.special import bdtr  # slow to import, and needed once a run
    observed, good, n, covered = check.observed, check.spearman_good, check.n, check.coverage_90
    found = (f"Left out in turn, {n} trials are ranked with Spearman {number(check.spearman, 2)}, the better half "
             f"of them with {number(good, 2)}; 90 % intervals hold {100 * covered:.0f} % of them.")
    if good is None or check.fails:
        return FAIL, found, "Measured losses choose the winner instead; more trials (a larger effort) may mend it."
    half = sum(value <= float(np.median(observed)) for value in observed)
    ranked = good > CHANCE / math.sqrt(max(half - 1, 1)) and (check.spearman or 0.0) > CHANCE / math.sqrt(max(n - 1, 1))
    if ranked and float(bdtr(round(covered * n), n, 0.9)) >= CHANCE_SHARE:
        return PASS, found, ""
    return WARN, found, "This can't be told from chance: rely on the comparison on unseen seeds, or give the search " \
        "more trials (a larger effort)."


def _memory(study: Study) -> Answered:
    winner, limit = study.winner, study.header.budget_bytes
    point = None if winner is None else study.point(winner)
    last = None if winner is None else study.measurement(winner)
    if last is not None:
        fits, predicted, measured = last.fits, last.predicted_bytes, last.measured_bytes
    elif point is not None:
        fits, predicted, measured = True, point.predicted_bytes, point.result.measured_bytes
    else:
        return UNKNOWN, "The winner has not been measured.", ""
    if measured is None:
        ran_out = "memory ran out" if not fits else "the device measures none"
        return FAIL if not fits else UNKNOWN, \
            f"{format_size(predicted)} predicted within {format_size(limit)}; {ran_out}.", \
            "" if fits else "Search with a smaller budget."
    over = predicted / measured - 1
    found = (f"{format_size(predicted)} predicted, {format_size(measured)} measured (prediction "
             f"{signed(100 * over, 1)} %), within a budget of {format_size(limit)}")
    if measured > limit or not fits:
        return FAIL, f"{found.replace('within', 'over')}.", "Search with a smaller budget."
    latest = {m.allocation: m.fits for m in study.measurements}  # a resumed run measures again
    others = sum(not fitted for fitted in latest.values())
    fault = f"; {others} better allocations measured over it" if others else ": more than was promised" \
        if over < LEAST_OVER else ": part of the budget is unused" if over > MOST_OVER else ""
    action = "A slightly larger budget uses it." if over > MOST_OVER and not others else \
        "Search with a slightly smaller budget where it has to hold."
    return (WARN, f"{found}{fault}.", action) if fault else (PASS, f"{found}.", "")


def _length(study: Study) -> Answered:
    """Judge whether the loss of the final fine-tune still fell at its end."""
    final = study.final
    if final is None:
        return UNKNOWN, "No final fine-tune was run.", ""
    if len(final.curve) < 2:
        return UNKNOWN, "The final fine-tune was too short for two validations.", LONGER
    curve, steps, kept = final.curve, final.steps, final.kept_step
    if kept < steps:
        return PASS, f"The final fine-tune's loss was least after {kept} of {steps} steps.", ""
    before = [loss for step, loss in curve if step <= (1 - LAST) * steps] or [curve[0][1]]
    fall = before[-1] - curve[-1][1]
    found = f"The final fine-tune's loss fell by {number(max(fall, 0.0))} nats in about its last fifth."
    return (PASS, found, "") if fall <= FALLING else (WARN, found, LONGER)
