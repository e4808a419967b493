"""Where trials run: in this process, in worker processes of this machine, or on Ray.

An executor is handed trials, survives workers that die, hang or run out of memory, and returns results.
"""

from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec, ProfileResult
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.pool import Limits

__all__ = ["Executor", "InProcessExecutor", "Limits", "LocalExecutor", "OracleSpec", "ProfileResult"]
