"""Sensitivities of units to quantisation and rank: profiles, their files, the warm start (Eq. 6) and the repair of
allocations that exceed the budget (Eqs. 4-5)."""

from qra_bo.sensitivity.importance import (
    fidelity_importance,
    min_max,
    plasticity_importance,
    scaled_by_value,
    sensitivity_scales,
    shrunk_sensitivity,
    warm_start,
)
from qra_bo.sensitivity.io import profile_from_json, profile_to_json, save_profile
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.sensitivity.repair import Repair

__all__ = ["Repair", "SensitivityProfile", "fidelity_importance", "min_max", "plasticity_importance",
           "profile_from_json", "profile_to_json", "save_profile", "scaled_by_value", "sensitivity_scales",
           "shrunk_sensitivity", "warm_start"]
