"""Sensitivities of units to quantisation and rank: profiles, their files, the warm start (Eq. 6) and the repair of
allocations that exceed the budget (Eqs. 4-5)."""
