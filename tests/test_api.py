"""The Python interface: light to import, keywords as configuration."""

import subprocess
import sys

import pytest

import qra_bo
from qra_bo.api import configure
from qra_bo.utils.errors import ConfigError


def test_importing_loads_no_torch() -> None:
    code = ("import qra_bo, sys\nqra_bo.Allocation, qra_bo.SearchSpace, qra_bo.MemoryModel, qra_bo.Oracle\n"
            "qra_bo.search, qra_bo.plan(model='tiny', device='cpu')\nassert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keywords_equal_overrides() -> None:
    words = ["model=tiny", "task=memory", "budget=[uniform:4,4,1MB]", "effort=quick", "train.length=64",
             "train.checkpointing=true", "max_hours=null", "bits=[2,4]", "out='a b'"]
    made = configure(model="tiny", task="memory", budget=["uniform:4,4", "1MB"], effort="quick", max_hours=None,
                     bits=(2, 4), out="a b", train={"length": 64, "checkpointing": True})
    assert made.to_dict() == configure(words).to_dict()
    assert configure(["model=tiny"], **{"train.length": 64}).train.length == 64
    for name in ("it's", "naïve", "a=1,b=2", 'say "no"'):
        assert configure(model="tiny", out=name).out == name


@pytest.mark.parametrize("task", ["memory", "profile", "evaluate", "export", "report"])
def test_a_search_runs_no_other_task(task: str) -> None:
    with pytest.raises(ConfigError, match=f"got task={task}"):
        qra_bo.search(model="tiny", budget="9MB", task=task, out="run")
