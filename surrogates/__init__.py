"""Surrogate models for ladder-valued (ordinal) designs; usable on their own with BoTorch.

A leaf package: it knows tensors and nothing of language models.
"""

from surrogates.diagnostics import Diagnostics, HeldOut, spearman
from surrogates.errors import SurrogateError, SurrogateFitError
from surrogates.fidelity import FidelityModel, FidelitySettings
from surrogates.gp import fit_gp, gp_predict
from surrogates.kernels import JointUnitKernel, OrdinalMaternKernel
from surrogates.structured import Component, Design, StructuredModel, StructuredSettings

__all__ = ["Component", "Design", "Diagnostics", "FidelityModel", "FidelitySettings", "HeldOut", "JointUnitKernel",
           "OrdinalMaternKernel", "StructuredModel", "StructuredSettings", "SurrogateError", "SurrogateFitError",
           "fit_gp", "gp_predict", "spearman"]
