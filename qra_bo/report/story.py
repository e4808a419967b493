"""Answer and comparison of a run in plain sentences, and how it was found: the text that terminal, page and
``report.json`` share. Judgements are those of ``study.verdict`` and ``study.health``."""

from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from qra_bo.finetune.training.learning_rate import RATE_RULES, REFERENCE_RANK
from qra_bo.memory.budget import format_size
from qra_bo.report.data import ReportData
from qra_bo.report.text import ITSELF, describe_allocation, duration
from qra_bo.space import Allocation
from qra_bo.space.space import BLIND_RULE
from qra_bo.study.gain import GainKind, gain_of
from qra_bo.study.header import CALIBRATED
from qra_bo.study.results import metadata_bits
from qra_bo.study.state import COMPARISON, FRACTIONAL
from qra_bo.study.verdict import VerdictKind
from qra_bo.trials import Trial, TrialState
from qra_bo.utils.formatting import DASH, number

COLUMNS = ("", "allocation", "bits", "rank", "search loss", "test loss", "predicted", "measured", "fits")
"""Headings of the comparison, in the order of ``Row.cells``."""
SHOWN = 300
"""Most characters of a prompt that are shown: its end."""
SETTLED = (VerdictKind.UNRESOLVED, VerdictKind.SIMPLE_WINS)
"""Verdicts by which a simple choice is as good, as far as is known."""
FAILURES = {TrialState.OOM: "out of memory", TrialState.DIVERGED: "diverged", TrialState.FAILED: "failed"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The result in one sentence, its one number with the unit, and the interval and evidence behind it.

    ``tone`` is ``"better"``, ``"equal"`` (not resolved, or the simple choice wins), ``"open"`` (not confirmed) or
    ``"worse"`` (than the untuned model).
    """

    sentence: str
    figure: str
    interval: str
    tone: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison; losses in nats per token, ``None`` where there is no trial.

    Args:
        role: E.g. ``"winner"``, ``"best simple"``, ``"QLoRA"``.
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
        sizes = (DASH if n is None else format_size(n) for n in (self.predicted_bytes, self.measured_bytes))
        return (self.role, self.name, f"{self.average_bits:.2f}", f"{self.average_rank:.2f}", number(self.search_loss),
                number(self.test_loss), *sizes, {None: DASH, True: "yes", False: "no"}[self.fits])


def answer(d: ReportData) -> Answer:
    """State the verdict, with its interval where there is one."""
    words, kind = d.told, d.verdict.kind
    where = f"{d.header.model} within {format_size(d.header.budget_bytes)} ({d.header.scope} memory)"
    tone, gain = "better" if kind is VerdictKind.BETTER else "equal" if kind in SETTLED else "open", gain_of(d.study)
    tone = "worse" if gain is not None and gain.kind is GainKind.WORSE else tone
    return Answer(f"{where}: {words.sentence}", words.figure, words.evidence, tone)


def sample(d: ReportData) -> list[tuple[str, str]]:
    """Return a held-out prompt and how the model goes on from it before and after training, with their names."""
    untuned, final = d.study.untuned, d.study.final
    if untuned is None or final is None or not untuned.prompt:
        return []
    prompt = untuned.prompt if len(untuned.prompt) <= SHOWN else f"... {untuned.prompt[-SHOWN:]}"
    return [("Prompt", prompt), ("Untuned", untuned.text), ("Tuned", final.text)]


def versus(d: ReportData) -> str:
    """Difference to the best simple choice in a few words, with its interval where it was confirmed."""
    if d.verdict.delivers_reference:
        return ITSELF
    return d.told.short or d.verdict.kind.value


def comparison(d: ReportData) -> list[Row]:
    """Return winner, best mixed, best simple and uniform choice and references (QLoRA, 16-bit LoRA), in this order.

    An allocation of several roles is one line, e.g. ``"winner = best uniform"``.
    """
    study, v, checks = d.study, d.verdict, _beside_prediction(d, "validation")
    beside = next(iter(_beside_prediction(d, "test").values()), None)
    c = study.confirmation
    tests: dict[Allocation, float] = {}
    if c is not None:
        tests = {a: float(np.mean(c.losses_of(a))) for a in (c.candidate, c.reference, c.uniform) if c.losses_of(a)}
    elif study.untried and d.winner is not None and study.final is not None:
        tests[d.winner] = study.final.loss
    untried = "predicted" if study.prediction else "given" if study.given else None
    untried = untried if d.winner == study.chosen else None
    leader = untried or ("delivered" if study.untried else "winner" if c is not None or d.ended else "best so far")
    chosen: list[tuple[str, Allocation, str | None]] = [] if d.winner is None else [(leader, d.winner, None)]
    if c is not None and c.candidate not in (c.reference, d.winner):
        chosen.append(("best mixed", c.candidate, None))
    chosen += [("also checked", a, None) for a in checks if a not in (d.winner, v.reference, v.uniform)]
    simple = None if v.reference == v.uniform else v.reference
    chosen += [(role, a, None) for role, a in (("best simple", simple), ("best uniform", v.uniform)) if a is not None]
    references = (("QLoRA", d.reference("nf4", 16)), ("LoRA, 16-bit", d.reference("fp16", 16)))
    chosen += [(role, e.allocation, e.spec.codes) for role, e in references if e is not None]
    roles: dict[tuple[Allocation, str | None], str] = {}
    for role, allocation, codes in chosen:
        known = roles.get((allocation, codes))
        roles[allocation, codes] = role if known is None else f"{known} = {role}"
    rows = [_row(d, role, allocation, codes, None if codes else tests.get(allocation),
                 None if codes else checks.get(allocation)) for (allocation, codes), role in roles.items()]
    return rows if beside is None else [*rows, replace(
        _row(d, "QLoRA", beside.allocation, beside.spec.codes, beside.loss, beside), search_loss=None)]


def _beside_prediction(d: ReportData, split: str) -> dict[Allocation, Trial]:
    """Return trials beside a prediction: on ``"test"`` of QLoRA, on ``"validation"`` the short ones that check it, of
    each allocation the one with the best of the learning rates that were tried on it."""
    best: dict[Allocation, tuple[float, Trial]] = {}
    for e in d.study.trials if d.study.prediction is not None else ():
        if e.stage == COMPARISON and e.spec.split == split and e.loss is not None:
            best[e.allocation] = min(best.get(e.allocation, (e.loss, e)), (e.loss, e), key=itemgetter(0))
    return {a: e for a, (_, e) in best.items()}


def tested(d: ReportData) -> str:
    """Say which trainings the test losses of the comparison are of."""
    if d.study.untried:
        also = "" if not _beside_prediction(d, "test") else f", of QLoRA after {d.header.high_steps} steps"
        p = d.study.prediction
        return f"after the final fine-tune{also}{'' if p is None else f'; search loss: after {p.checked_steps} steps'}"
    steps = d.study.confirmation_steps if d.study.confirmation is None else d.study.confirmation.steps
    return f"mean over unseen training seeds, after {steps} steps"


def _row(d: ReportData, role: str, allocation: Allocation, codes: str | None, test_loss: float | None,
         trial: Trial | None = None) -> Row:
    e, m = trial or d.point(allocation, codes), d.study.measurement(allocation)
    predicted = e.predicted_bytes if e else m.predicted_bytes if m else None
    if predicted is None and d.study.end is not None and allocation == d.winner:
        predicted = d.study.end.predicted_bytes
    measured = m.measured_bytes if m else e.result.measured_bytes if e else None
    fits = None if predicted is None else max(predicted, measured or 0) <= d.header.budget_bytes \
        and (m is None or m.fits) and d.study.admits(d.bits(allocation))
    return Row(role, d.study.name(allocation, codes), d.average_bits(allocation), float(np.average(allocation.ranks)),
               e.loss if e else None, test_loss, predicted, measured, fits)


def lines(d: ReportData) -> list[str]:
    """The base's origin where its weights were quantised before, average bits and cost, one line each."""
    origin = d.study.provenance.get("base_origin")
    out = [] if origin is None else [f"Base: {origin}; every loss here, that of 16 bits too, is on these weights"]
    if d.winner is not None and d.study.end is not None:
        bits = d.average_bits(d.winner)
        metadata = metadata_bits(d.study.end, d.header.unit_numel)
        out.append(f"Average bits: {bits:.2f} by parameters, {bits + metadata:.2f} with scales and zeros")
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


def notes(d: ReportData) -> list[tuple[str, str]]:
    """Return (title, sentences) in the order of a run; they need no more than the header and the trials."""
    found = [("Predicted", _prediction(d)), ("Baselines", _baselines(d)), ("Codes", _codes(d)),
             ("Learning rate", _learning_rate(d)), ("Early stop", _stopped(d)), ("Choice of the winner", _choice(d)),
             ("Failures", _failures(d))]
    return [(title, text) for title, text in found if text]


def _prediction(d: ReportData) -> str:
    p = d.study.prediction
    return "" if p is None else (
        "The best allocation under exchange rates of bits and ranks, which were learned from earlier trials "
        f"({'; '.join(p.sources)}), the best fractional and the best uniform choice were trained for {p.checked_steps} "
        f"steps on one seed; the one expected to be best after {p.steps} steps is delivered.")


def _baselines(d: ReportData) -> str:
    if d.study.untried:
        return ""
    best = d.study.best_uniform
    if best is None:
        return "None that fits was trained yet."
    found = next((e for e in d.study.ranked if d.study.kind_of(e.allocation) == FRACTIONAL), None)
    also = "" if found is None else f", the best fractional one {d.study.name(found.allocation)}"
    tried = {e.allocation for e in d.points if e.stage == "baseline" and e.within(d.header.budget_bytes)}
    return (f"{len(tried)} simple choices that fit were trained, at the same length and with the same rule for the "
            f"learning rate. The best uniform one is {d.study.name(best.allocation)}{also}. A rule that "
            f"measures nothing decides which units of a fractional choice are wider: {BLIND_RULE}.")


def _codes(d: ReportData) -> str:
    if d.rounding == "rtn":
        return ""
    tokens = d.header.config["quantizer"].get("tokens", 0)
    given = "10 tokens for each input of the widest linear" if tokens == "auto" else f"{tokens:,} tokens"
    return (f"All allocations, simple choices included, have codes chosen by GPTQ on {given} of the training text. "
            "Bytes, formats and layers are those of round-to-nearest codes, which QLoRA has.")


def _learning_rate(d: ReportData) -> str:
    found = d.study.calibration
    if found is None:
        return "It is not calibrated yet."
    factor = RATE_RULES[found.rule].factor(REFERENCE_RANK, d.study.final_steps / d.header.high_steps)
    in_final = "" if factor == 1.0 else f", {factor * found.learning_rate:.2g} in the final fine-tune"
    rate = f"{found.learning_rate:.2g} at rank {REFERENCE_RANK} in trials (rule {found.rule}){in_final}"
    if found.source is not None:
        return f"{rate}: {found.source}." + (
            "" if found.tried or found.source == CALIBRATED else " Another one may suit these ranks better.")
    if not found.trials:
        return f"{rate}, not calibrated in this run."
    return (f"{rate}, calibrated on uniform baselines over {len(found.tried)} rates, and the same for every "
            "allocation.")


def _stopped(d: ReportData) -> str:
    found = d.study.stopped
    went_on = found is not None and found.before in d.study.by_key  # with more effort
    return "" if found is None or went_on else (
        "The search ended before its effort was spent: the surrogate gave its best next proposal a chance of "
        f"{100 * found.chance:.0f} % to gain more than the noise of a comparison, below "
        f"{100 * found.least:.0f} % (effort.stop).")


def _choice(d: ReportData) -> str:
    """Say by what the mixed allocation was chosen that was compared on unseen seeds."""
    found = d.study.choice
    if found is None or found.other is None:
        return ""
    if found.by == "surrogate":
        return ("The allocation that the surrogate expects to be best was taken, not the one with the least measured "
                "loss.")
    return "The surrogate failed its own check: the least measured loss decided."


def _failures(d: ReportData) -> str:
    counts = {text: sum(e.result.state is state for e in d.study.trials) for state, text in FAILURES.items()}
    found = ", ".join(f"{n} {text}" for text, n in counts.items() if n)
    return found and f"{found} of {len(d.study.trials)} trials; counted in the cost and kept in the table."
