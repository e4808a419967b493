"""Surrogate models for ladder-valued (ordinal) designs; usable on their own with BoTorch.

A leaf package: it knows tensors and nothing of language models.
"""

from surrogates.errors import SurrogateError
from surrogates.fidelity import FidelityModel
from surrogates.gp import condition_on_pending, fit_gp, gp_predict
from surrogates.structured import Component, Design, StructuredModel, diagnostics, spearman

__all__ = ["Component", "Design", "FidelityModel", "StructuredModel", "SurrogateError", "condition_on_pending",
           "diagnostics", "fit_gp", "gp_predict", "spearman"]
