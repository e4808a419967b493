"""The Python interface: light to import, keywords as configuration."""

import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Any

import numpy as np
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


@pytest.mark.parametrize(("given", "read"), [
    ({"seed": np.int64(3)}, {"seed": 3}), ({"adapter": {"lr": np.float64(0.25)}}, {"adapter": {"lr": 0.25}}),
    ({"max_average_bits": Fraction(7, 2)}, {"max_average_bits": 3.5}),
    ({"adapter.lr": Decimal("0.5")}, {"adapter.lr": 0.5}),
    ({"ranks": np.array([4, 8])}, {"ranks": [4, 8]}), ({"ranks": range(4, 6)}, {"ranks": [4, 5]}),
    ({"ranks": (r for r in (4, 8))}, {"ranks": [4, 8]}),
   ({"search.force": np.True_}, {"search.force": True}), ({"out": PurePath("a b")}, {"out": "a b"}),
    ({"config_dir": Path(__file__).parent}, {})])
def test_values_of_other_kinds_are_read(given: dict[str, Any], read: dict[str, Any]) -> None:
    assert configure(model="tiny", **given).to_dict() == configure(model="tiny", **read).to_dict()


@pytest.mark.parametrize("config", [5, "model=tiny", b"model=tiny", {"model": "tiny"}, Path("x"), [1], [None], [b"x"],
                                    [["+model=tiny"]], print])
def test_overrides_that_are_no_list_of_texts_are_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="must be a list of texts"):
        configure(config)


@pytest.mark.parametrize("changes", [
    {"seed": "x"}, {"seed": None}, {"task": "nope"}, {"train": {"length": 3}}, {"bits": "4"}, {"budget": "a lot"},
    {"ranks": [8, 4]}, {"allocation": "mix:3.8,2"}, {"max_average_bits": 0.5}])
def test_changes_of_a_configuration_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        configure(configure(model="tiny").with_changes(**changes))
    assert configure(model="tiny").with_changes(budget="8MB", ranks=[4]).to_dict() == \
        configure(model="tiny", budget="8MB", ranks=[4]).to_dict()


@pytest.mark.parametrize("value", [b"8MB", print, object(), lambda: 1, [print]])
def test_keywords_without_a_text_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="out must be"):
        configure(model="tiny", out=value)


@pytest.mark.parametrize("task", ["memory", "profile", "evaluate", "export", "report"])
@pytest.mark.parametrize("call", [qra_bo.search, qra_bo.allocate, qra_bo.fine_tune])
def test_a_run_is_no_other_task(call: Any, task: str) -> None:
    with pytest.raises(ConfigError, match=f"got task={task}"):
        call(model="tiny", budget="9MB", task=task, out="run")
