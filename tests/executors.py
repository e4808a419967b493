"""The executor of runs in tests: a worker's start takes longer than what the tiny model does."""

from pathlib import Path

import pytest

from qra_bo.config import RunConfig
from qra_bo.execution.base import InProcessExecutor
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.pipeline.pricing import with_dtype


def in_process(config: RunConfig, folder: Path, room: int | None = None) -> InProcessExecutor:
    """Stands for ``pipeline.executors.make_executor``: the real oracle works in this process."""
    folder.mkdir(parents=True, exist_ok=True)
    return InProcessExecutor(make_oracle(with_dtype(config, folder).to_dict(), str(folder), room=room))


def work_in_this_process(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("qra_bo.pipeline.run.make_executor", in_process)
