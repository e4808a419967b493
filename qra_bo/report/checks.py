"""The lines of "Can I trust this?": the evidence behind a result and the gaps in it."""

from dataclasses import dataclass
from typing import Any

from qra_bo.report.data import Confirmation, Prediction, ReportData
from qra_bo.report.text import number, signed, size
from qra_bo.study import LEAST_SEEDS, loss_of, spearman
from qra_bo.study.given import CALIBRATED
from qra_bo.trials import Fidelity, Trial, TrialState

FAILURES = {TrialState.OOM: "out of memory", TrialState.DIVERGED: "diverged", TrialState.FAILED: "failed"}
LEAST_PAIRS = 3
"""Pairs of losses that a correlation or a figure of two training lengths needs."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of evidence.

    Args:
        status: ``"ok"``, ``"caution"`` (a gap or a weak result) or ``"missing"`` (a stage that did not run).
        title: A few words for the list.
        text: Full sentences, with the numbers.
    """

    status: str
    title: str
    text: str


def checks(d: ReportData) -> list[Check]:
    """Return all lines in the order of the report; they need no more than the header and the trials."""
    real = Check("ok", "Real fine-tuning", "Every loss comes from training the quantised model with its adapters.")
    proxy = Check("caution", "Not real fine-tuning",
                  f"{d.proxy_label}. It shows the behaviour of the search, not of the model.")
    if d.prediction is not None:
        return [real if d.proxy_label is None else proxy, _prediction(d.prediction), *_codes(d), _learning_rate(d),
                *_memory(d), *_warnings(d)]
    if d.reason is not None:
        unknown = Check("missing", "No search", f"Nothing was searched: {d.reason}. No other allocation was trained, "
                        "so this run does not say whether another one is better.")
        return [real, unknown, *_codes(d), _learning_rate(d), *_memory(d), *_warnings(d)]
    return [real if d.proxy_label is None else proxy, *_confirmation(d), *_choice(d), *_stopped(d), _uniform(d),
            *_codes(d), *_lengths(d),
            _learning_rate(d), *_surrogate(d), *_failures(d),
            Check("caution", "One search seed", f"The search ran with seed {d.header.seed}; another seed may find "
                  "another allocation of about the same loss. Repeat with seed=1, 2 to see the spread."),
            *_memory(d), *_warnings(d)]


def _prediction(p: Prediction) -> Check:
    learned = f"exchange rates of bits and ranks learned from trials of {p.steps} steps ({'; '.join(p.sources)})"
    return Check("missing", "Predicted, not searched", f"Bits and ranks are the best under {learned}. No allocation "
                 "was trained to check it: the difference to the best uniform baseline is a prediction, and on another "
                 "model or at another length it may be further off than its interval "
                 f"({signed(p.low)} to {signed(p.high)}).")


def _warnings(d: ReportData) -> list[Check]:
    return [Check("caution", "Warning of the run", w) for w in d.warnings]


def _status(good: bool) -> str:
    return "ok" if good else "caution"


def _confirmation(d: ReportData) -> list[Check]:
    c = d.confirmation
    if c is None:
        return [Check("missing", "Confirmation", "The winner was not trained again on unseen seeds, so its lead may "
                      "be luck: the best of many noisy losses is biased downwards.")]
    if not c.train_seeds:
        return [Check("ok", "A uniform baseline won", "No mixed allocation gave a loss, so that there was nothing to "
                      "compare: no trial was spent on a confirmation.")]
    n, enough = len(c.train_seeds), len(c.train_seeds) >= LEAST_SEEDS
    out = [Check(_status(enough), "Seeds and interval",
                 f"Winner and best uniform baseline were each trained with {n} seeds that the search never used "
                 f"({', '.join(map(str, c.train_seeds))}) and compared in pairs on the {c.split} split. Mean "
                 f"difference {signed(c.mean)}, 95 % interval {signed(c.low)} to {signed(c.high)}."
                 + ("" if enough else f" At least {LEAST_SEEDS} seeds are needed to call it better."))]
    if c.winner_kind == "uniform":
        out.append(Check("ok", "A uniform baseline won", "The search found no mixed allocation that is better. This "
                         "is common where uniform 8 bits fits the budget, or where training is short."))
    elif c.low <= 0 <= c.high:
        out.append(Check("caution", "Not resolved", "The interval includes 0: on this evidence the mixed allocation "
                         "and the uniform one may be equally good."))
    return out + _other_rates(d, c)


def _choice(d: ReportData) -> list[Check]:
    """Say by what the mixed allocation was chosen that was confirmed."""
    found = d.last("choice")
    if found is None or found["other"] is None:
        return []
    agreement = found["spearman_good"]
    said = "undefined" if agreement is None else number(agreement, 2)
    if found["by"] == "surrogate":
        why = "The allocation that the surrogate expects to be best was taken, not the one with the least measured loss"
        return [Check("ok", "Choice of the winner", f"{why}: its leave-one-out Spearman over the better half of the "
                      f"trials is {said}." if agreement is not None else f"{why}.")]
    repeated = " Both were trained again on one more seed, and the lower mean decided." if found["losses"] else ""
    return [Check("caution", "Choice of the winner", "Measured losses decided, not the surrogate: its leave-one-out "
                  f"Spearman over the better half of the trials is {said}.{repeated}")]


def _stopped(d: ReportData) -> list[Check]:
    found = d.last("stopped")
    if found is None:
        return []
    return [Check("ok", "Stopped early", "The search ended before its effort was spent: the surrogate gave its best "
                  f"next proposal a chance of {100 * float(found['chance']):.0f} % to gain more than the noise of a "
                  f"comparison, below {100 * float(found['least']):.0f} % (effort.stop).")]


def _other_rates(d: ReportData, c: Confirmation) -> list[Check]:
    """Sign of the difference at other learning rates."""
    rates = (d.last("rate_check") or {}).get("rates", [])
    if not rates:
        return []
    same = all(r["mean"] * c.mean > 0 for r in rates)
    found = "; ".join(f"{number(float(r['factor']), 2)} times the rate {signed(float(r['mean']))} "
                      f"({signed(float(r['low']))} to {signed(float(r['high']))}, {len(r['train_seeds'])} seeds)"
                      for r in rates)
    return [Check(_status(same), "Other learning rates",
                  f"The same comparison at {found}. The sign is {'the' if same else 'NOT the'} same.")]


def _uniform(d: ReportData) -> Check:
    """Number of uniform baselines trained, and when to expect one to win."""
    best = d.study.best_uniform
    if best is None:
        return Check("missing", "Uniform baselines", "None that fits was trained yet: there is no comparison.")
    tried = {e.allocation for e in d.points if e.stage == "baseline" and e.within(d.header.budget_bytes)}
    return Check("ok", "Uniform baselines were trained first",
                 f"{len(tried)} of them that fit were trained before the search, at the same length and with the same "
                 f"rule for the learning rate. The winner is compared with the best, {d.name(best.allocation)}. Expect "
                 "a uniform baseline to win where 8 bits fit for all layers, where the budget leaves no bytes over, or "
                 "where training is short.")


def _codes(d: ReportData) -> list[Check]:
    if d.rounding == "rtn":
        return []
    tokens = int(d.header.config["quantizer"].get("tokens", 0))
    return [Check("ok", "Codes", f"All allocations, uniform baselines included, have codes chosen by GPTQ on "
                  f"{tokens:,} tokens of the training text. Bytes, formats and layers are those of round-to-nearest "
                  "codes, which QLoRA has.")]


def _lengths(d: ReportData) -> list[Check]:
    """Agreement of shorter and longer trainings on the order of allocations."""
    out, pairs, longer = [], low_high(d), d.last("ranking_check")
    rho = spearman([low for low, _ in pairs], [loss_of(e) for _, e in pairs]) if len(pairs) >= LEAST_PAIRS else None
    if rho is not None:
        out.append(Check(_status(rho >= 0.5), "Low fidelity",
                         f"Over {len(pairs)} allocations the loss after {d.header.low_steps} steps ranks the one "
                         f"after {d.header.high_steps} with Spearman {number(rho, 2)}."))
    if longer is None and d.ended:
        out.append(Check("missing", "Search length", "Not shown: fewer than 4 allocations were trained longer, so that "
                         "it is open whether their order holds at a longer training."))
    if longer is not None and longer["spearman"] is not None:
        kept = float(longer["spearman"])
        out.append(Check(_status(kept >= 0.5), "Search length",
                         f"Trained for {longer['steps']} steps instead of {d.header.high_steps}, the "
                         f"{len(longer['losses'])} best allocations kept their order with Spearman {number(kept, 2)}."))
    return out


def _learning_rate(d: ReportData) -> Check:
    found: dict[str, Any] | None = d.last("calibration")
    if found is not None and "source" in found:
        return Check("ok" if found["source"] == CALIBRATED else "missing", "Learning rate",
                     f"{float(found['lr']):.2g} (rule {found['rule']}): {found['source']}.")
    if found is None or not found["trials"]:
        return Check("missing", "Learning rate", "It was not calibrated in this run; differences between ranks may be "
                     "differences between step sizes.")
    scales = sorted({float(t["lr_scale"]) for t in found["trials"]})
    at_edge = len(scales) > 1 and d.study.lr_scale in (scales[0], scales[-1])
    edge = " The best scale lies at the edge of those tried: a wider range may do better." if at_edge else ""
    return Check(_status(not at_edge), "Learning rate",
                 f"Calibrated on uniform baselines over {len(scales)} scales before the search (rule {found['rule']}, "
                 f"{float(found['lr']):.2g}), and the same for every compared allocation.{edge}")


def _surrogate(d: ReportData) -> list[Check]:
    """Leave-one-out quality of the surrogate; nothing where it was not recorded."""
    found = d.last("surrogate_check")
    if found is None or "coverage_90" not in found:
        return []
    good, covered = found["spearman_good"], float(found["coverage_90"])
    trusted = good is not None and good >= 0.3 and covered >= 0.75
    return [Check(_status(trusted), "Surrogate",
                  f"Left out in turn, {found['n']} trials are ranked with Spearman {number(found['spearman'], 2)}, the "
                  f"better half of them with {number(good, 2)}. Its 50 % and 90 % intervals cover "
                  f"{100 * float(found['coverage_50']):.0f} % and {100 * covered:.0f} % of them; the mean negative "
                  f"log-likelihood is {signed(float(found['nll']), 2)} nats.")]


def _failures(d: ReportData) -> list[Check]:
    counts = {text: sum(e.result.state is state for e in d.study.trials) for state, text in FAILURES.items()}
    found = ", ".join(f"{n} {text}" for text, n in counts.items() if n)
    return [Check("ok", "Failures are results", f"{found} of {len(d.study.trials)} trials; counted in the cost and "
                  "kept in the table.")] if found else []


def _memory(d: ReportData) -> list[Check]:
    out = []
    for m in d.measured:
        name = d.name(m.allocation)
        if m.measured_bytes is None:
            out.append(Check("missing", "Memory", f"{name}: the peak was not measured on this device; "
                             f"{size(m.predicted_bytes)} is predicted."))
            continue
        over = 100 * (m.predicted_bytes / m.measured_bytes - 1)
        verdict = "fits" if m.fits else "does NOT fit; the next best that fits was taken"
        out.append(Check(_status(m.fits), "Memory",
                         f"{name}: {size(m.predicted_bytes)} predicted, {size(m.measured_bytes)} measured (prediction "
                         f"{signed(over, 1)} %), {verdict} within {size(d.header.budget_bytes)}."))
    return out or [Check("missing", "Memory", "The winner has not been measured; its memory is a prediction.")]


def low_high(d: ReportData) -> list[tuple[float, Trial]]:
    """Low-fidelity loss beside the full-fidelity trial, of every allocation where both are known.

    Low fidelity is a prefix of full fidelity under the same schedule: its loss is that of a low-fidelity trial, or
    was recorded on the way to the full one.
    """
    low = {(e.allocation, e.spec.train_seed): e.loss for e in d.study.trials
           if e.ok and e.fidelity is Fidelity.LOW and e.spec.split == "validation"}
    found = [(low.get((e.allocation, e.spec.train_seed), dict(e.result.curve).get(d.header.low_steps or 0)), e)
             for e in d.points]
    return [(early, e) for early, e in found if early is not None]
