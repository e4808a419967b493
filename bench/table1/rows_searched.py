"""Methods that search by fine-tuning: the best uniform choice, QR-Adaptor, published AutoQRA, and qra_bo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.published import calibration_and_baselines, published_changes, scaled_autoqra, scaled_qr_adaptor
from bench.table1.limits import Limit
from bench.table1.recipe import OWN, Recipe, codes_name, with_codes
from bench.table1.rows import Found, Row, WithCodes
from bench.table1.search import SIMPLE, UNIFORM, search
from bench.table1.session import Session
from qra_bo.trials import Fidelity, Trial


@dataclass(frozen=True)
class Searched(WithCodes):
    """qra_bo: the configured method on the configured ladders, also without a limit.

    Args:
        finer: Whether it searches ``table1.finer_bits``. These rows apply to limits with a budget and without a limit
            on average bits, which is the paper's condition on its own ladder.
    """

    finer: bool = False

    def takes(self, limit: Limit | None) -> bool:
        return limit is not None and not (self.finer and (limit.budget is None or limit.max_average_bits is not None))

    def signature(self, session: Session) -> str:
        cost = session.config.effort.max_full_trials
        return f"{cost}eq{codes_name(self.tokens(session))}{self.ladder_name(session)}"

    def ladder_name(self, session: Session) -> str:
        """Return the ladder of bits, and the formats of chosen codes, where they are not the configured ones."""
        c, tokens = session.config, self.tokens(session)
        bits = session.options.finer_bits if self.finer else c.bits
        ladder = f",bits={list(bits)}" if self.finer else ""
        if tokens is None:
            return ladder
        formats = with_codes(c, tokens).quantizer.formats
        return f"{ladder},formats={[name for b in bits for name in formats[b]]}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return float(session.config.effort.max_full_trials)

    def find(self, session: Session, limit: Limit) -> Found:
        method = session.config.method
        return self.searched(session, limit, f"method={method.name}", method.name, method.target)

    def searched(self, session: Session, limit: Limit, note: str, method: str,
                 options: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None,
                 init: str | None = None) -> Found:
        """Run or resume a search, see ``search``; ``init`` replaces LoRA's own adapter initialisation."""
        tokens = self.tokens(session)
        changes = {"quantizer": with_codes(session.config, tokens).quantizer, **(changes or {})}
        if self.finer:
            changes["bits"] = session.options.finer_bits
        outcome = search(session, self.name, limit, method, options, changes)
        recipe = Recipe(outcome.found.allocation, init or OWN, gptq_tokens=tokens)
        notes = (note, stages_note(outcome.study.trials))
        return Found(recipe, outcome.study.search_cost.tokens, "; ".join(filter(None, notes)))


def stages_note(evaluations: Sequence[Trial]) -> str:
    """Return the number of trials in each of two stages, which a small effort may cut short; empty for one stage."""
    first = [e for e in evaluations if e.stage == "evolution"]
    second = sum(e.stage == "trust_region" for e in evaluations)
    if not first and not second:
        return ""
    low = sum(e.fidelity is Fidelity.LOW for e in first)
    return f"evaluated {low} at low and {len(first) - low} at high fidelity in the first stage, {second} in the second"


@dataclass(frozen=True)
class BestUniform(Searched):
    """The best of all uniform choices that fit, and of *uniform + filled ranks*; with ``mixes``, also by rule."""

    mixes: bool = False

    def takes(self, limit: Limit | None) -> bool:
        return super().takes(limit) and limit is not None and limit.budget is not None

    def signature(self, session: Session) -> str:
        baselines = session.config.effort.uniform_baselines
        return f"uniform_baselines={baselines}{codes_name(self.tokens(session))}{self.ladder_name(session)}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return calibration_and_baselines(session.config)

    def find(self, session: Session, limit: Limit) -> Found:
        return self.searched(session, limit, "", SIMPLE if self.mixes else UNIFORM)


@dataclass(frozen=True)
class AutoQRA(Searched):
    """The published algorithm on its ladder of ranks, its population and generations scaled to the same cost."""

    def signature(self, session: Session) -> str:
        return f"{super().signature(session)},ranks={list(session.options.published_ranks)}"

    def find(self, session: Session, limit: Limit) -> Found:
        params = scaled_autoqra(session.config)
        e = params["first"]
        note = (f"ranks {list(session.options.published_ranks)}, published defaults scaled to the cost: "
                f"population {e['population']}, {e['generations']} generations, {e['promote']} promoted")
        changes = published_changes(session.config, session.options.published_ranks)
        return self.searched(session, limit, note, "autoqra", params, changes, "kaiming")


@dataclass(frozen=True)
class QRAdaptor(AutoQRA):
    """QR-Adaptor (arXiv 2505.03802): a Pareto-ranking genetic search, then Bayesian optimisation, one fidelity."""

    def takes(self, limit: Limit | None) -> bool:
        return limit is not None and limit.budget is not None

    def find(self, session: Session, limit: Limit) -> Found:
        changes = published_changes(session.config, session.options.published_ranks)
        changes["fidelity"] = session.config.fidelity.with_changes(low=None)
        params = scaled_qr_adaptor(session.config)
        e = params["first"]
        note = (f"ranks {list(session.options.published_ranks)}, population {e['population']}, "
                f"{e['generations']} generations")
        return self.searched(session, limit, note, "qr_adaptor", params, changes, "kaiming")


SEARCHED: tuple[Row, ...] = (
    BestUniform("best_uniform", "Best uniform that fits", key=True),
    BestUniform("best_uniform_gptq", "Best uniform that fits, codes by GPTQ", key=True, gptq=True),
    BestUniform("best_uniform_finer_gptq", "Best uniform that fits, finer bits, codes by GPTQ", key=True,
                gptq=True, finer=True),
    BestUniform("best_simple_finer_gptq", "Best simple choice (mixes by rule too), finer bits, codes by GPTQ", key=True,
                gptq=True, finer=True, mixes=True),
    QRAdaptor("qr_adaptor", "QR-Adaptor"), AutoQRA("autoqra", "AutoQRA as published", key=True),
    AutoQRA("autoqra_gptq", "AutoQRA as published, codes by GPTQ", gptq=True),
    Searched("qra_bo", "qra_bo", key=True),
    Searched("qra_bo_gptq", "qra_bo, codes by GPTQ", key=True, gptq=True),
    Searched("qra_bo_finer_gptq", "qra_bo, finer bits, codes by GPTQ", key=True, gptq=True, finer=True))
