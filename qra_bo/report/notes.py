"""How a result was found, in sentences: facts that a reader needs, and no judgement of them (``study.health``)."""

from qra_bo.finetune.training.learning_rate import RATE_RULES, REFERENCE_RANK
from qra_bo.report.data import ReportData
from qra_bo.space.simple import BLIND_RULE
from qra_bo.study.header import CALIBRATED
from qra_bo.study.state import FRACTIONAL
from qra_bo.trials import TrialState

FAILURES = {TrialState.OOM: "out of memory", TrialState.DIVERGED: "diverged", TrialState.FAILED: "failed"}


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
