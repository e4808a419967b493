"""Stage 2 of the published method alone: Bayesian optimisation in a trust region (Eqs. 8-13)."""

from qra_bo.searchers.trust_region.searcher import TrustRegionBO

__all__ = ["TrustRegionBO"]
