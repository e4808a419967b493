"""From a checked configuration to finished runs: objects, one run, several budgets, the plan of the work ahead.

``run_one_budget`` and ``run_budgets`` are what ``qra_bo.search`` chooses from.
"""
