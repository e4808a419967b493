"""Answer and comparison of a run in plain sentences: the text that terminal, page and ``report.json`` share."""

import math
from dataclasses import dataclass

import numpy as np

from qra_bo.report.data import Confirmation, Prediction, ReportData
from qra_bo.report.text import ITSELF, describe_allocation, duration, size
from qra_bo.space import Allocation
from qra_bo.study import LEAST_SEEDS, loss_of, metadata_bits
from qra_bo.study.comparison import Compared, compared
from qra_bo.trials import Trial
from qra_bo.utils.formatting import DASH, number, signed

CLOSED_GAP_ERRORS = 3
"""Standard errors that a gap must span before shares of it are quoted."""
COLUMNS = ("", "allocation", "bits", "rank", "search loss", "test loss", "predicted", "measured", "fits")
"""Headings of the comparison, in the order of ``Row.cells``."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result in one sentence, its one number with the unit, and the interval and evidence behind it.

    ``tone`` is ``"better"``, ``"equal"`` (not resolved, or the uniform baseline wins) or ``"open"`` (not confirmed).
    """

    sentence: str
    figure: str
    interval: str
    tone: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison; losses in nats per token, ``None`` where there is no trial.

    Args:
        role: E.g. ``"winner"``, ``"best uniform"``, ``"QLoRA"``.
        average_bits: Code bits weighted by parameters; scales and zeros are not counted.
        average_rank: Mean over units, not weighted.
        search_loss: Validation loss at the search's training seed.
        test_loss: Mean over the confirmation's seeds on the test split.
        fits: Whether the predicted bytes are within the budget, the measured ones where they were measured, and the
            average bits within ``max_average_bits``.
    """

    role: str
    name: str
    average_bits: float
    average_rank: float
    search_loss: float | None
    test_loss: float | None
    predicted_bytes: int | None
    measured_bytes: int | None
    fits: bool | None

    @property
    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of ``COLUMNS``."""
        sizes = (DASH if n is None else size(n) for n in (self.predicted_bytes, self.measured_bytes))
        return (self.role, self.name, f"{self.average_bits:.2f}", f"{self.average_rank:.2f}", number(self.search_loss),
                number(self.test_loss), *sizes, {None: DASH, True: "yes", False: "no"}[self.fits])


def answer(d: ReportData) -> Answer:
    """State the finding, with its interval where there is one."""
    where = f"{d.header.model} within {size(d.header.budget_bytes)} ({d.header.scope} memory)"
    if d.prediction is not None:
        return _predicted(d, where, d.prediction)
    if d.reason is not None:
        return _given(d, where, d.reason)
    if d.winner is None:
        state = "before the run ended" if d.ended else "yet"
        return Answer(f"No allocation of {where} has been trained {state}.", "", "", "open")
    return _unconfirmed(d, where) if d.confirmation is None else _confirmed(d, d.confirmation, where)


def delivered(d: ReportData) -> str:
    """State the delivered adapter's own loss; empty before the final fine-tune."""
    final = d.last("final")
    if final is None:
        return ""
    loss = float(final["loss"])
    return (f"Delivered adapter: test loss {number(loss)} nats per token (perplexity {math.exp(min(loss, 700)):.4g}) "
            f"after {final['kept_step']:,} steps of its final fine-tune.")


def _given(d: ReportData, where: str, reason: str) -> Answer:
    name = DASH if d.winner is None else d.name(d.winner)
    trained = "has not been fine-tuned yet" if d.final_loss is None else "was fine-tuned"
    return Answer(f"{name} of {where} {trained}. Nothing was searched: {reason}.", "", "", "open")


def _replaced(d: ReportData, what: str, known: str) -> Answer:
    """State that the allocation chosen was measured over the budget, and what is known of the one delivered."""
    c, (first, other) = d.confirmation, (DASH if a is None else d.name(a) for a in (d.study.chosen, d.winner))
    text = f"The {what}, {first}, was measured over the budget; the next best that fits was delivered instead: {other}."
    if d.study.instead == "reference":
        return Answer(f"{text} It is the best uniform baseline.", "", "", "open")
    if c is not None and d.study.instead == "candidate":
        return Answer(f"{text} The two were compared on unseen training seeds.", f"{signed(c.mean)} nats",
                      _interval(d, c), "open")
    return Answer(f"{text} Its difference to the best uniform baseline was not {known}.", "", "", "open")


def _predicted(d: ReportData, where: str, p: Prediction) -> Answer:
    """State what was predicted, and at which length."""
    final, name = d.last("final"), DASH if d.winner is None else d.name(d.winner)
    if d.study.instead:
        return _replaced(d, f"allocation predicted for {where}", "predicted")
    text = f"Predicted, not searched: {name} for {where}."
    if p.reference is None:
        return Answer(f"{text} No uniform baseline is on the ladders to compare with.", "", "", "open")
    if p.uniform:
        return Answer(f"{text} It is the best uniform baseline: no mixed allocation is predicted to be better.", "", "",
                      "open")
    beside = compared(d.study)
    if beside is not None and beside.predicted is not None and beside.uniform is not None:
        return _on_one_seed(d, p, beside.predicted, beside.uniform, text)
    at = f"predicted for {p.steps} steps of training"
    if final is not None and final["steps"] != p.steps:
        at += f", not for the {final['steps']} of the final fine-tune"
    return Answer(f"{text} No trial measured its difference to the best uniform baseline ({d.name(p.reference)}).",
                  f"{signed(p.mean)} nats predicted",
                  f"95 % interval of the prediction {signed(p.low)} to {signed(p.high)}; {at}", "open")


def _on_one_seed(d: ReportData, p: Prediction, own: Trial, reference: Trial, text: str) -> Answer:
    """Extend ``text``, which says what was predicted, by the losses of both sides, which one seed can't decide."""
    difference = loss_of(own) - loss_of(reference)
    text += (f" One training seed, {own.spec.steps} steps: its test loss {number(own.loss)} is "
             f"{'below' if difference < 0 else 'not below'} the {number(reference.loss)} of the best uniform choice, "
             f"{d.name(reference.allocation)}. This is a demonstration: effort=normal compares on five unseen seeds.")
    return Answer(text, f"{signed(difference)} nats on one seed", "test split, paired, no interval; predicted was "
                  f"{signed(p.mean)} for {p.steps} steps, 95 % interval of the prediction {signed(p.low)} to "
                  f"{signed(p.high)}", "open")


def _confirmed(d: ReportData, c: Confirmation, where: str) -> Answer:
    mixed, reference = c.winner_kind == "mixed", d.name(c.reference)
    if d.study.instead:
        return _replaced(d, f"winner for {where}", "confirmed")
    if c.candidate == c.reference:
        if d.study.best_mixed is None:
            return Answer(f"The best uniform baseline for {where} is {reference}. No mixed allocation has a loss to "
                          "compare with it.", "", "", "open")
        return Answer(f"A uniform baseline wins for {where}: {reference}. The search found no mixed allocation that "
                      "is better at its own training seed.", "", "", "equal")
    enough, tone, expected = len(c.train_seeds) >= LEAST_SEEDS, "equal", c.mean + c.ahead
    if c.mean * expected < 0 and not c.candidate_failed:
        return _carried(d, c, where, expected)
    if mixed and c.high < 0 and enough:
        tone, text = "better", (
            f"Mixed bits and ranks fine-tune {where} better than the best uniform baseline ({reference}): "
            f"{abs(c.mean):.4f} nats lower loss, {100 * -math.expm1(c.mean):.1f} % lower perplexity.")
    elif mixed and c.high < 0:
        tone, text = "open", (
            f"Mixed bits and ranks are ahead of the best uniform baseline ({reference}) for {where} on "
            f"{len(c.train_seeds)} unseen training seeds: {abs(c.mean):.4f} nats lower loss; {LEAST_SEEDS} seeds are "
            "needed to call that better.")
    elif mixed:
        text = (f"Mixed bits and ranks were chosen for {where}, but their advantage over the best uniform baseline "
                f"({reference}) is not resolved: the interval of the difference includes 0.")
    else:
        verdict = "failed" if c.candidate_failed else "was not better beyond doubt" if c.low <= 0 else \
            "was worse" if enough else "had a higher loss"
        text = (f"A uniform baseline wins for {where}: {reference}. The best mixed allocation found {verdict} on "
                "unseen training seeds.")
    shown = (f"{signed(c.mean)} nats", _interval(d, c)) if c.train_seeds else ("", "")
    return Answer(text, *shown, tone)


def _carried(d: ReportData, c: Confirmation, where: str, expected: float) -> Answer:
    """State a choice that learned rates turned over: what was measured, and what is expected of a longer training."""
    kind, other = ("A mixed", "uniform") if c.winner_kind == "mixed" else ("A uniform", "mixed")
    name = d.name(c.candidate if c.winner_kind == "mixed" else c.reference)
    return Answer(f"{kind} allocation was chosen for {where}: {name}. After {c.steps} steps the {other} one is ahead. "
                  f"Learned rates expect {signed(expected)} nats for the mixed one after {d.study.objective_steps} "
                  "steps.",
                  f"{signed(c.mean)} nats", _interval(d, c), "open")


def _interval(d: ReportData, c: Confirmation) -> str:
    """State interval, seeds and steps of the comparison, and what is predicted beyond these."""
    wanted = d.study.objective_steps
    beyond = "" if c.steps >= wanted else f"; {signed(c.mean + c.ahead)} predicted for {wanted} steps"
    return (f"95 % interval {signed(c.low)} to {signed(c.high)}; {len(c.train_seeds)} unseen training seeds, "
            f"{c.steps} steps, {c.split} split, paired{beyond}")


def _unconfirmed(d: ReportData, where: str) -> Answer:
    best, uniform, difference = d.study.incumbent, d.study.best_uniform, unconfirmed_difference(d)
    missing = "not confirmed on unseen training seeds"
    if best is None or uniform is None or difference is None:
        return Answer(f"There is no uniform baseline to compare with yet for {where}.", "", missing, "open")
    reference = d.name(uniform.allocation)
    text = (f"So far no allocation of {where} beats the best uniform baseline, {reference}." if best is uniform else
            f"The best allocation of {where} so far is {d.name(best.allocation)}; the best uniform baseline is "
            f"{reference}.")
    expected = d.study.value(best) - d.study.value(uniform)
    beyond = "" if expected == difference else f"; {signed(expected)} predicted for {d.study.objective_steps} steps"
    return Answer(text, f"{signed(difference)} nats", f"validation loss, one training seed{beyond}; {missing}", "open")


def unconfirmed_difference(d: ReportData) -> float | None:
    """Validation loss of the incumbent less that of the best uniform baseline (nats), at the search's one seed."""
    best, uniform = d.study.incumbent, d.study.best_uniform
    return None if best is None or uniform is None else loss_of(best) - loss_of(uniform)


def versus(d: ReportData) -> str:
    """Difference to the best uniform baseline in a few words, with its interval where it was confirmed."""
    c, p, difference = d.confirmation, d.prediction, unconfirmed_difference(d)
    if d.study.instead == "reference":
        return ITSELF
    if c is not None and d.study.instead == "candidate":
        return f"{signed(c.mean)} [{signed(c.low)}, {signed(c.high)}] mixed"
    if d.study.instead:
        return "not confirmed" if p is None else "not predicted"
    beside = compared(d.study)
    if beside is not None and beside.difference is not None:
        return f"{signed(beside.difference)} on one seed"
    if p is not None:
        if p.uniform:
            return f"{ITSELF}, as predicted"
        return f"{signed(p.mean)} [{signed(p.low)}, {signed(p.high)}] predicted, not searched"
    if d.study.given:
        return "not searched"
    if c is not None and c.candidate_failed and not c.train_seeds:
        return "mixed failed on unseen seeds"
    if c is not None:
        compares = c.candidate != c.reference
        return f"{signed(c.mean)} [{signed(c.low)}, {signed(c.high)}] {c.winner_kind}" if compares else ITSELF
    return DASH if difference is None else f"{signed(difference)} not confirmed"


def comparison(d: ReportData) -> list[Row]:
    """Return winner, best mixed, best uniform baseline and references (QLoRA, 16-bit LoRA), in this order.

    An allocation of several roles is one line, e.g. ``"winner = best uniform"``. Where a predicted allocation was
    compared on one seed, the lines are what was trained for that, and the untuned model.
    """
    beside = compared(d.study)
    if beside is not None:
        return _one_seed_rows(d, beside)
    c = d.confirmation
    tests: dict[Allocation, float] = {}
    untried = None if d.study.instead else "predicted" if d.prediction else "given" if d.study.given else None
    leader = untried or ("winner" if c is not None or d.ended else "best so far")
    if d.study.untried and d.winner is not None and d.final_loss is not None:
        tests[d.winner] = d.final_loss
    chosen: list[tuple[str, Allocation, str | None]] = [] if d.winner is None else [(leader, d.winner, None)]
    if c is not None:
        if c.train_seeds:
            tests = {c.candidate: float(np.mean(c.candidate_losses)), c.reference: float(np.mean(c.reference_losses))}
        chosen += [] if c.candidate in (c.reference, d.winner) else [("best mixed", c.candidate, None)]
        chosen.append(("best uniform", c.reference, None))
    elif d.prediction is not None and d.prediction.reference is not None:
        chosen.append(("best uniform", d.prediction.reference, None))
    elif d.study.best_uniform is not None:
        chosen.append(("best uniform", d.study.best_uniform.allocation, None))
    references = (("QLoRA", d.reference("nf4", 16)), ("LoRA, 16-bit", d.reference("fp16", 16)))
    chosen += [(role, e.allocation, e.spec.codes) for role, e in references if e is not None]
    roles: dict[tuple[Allocation, str | None], str] = {}
    for role, allocation, codes in chosen:
        known = roles.get((allocation, codes))
        roles[allocation, codes] = role if known is None else f"{known} = {role}"
    return [_row(d, role, allocation, codes, None if codes else tests.get(allocation))
            for (allocation, codes), role in roles.items()]


def _row(d: ReportData, role: str, allocation: Allocation, codes: str | None, test_loss: float | None) -> Row:
    e, m = d.point(allocation, codes), d.measurement(allocation)
    predicted = e.predicted_bytes if e else m.predicted_bytes if m else None
    if predicted is None and d.ended and allocation == d.winner:
        predicted = int(d.study.last["end"]["predicted_bytes"])
    measured = m.measured_bytes if m else e.result.measured_bytes if e else None
    fits = None if predicted is None else max(predicted, measured or 0) <= d.header.budget_bytes \
        and (m is None or m.fits) and d.study.admits(d.bits(allocation))
    return Row(role, d.name(allocation, codes), d.average_bits(allocation), float(np.average(allocation.ranks)),
               e.loss if e else None, test_loss, predicted, measured, fits)


def _one_seed_rows(d: ReportData, beside: Compared) -> list[Row]:
    trials = (("predicted", beside.predicted), ("best uniform", beside.uniform), ("QLoRA", beside.qlora))
    rows = []
    for role, e in trials:
        if e is not None:
            a, m = e.allocation, d.measurement(e.allocation)
            rows.append(Row(role, d.name(a, e.spec.codes), d.average_bits(a), float(np.average(a.ranks)), None, e.loss,
                            e.predicted_bytes, e.result.measured_bytes if m is None else m.measured_bytes,
                            e.within(d.header.budget_bytes) and d.study.admits(e.bits)))
    if beside.untuned is not None:
        rows.append(Row("untuned", "16-bit, no adapter", 16.0, 0.0, None, beside.untuned, None, None, None))
    return rows


def gap_closed(d: ReportData) -> str | None:
    """Return the share of the gap from QLoRA to 16-bit LoRA that the winner closes, as text with its caveats.

    All losses are of the search's own training seed on the validation split. The text says "unresolved" where the gap
    is below ``CLOSED_GAP_ERRORS`` standard errors; ``None`` where one of the three trials is missing.
    """
    qlora, lora, best = d.reference("nf4", 16), d.reference("fp16", 16), d.winner_point
    if not (qlora and lora and best):
        return None
    gap = loss_of(qlora) - loss_of(lora)
    error = math.hypot(qlora.result.loss_se or 0.0, lora.result.loss_se or 0.0)
    if gap <= 0:
        return f"unresolved: with one seed each, 16-bit LoRA is no better than QLoRA ({signed(-gap)} nats)"
    if gap < CLOSED_GAP_ERRORS * error:
        return (f"unresolved: QLoRA and 16-bit LoRA, each trained with one seed, differ by {signed(gap)}, under "
                f"{CLOSED_GAP_ERRORS} standard errors of their losses")
    share = 100 * (loss_of(qlora) - loss_of(best)) / gap
    return f"{number(share, 0)} % (one training seed, validation split, not paired)"


def lines(d: ReportData) -> list[str]:
    """Average bits, gap closed and cost, one line each."""
    out = []
    if d.winner is not None and d.ended:
        bits = d.average_bits(d.winner)
        metadata = metadata_bits(d.study.last["end"], d.header.unit_numel)
        out.append(f"Average bits: {bits:.2f} by parameters, {bits + metadata:.2f} with scales and zeros")
    gap = gap_closed(d)
    if gap is not None:
        out.append(f"Gap from QLoRA to 16-bit LoRA closed: {gap}")
    if d.study.given:
        return [*out, f"Time: {duration(d.wall_seconds)}"]
    overhead = d.study.overhead_seconds
    share = 100 * overhead / d.wall_seconds if d.wall_seconds > 0 else 0.0
    return [*out, f"Cost: {d.study.cost.tokens:,.0f} training tokens = {d.equivalents:.1f} full-trial equivalents in "
            f"{duration(d.wall_seconds)}; the search itself took {duration(overhead)} of it ({share:.1f} %)"]


def allocation_line(d: ReportData) -> str:
    """Bits and ranks of the winner on one line; a dash without a winner."""
    w = d.winner
    return DASH if w is None else describe_allocation(d.header.units, d.bits(w), w.ranks)
