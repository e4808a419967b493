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


@pytest.mark.parametrize("name", qra_bo.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(qra_bo, name).__name__ == name
    assert name in dir(qra_bo)


def test_keywords_equal_overrides() -> None:
    words = ["model=tiny", "task=memory", "budget=[uniform:4,4,1MB]", "effort=quick", "train.length=64",
             "train.checkpointing=true", "max_hours=null", "bits=[2,4]", "out='a b'"]
    assert configure(model="tiny", task="memory", budget=["uniform:4,4", "1MB"], effort="quick", max_hours=None,
                     bits=(2, 4), out="a b", train={"length": 64, "checkpointing": True}) == configure(words)
    assert configure(["model=tiny"], **{"train.length": 64}).train.length == 64
    for name in ("it's", "naïve", "a=1,b=2", 'say "no"'):
        assert configure(model="tiny", out=name).out == name


def test_mistakes_in_keywords_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)train\.lenght.*effort") as caught:
        configure(model="tiny", train={"lenght": 64}, effort="fast")
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="a RunConfig is complete"):
        configure(configure(model="tiny"), seed=1)


def test_plan_is_short_and_plain() -> None:
    plan = qra_bo.plan(model="tiny", budget=["uniform:4,4", "10"], device="cuda")
    assert repr(plan) == "Plan(tiny, 4 units, uniform:4,4: int8, rank 3, 10: nothing fits)"
    assert plan._repr_html_().startswith("<table><caption>tiny: ")
    assert plan.to_json()["device"] == "cuda"
    assert repr(plan.memory).startswith("MemoryModel(tiny, peak, cuda, ")
