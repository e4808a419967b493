"""From a checked configuration to finished runs: objects, one run, several budgets, the plan of the work ahead.

``build`` makes the objects, ``plan`` prices a run beforehand, ``run`` executes it in the folders of ``folders``.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"make_executor": "build", "make_memory": "build", "make_oracle": "build", "make_plan": "plan",
          "Result": "run", "run_one_budget": "run", "run_budgets": "run"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
