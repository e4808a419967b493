"""Stage 2 of the published method for QR-Adaptor, which minimises the loss under the budget."""

from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.trust_region import TrustRegionBO
from qra_bo.space import FloatArray, IntArray


class LossTrustRegion(TrustRegionBO):
    """The same search with another objective. Raises ``ConfigError`` if an option is out of its range."""

    def __init__(self, problem: SearchProblem, *, n_initial: int = 5, radius: int = 8, largest_radius: int = 8,
                 tolerance: float = 1e-4, max_candidates: int = 4000) -> None:
        super().__init__(problem, n_initial=n_initial, radius=radius, largest_radius=largest_radius,
                         tolerance=tolerance, max_candidates=max_candidates)

    def _objective(self, rows: IntArray, losses: FloatArray) -> FloatArray:
        return -losses
