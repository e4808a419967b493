"""Where trials run: in this process, in worker processes of this machine, or on Ray.

An executor is handed trials, survives workers that die, hang or run out of memory, and returns results.
"""

from qra_bo.execution.base import Executor, InProcessExecutor, OracleSpec
from qra_bo.execution.jobs import Limits
from qra_bo.execution.local import LocalExecutor
from qra_bo.execution.messages import ProfileResult

__all__ = ["Executor", "InProcessExecutor", "Limits", "LocalExecutor", "OracleSpec", "ProfileResult"]
