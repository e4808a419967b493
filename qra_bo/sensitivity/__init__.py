"""Sensitivities of units to quantisation and rank: profiles, their files, the warm start (Eq. 6) and the repair of
allocations that exceed the budget (Eqs. 4-5)."""

from qra_bo.sensitivity.importance import fidelity_importance, plasticity_importance, warm_start
from qra_bo.sensitivity.io import PublishedSensitivity, given_profile, read_given, save_profile
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.sensitivity.repair import Repair

__all__ = ["PublishedSensitivity", "Repair", "SensitivityProfile", "fidelity_importance", "given_profile",
           "plasticity_importance", "read_given", "save_profile", "warm_start"]
