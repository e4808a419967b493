"""The default search: a structured surrogate over sensitivities, proposals by knapsacks."""

from qra_bo.searchers.structured.features import build_components
from qra_bo.searchers.structured.searcher import LEAST_CHECKED, StructuredSearch

__all__ = ["LEAST_CHECKED", "StructuredSearch", "build_components"]
