"""Methods that search by fine-tuning: the best uniform choice, QR-Adaptor, published AutoQRA, and ours."""

from dataclasses import dataclass, replace

from qra_bo.study.engine import RunOutcome
from qra_bo.table1.limits import Limit
from qra_bo.table1.published import calibration_and_anchors, published_changes, scaled_autoqra, scaled_qr_adaptor
from qra_bo.table1.recipe import Recipe
from qra_bo.table1.rows import ROWS, Found, WithinABudget
from qra_bo.table1.search import search
from qra_bo.table1.session import Session


@dataclass(frozen=True)
class Searched(WithinABudget):
    """Ours: the configured method on the configured ladders, also where memory is free.

    Args:
        gptq: Whether codes are chosen by GPTQ (``quantizer.rounding=gptq``), in the search as in what it comes to.
    """

    gptq: bool = False

    def takes(self, limit: Limit | None) -> bool:
        return limit is not None

    def signature(self, session: Session) -> str:
        return f"{session.config.effort.high_equivalents}eq{session.codes_name(self.tokens(session))}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return float(session.config.effort.high_equivalents)

    def find(self, session: Session, limit: Limit) -> Found:
        method = session.config.method
        outcome = search(session, self.name, limit, method.name, method.params, gptq_tokens=self.tokens(session))
        return self.found(session, outcome, f"method={method.name}")

    def tokens(self, session: Session) -> int | None:
        """As in ``Recipe``."""
        return session.gptq_tokens if self.gptq else None

    def found(self, session: Session, outcome: RunOutcome, note: str, init: str | None = None) -> Found:
        """What a search came to."""
        recipe = Recipe(outcome.found.allocation, init or session.config.adapter.init, None, self.tokens(session))
        return Found(recipe, outcome.study.search_cost.tokens, note)


@dataclass(frozen=True)
class BestUniform(Searched):
    """The best of all uniform choices that fit, and of *uniform filled*."""

    def takes(self, limit: Limit | None) -> bool:
        return limit is not None and limit.budget is not None

    def signature(self, session: Session) -> str:
        return f"anchors={session.config.effort.anchors}{session.codes_name(self.tokens(session))}"

    def equivalents(self, session: Session, limit: Limit) -> float:
        return calibration_and_anchors(session.config)

    def find(self, session: Session, limit: Limit) -> Found:
        return self.found(session, search(session, self.name, limit, None, gptq_tokens=self.tokens(session)), "")


@dataclass(frozen=True)
class AutoQRA(Searched):
    """The published algorithm on its ladder of ranks, its population and generations scaled to the same cost."""

    def signature(self, session: Session) -> str:
        return f"{super().signature(session)},ranks={list(session.config.table1.published_ranks)}"

    def find(self, session: Session, limit: Limit) -> Found:
        params = scaled_autoqra(session.config)
        outcome = search(session, self.name, limit, "autoqra", params, published_changes(session.config))
        e = params["evolution"]
        note = (f"ranks {list(session.config.table1.published_ranks)}, published defaults scaled to the cost: "
                f"population {e['population']}, {e['generations']} generations, {e['promote']} promoted")
        return self.found(session, outcome, note, "kaiming")


@dataclass(frozen=True)
class QRAdaptor(AutoQRA):
    """QR-Adaptor (arXiv 2505.03802): a Pareto-ranking genetic search, then Bayesian optimisation, one fidelity."""

    def takes(self, limit: Limit | None) -> bool:
        return limit is not None and limit.budget is not None

    def find(self, session: Session, limit: Limit) -> Found:
        changes = published_changes(session.config)
        changes["fidelity"] = replace(session.config.fidelity, low=None)
        params = scaled_qr_adaptor(session.config)
        outcome = search(session, self.name, limit, "qr_adaptor", params, changes)
        e = params["evolution"]
        return self.found(session, outcome, f"ranks {list(session.config.table1.published_ranks)}, population "
                                          f"{e['population']}, {e['generations']} generations", "kaiming")


for row in (BestUniform("best_uniform", "Best uniform that fits", key=True),
            BestUniform("best_uniform_gptq", "Best uniform that fits, codes by GPTQ", key=True, gptq=True),
            QRAdaptor("qr_adaptor", "QR-Adaptor"), AutoQRA("autoqra", "AutoQRA as published", key=True),
            Searched("ours", "Ours", key=True), Searched("ours_gptq", "Ours, codes by GPTQ", key=True, gptq=True)):
    ROWS.add(row.name, row)
