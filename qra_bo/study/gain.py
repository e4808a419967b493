"""What the final fine-tune changed: the delivered adapter against the model as it was before any training."""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from qra_bo.finetune.data.records import BlockFacts
from qra_bo.study.events import Interval
from qra_bo.study.intervals import text_interval
from qra_bo.study.state import Study
from qra_bo.utils.formatting import number, signed


class GainKind(StrEnum):
    """Whether training helped, by the interval over held-out text."""

    BETTER = "better than untuned"
    UNRESOLVED = "not resolved"
    WORSE = "worse than untuned"


LEADS = {GainKind.BETTER: "Training helped", GainKind.UNRESOLVED:
         "It is not shown that training helped (more records, more steps or a larger data.held_out may show it)",
         GainKind.WORSE: "WORSE THAN UNTUNED: training made the model worse; lower adapter.lr, or look at the data"}


@dataclass(frozen=True, slots=True)
class Gain:
    """Test losses (nats) before and after training; ``versus`` is their difference on the same sequences, with an
    interval for other text, ``None`` of a single sequence."""

    kind: GainKind
    before: float
    after: float
    versus: Interval | None


def gain_of(study: Study) -> Gain | None:
    """Return what was gained; ``None`` before the final fine-tune."""
    untuned, final = study.untuned, study.final
    if untuned is None or final is None:
        return None
    versus = text_interval(final.sequences, untuned.sequences)
    if versus is not None:  # no loss falls below 0
        versus = replace(versus, low=max(versus.low, -untuned.loss))
    kind = GainKind.UNRESOLVED if versus is None or versus.includes_zero else \
        GainKind.BETTER if versus.mean < 0 else GainKind.WORSE
    return Gain(kind, untuned.loss, final.loss, versus)


def told_gain(study: Study) -> str:
    """Return the gain as one sentence, the same wherever it is shown; empty before the final fine-tune."""
    gain, final = gain_of(study), study.final
    if gain is None or final is None:
        return ""
    interval = "one test sequence, no interval" if gain.versus is None else \
        f"95 % interval over text {signed(gain.versus.low)} to {signed(gain.versus.high)}"
    before, after = (f"{math.exp(min(loss, 700)):.4g}" for loss in (gain.before, gain.after))
    n = len({(*s, i)[2] for i, s in enumerate(final.sequences)})
    tested = f"tested on {sum(s[1] for s in final.sequences):,} tokens of {n:,} record{'' if n == 1 else 's'}"
    trained = cut = ""
    if found := study.provenance.get("data_facts"):
        facts, train = BlockFacts(**found), study.header.config["train"]
        step = train["batch"] * train["accumulate"]
        trained = f" of {step} sequences, drawn from {facts.records:,} records ({facts.used_tokens:,} tokens)"
        cut = facts.told_cut(train["length"])
    return (f"{LEADS[gain.kind]}: untuned -> tuned test loss {number(gain.before)} -> {number(gain.after)} nats per "
            f"token ({signed(gain.after - gain.before)}; {interval}), perplexity {before} -> {after}, after "
            f"{final.kept_step:,} steps{trained}, {tested}.{cut and f' In training, {cut}.'}")
