"""What the results say, in words: the answer in one sentence, the comparison, and whether to trust it."""

import math
from dataclasses import dataclass

import numpy as np

from qra_bo.report.data import Confirmation, ReportData
from qra_bo.report.text import number, signed, size
from qra_bo.space import Allocation
from qra_bo.study.intervals import LEAST_SEEDS, spearman
from qra_bo.study.results import metadata_bits
from qra_bo.trials import Fidelity, Trial, TrialState

CLOSED_GAP_ERRORS = 3
"""Standard errors that a gap must span before shares of it are quoted."""
FAILURES = {TrialState.OOM: "out of memory", TrialState.DIVERGED: "diverged", TrialState.FAILED: "failed"}
SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for ``--max-lora-rank``."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result in one sentence.

    Args:
        sentence: What was found.
        figure: The one number with its unit, or empty.
        interval: Its interval and what it rests on, or what is missing.
        tone: ``"better"``, ``"equal"`` (not resolved, or the uniform choice wins) or ``"open"`` (not yet confirmed).
    """

    sentence: str
    figure: str
    interval: str
    tone: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the comparison; losses in nats per token, ``None`` where not evaluated."""

    role: str
    name: str
    average_bits: float
    average_rank: float
    search_loss: float | None
    test_loss: float | None
    predicted_bytes: int | None
    measured_bytes: int | None
    fits: bool | None


@dataclass(frozen=True, slots=True)
class Check:
    """One line of "Can I trust this?": ``status`` is ``"ok"``, ``"caution"`` or ``"missing"``."""

    status: str
    title: str
    text: str


def answer(d: ReportData) -> Answer:
    """The answer in one sentence, with its interval where there is one."""
    where = f"within {size(d.header.budget_bytes)} ({d.header.scope} memory)"
    if d.winner is None:
        state = "yet" if d.state == "unfinished" else "before the run ended"
        return Answer(f"No allocation of {d.header.model} {where} has been evaluated {state}.", "", "", "open")
    if d.confirmation is None:
        return _unconfirmed(d, where)
    return _confirmed(d, d.confirmation, where)


def _confirmed(d: ReportData, c: Confirmation, where: str) -> Answer:
    seeds = f"{len(c.train_seeds)} unseen training seeds, {c.split} split, paired"
    reference = d.name(c.reference)
    chosen = c.candidate if c.winner_kind == "mixed" else c.reference
    if d.winner is not None and d.winner != chosen:
        return Answer(f"The winner for {d.header.model} {where}, {d.name(chosen)}, was measured over the budget; the "
                      f"next best that fits was delivered instead: {d.name(d.winner)}. Whether it beats the best "
                      "uniform choice was not confirmed.", "", "", "open")
    interval = f"95 % interval {signed(c.low)} to {signed(c.high)}; {seeds}"
    figure = f"{signed(c.mean)} nats"
    if c.winner_kind == "mixed" and c.high < 0 and len(c.train_seeds) < LEAST_SEEDS:
        return Answer(
            f"Mixed bits and ranks had {abs(c.mean):.4f} nats lower loss than the best uniform choice ({reference}) "
            f"for {d.header.model} {where}; {LEAST_SEEDS} unseen training seeds are needed to call that better.",
            figure, interval, "open")
    if c.winner_kind == "mixed" and c.high < 0:
        return Answer(
            f"Mixed bits and ranks fine-tune {d.header.model} better than the best uniform choice ({reference}) "
            f"{where}: {abs(c.mean):.4f} nats lower loss, {100 * -math.expm1(c.mean):.1f} % lower perplexity.",
            figure, interval, "better")
    if c.winner_kind == "mixed":
        return Answer(
            f"Mixed bits and ranks were chosen for {d.header.model} {where}, but whether they beat the best uniform "
            f"choice ({reference}) is not resolved: the interval of the difference holds 0.", figure, interval, "equal")
    if c.candidate == c.reference:
        return Answer(f"A uniform choice wins for {d.header.model} {where}: {reference}. The search found no mixed "
                      "allocation that is better at its own training seed.", "", "", "equal")
    enough = len(c.train_seeds) >= LEAST_SEEDS
    verdict = "failed" if c.candidate_failed else "was not better beyond doubt" if c.low <= 0 else \
        "was worse" if enough else "had a higher loss"
    return Answer(f"A uniform choice wins for {d.header.model} {where}: {reference}. The best mixed allocation "
                  f"found {verdict} on unseen training seeds.", figure, interval, "equal")


def _unconfirmed(d: ReportData, where: str) -> Answer:
    best, uniform = d.incumbent, d.best_uniform
    missing = "not confirmed on unseen training seeds"
    if best is None or uniform is None or best.loss is None or uniform.loss is None:
        return Answer(f"There is no uniform choice to compare with yet for {d.header.model} {where}.", "", missing,
                      "open")
    name, reference = d.name(best.allocation), d.name(uniform.allocation)
    if best is uniform:
        sentence = f"So far no allocation of {d.header.model} {where} beats the best uniform choice, {reference}."
    else:
        sentence = f"The best allocation of {d.header.model} so far {where} is {name}; the best uniform choice is " \
                   f"{reference}."
    return Answer(sentence, f"{signed(best.loss - uniform.loss)} nats",
                  f"validation loss, one training seed; {missing}", "open")


def comparison(d: ReportData) -> list[Row]:
    """Winner, best uniform and references, in this order."""
    c = d.confirmation
    tests: dict[Allocation, float] = {}
    if c is not None:
        tests = {c.candidate: float(np.mean(c.candidate_losses)), c.reference: float(np.mean(c.reference_losses))}
    chosen: list[tuple[str, Allocation, str | None]] = []
    leads = "winner" if c is not None or d.end is not None else "best so far"
    if d.winner is not None:
        chosen.append((leads, d.winner, None))
    if c is not None:
        chosen += [("best mixed", c.candidate, None), ("best uniform", c.reference, None)]
    elif d.best_uniform is not None:
        chosen.append(("best uniform", d.best_uniform.allocation, None))
    for role, fmt in (("QLoRA", "nf4"), ("LoRA, 16-bit", "fp16")):
        e = d.reference(fmt, 16)
        if e is not None:
            chosen.append((role, e.allocation, e.spec.codes))
    rows: dict[tuple[Allocation, str | None], Row] = {}
    for role, allocation, codes in chosen:
        known, test = rows.get((allocation, codes)), None if codes else tests.get(allocation)
        if known is None:
            rows[allocation, codes] = _row(d, role, allocation, codes, test)
        elif known.role == leads and role != "best mixed":
            rows[allocation, codes] = _row(d, f"{leads} = {role}", allocation, codes, test)
    return list(rows.values())


def _row(d: ReportData, role: str, allocation: Allocation, codes: str | None, test_loss: float | None) -> Row:
    e, m = d.point(allocation, codes), d.measurement(allocation)
    predicted = e.predicted_bytes if e is not None else m.predicted_bytes if m is not None else None
    measured = m.measured_bytes if m is not None else e.result.measured_bytes if e is not None else None
    return Row(role, d.name(allocation, codes), d.average_bits(allocation),
               float(np.average(allocation.ranks)), e.loss if e is not None else None, test_loss, predicted, measured,
               None if predicted is None else predicted <= d.header.budget_bytes)


def gap_closed(d: ReportData) -> str | None:
    """Share of the gap from QLoRA to 16-bit LoRA that the winner closes, from the search's own seed; or ``None``."""
    qlora, lora = d.reference("nf4", 16), d.reference("fp16", 16)
    best = None if d.winner is None else d.point(d.winner)
    if not (qlora and lora and best):
        return None
    gap = _value(qlora) - _value(lora)
    error = math.hypot(qlora.result.loss_se or 0.0, lora.result.loss_se or 0.0)
    if gap < CLOSED_GAP_ERRORS * error or gap <= 0:
        return (f"unresolved, since QLoRA and 16-bit LoRA, each trained with one seed, differ by {signed(gap)}: under "
                f"{CLOSED_GAP_ERRORS} standard errors of their losses")
    share = 100 * (_value(qlora) - _value(best)) / gap
    return f"{number(share, 0)} % (one training seed, validation split, not paired)"


def average_bits(d: ReportData) -> str | None:
    """The delivered allocation's, without and with scales and zeros; ``None`` before the run has ended."""
    if d.winner is None or d.end is None:
        return None
    code = d.average_bits(d.winner)
    metadata = metadata_bits(d.end, d.header.unit_numel)
    return f"{code:.2f} by parameters, {code + metadata:.2f} with scales and zeros"


def low_high(d: ReportData) -> list[tuple[float, Trial]]:
    """Loss at low fidelity beside the evaluation at high fidelity, of every allocation where both are known.

    The low loss is that of an evaluation at low fidelity, or was recorded on the way to the high one: low fidelity is
    a prefix of it under the same schedule.
    """
    low = {(e.allocation, e.spec.train_seed): e.loss for e in d.trials
           if e.ok and e.fidelity is Fidelity.LOW and e.spec.split == "validation"}
    found = [(low.get((e.allocation, e.spec.train_seed), dict(e.result.curve).get(d.header.low_steps or 0)), e)
             for e in d.points]
    return [(early, e) for early, e in found if early is not None]


def rank_correlation(a: list[float], b: list[float]) -> float | None:
    """Spearman's correlation; ``None`` under three pairs or where a side is constant."""
    return None if len(a) < 3 else spearman(a, b)


def server_rank(ranks: tuple[int, ...]) -> int:
    """The least ``--max-lora-rank`` of vLLM that takes an adapter of these ranks."""
    return next((n for n in SERVER_RANKS if n >= max(ranks)), max(ranks))


def checks(d: ReportData) -> list[Check]:
    """The lines of "Can I trust this?"."""
    out = [Check("ok", "Real fine-tuning", "Every loss comes from training the quantised model with its adapters.")
           if d.proxy_label is None else Check("caution", "Not real fine-tuning", f"{d.proxy_label}. It shows how the "
                                               "search behaves, not how the model does.")]
    return out + _confirmation_checks(d) + [_uniform_check(d)] + _codes_check(d) + _search_checks(d) + \
        _memory_checks(d) + [Check("caution", "The run warned", w) for w in d.warnings]


def _confirmation_checks(d: ReportData) -> list[Check]:
    c = d.confirmation
    if c is None:
        return [Check("missing", "Confirmation", "The winner was not trained again on unseen seeds, so its lead may be "
                      "luck: the best of many noisy losses is always flattered.")]
    n = len(c.train_seeds)
    enough = n >= LEAST_SEEDS
    text = (f"Winner and best uniform were each trained with {n} seeds that the search never used "
            f"({', '.join(map(str, c.train_seeds))}) and compared in pairs on the {c.split} split. Mean difference "
            f"{signed(c.mean)}, 95 % interval {signed(c.low)} to {signed(c.high)}.")
    out = [Check("ok" if enough else "caution", "Seeds and interval",
                 text if enough else text + f" At least {LEAST_SEEDS} seeds are needed to call it better.")]
    if c.winner_kind == "uniform":
        out.append(Check("ok", "A uniform choice won", "The search did not find a mixed allocation that is better, and "
                         "says so. This is common where uniform 8 bits fits the budget, or where training is short."))
    elif not c.resolved:
        out.append(Check("caution", "Not resolved", "The interval holds 0: on this evidence the mixed allocation and "
                         "the uniform one may be equally good."))
    return out + _rate_checks(d, c)


def _rate_checks(d: ReportData, c: Confirmation) -> list[Check]:
    """Whether the difference has the same sign at other learning rates."""
    rates = [] if d.rate_check is None else d.rate_check["rates"]
    if not rates:
        return []
    same = all(r["mean"] * c.mean > 0 for r in rates)
    told = "; ".join(f"{number(float(r['factor']), 2)} times the rate {signed(float(r['mean']))} "
                     f"({signed(float(r['low']))} to {signed(float(r['high']))}, {len(r['train_seeds'])} seeds)"
                     for r in rates)
    return [Check("ok" if same else "caution", "Other learning rates",
                  f"The same comparison at {told}. {'The sign is the same' if same else 'The sign is NOT the same'}.")]


def _uniform_check(d: ReportData) -> Check:
    """Whether uniform choices had their chance, and when they win."""
    tried = {e.allocation for e in d.points if e.stage == "baseline" and e.predicted_bytes <= d.header.budget_bytes}
    if d.best_uniform is None:
        return Check("missing", "Uniform choices", "None that fits was trained yet: there is nothing to compare with.")
    return Check("ok", "Uniform choices had their chance",
                 f"{len(tried)} of them that fit were trained before the search, at the same length and with the same "
                 f"rule for the learning rate; the best, {d.name(d.best_uniform.allocation)}, is what the winner is "
                 "compared with. Expect a uniform choice to win where 8 bits fit for all layers, where the budget "
                 "leaves no bytes over, or where training is short.")


def _codes_check(d: ReportData) -> list[Check]:
    """What codes the numbers are with, where that is not the libraries' choice."""
    if not d.has_chosen_codes:
        return []
    tokens = int(d.header.config["quantizer"].get("tokens", 0))
    return [Check("ok", "Codes", f"All allocations, uniform ones included, have codes chosen by GPTQ on {tokens:,} "
                  "tokens of the training text, in the bytes, formats and layers of the nearest, which QLoRA has.")]


def _search_checks(d: ReportData) -> list[Check]:
    out: list[Check] = []
    pairs = low_high(d)
    rho = rank_correlation([low for low, _ in pairs], [_value(high) for _, high in pairs])
    if rho is not None:
        out.append(Check("ok" if rho >= 0.5 else "caution", "Low fidelity",
                         f"Over {len(pairs)} allocations the loss after {d.header.low_steps} steps ranks the one "
                         f"after {d.header.high_steps} with Spearman {number(rho, 2)}."))
    check = d.ranking_check
    if check is not None and check["spearman"] is not None:
        kept = float(check["spearman"])
        out.append(Check("ok" if kept >= 0.5 else "caution", "Search length",
                         f"Trained for {check['steps']} steps instead of {d.header.high_steps}, the "
                         f"{len(check['losses'])} best allocations kept their order with Spearman {number(kept, 2)}."))
    out.append(_calibration_check(d))
    out += _surrogate_checks(d)
    failed = {state: n for state in TrialState if state is not TrialState.OK
              and (n := sum(e.result.state is state for e in d.trials))}
    if failed:
        text = ", ".join(f"{n} {FAILURES[state]}" for state, n in failed.items())
        out.append(Check("ok", "Failures are results", f"{text} of {len(d.trials)} evaluations; counted in the "
                         "cost and kept in the table."))
    out.append(Check("caution", "One search seed", f"The search ran with seed {d.header.seed}; another seed may find "
                     "another allocation of about the same loss. Repeat with seed=1, 2 to see the spread."))
    return out


def _surrogate_checks(d: ReportData) -> list[Check]:
    """How well the surrogate predicts each evaluation from the others; nothing where that was not recorded."""
    check = d.surrogate_check
    if check is None or "coverage_90" not in check:
        return []
    good, covered = check["spearman_good"], float(check["coverage_90"])
    trusted = good is not None and good >= 0.3 and covered >= 0.75
    return [Check("ok" if trusted else "caution", "Surrogate",
                  f"Left out in turn, {check['n']} evaluations are ranked with Spearman "
                  f"{number(check['spearman'], 2)}, the better half of them with {number(good, 2)}; its 50 % and 90 % "
                  f"intervals hold {100 * float(check['coverage_50']):.0f} % and {100 * covered:.0f} % of them; mean "
                  f"negative log-likelihood {signed(float(check['nll']), 2)} nats.")]


def _calibration_check(d: ReportData) -> Check:
    if d.calibration is None or not d.calibration["trials"]:
        return Check("missing", "Learning rate", "It was not calibrated in this run; differences between ranks may be "
                     "differences between step sizes.")
    scales = sorted({float(t["lr_scale"]) for t in d.calibration["trials"]})
    at_edge = len(scales) > 1 and d.study.lr_scale in (scales[0], scales[-1])
    edge = " The best scale lies at the edge of those tried: a wider range may do better." if at_edge else ""
    return Check("caution" if at_edge else "ok", "Learning rate",
                 f"Calibrated on uniform choices over {len(scales)} scales before the search (rule "
                 f"{d.calibration['rule']}, {float(d.calibration['lr']):.2g}), the same for all that is "
                 f"compared.{edge}")


def _memory_checks(d: ReportData) -> list[Check]:
    out = []
    for m in d.measured:
        name = d.name(m.allocation)
        if m.measured_bytes is None:
            out.append(Check("missing", "Memory", f"{name}: the peak was not measured on this device; "
                             f"{size(m.predicted_bytes)} is predicted."))
            continue
        over = 100 * (m.predicted_bytes / m.measured_bytes - 1)
        verdict = "fits" if m.fits else "does NOT fit; the next best that fits was taken"
        out.append(Check("ok" if m.fits else "caution", "Memory",
                         f"{name}: {size(m.predicted_bytes)} predicted, {size(m.measured_bytes)} measured (prediction "
                         f"{signed(over, 1)} %), {verdict} within {size(d.header.budget_bytes)}."))
    return out or [Check("missing", "Memory", "The winner has not been measured; its memory is a prediction.")]


def _value(e: Trial) -> float:
    return math.nan if e.loss is None else e.loss
