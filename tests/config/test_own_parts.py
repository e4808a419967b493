"""An oracle of the user's own package: one YAML in a --config-dir and nothing else."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qra_bo.config import RunConfig, config_from_dict, load_config
from qra_bo.execution import base
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.pipeline import oracles
from qra_bo.space import SearchSpace
from qra_bo.utils.errors import ConfigError, ContractError

OWN = f"name: mine\n_target_: {__name__}.make_oracle\nnoise: 0.001\n"


def make_oracle(config: RunConfig, space: SearchSpace, folder: Path, noise: float) -> SyntheticOracle:
    return SyntheticOracle(space, seed=config.seed, noise=noise, high_steps=config.fidelity.high, tokens_per_step=100,
                           eval_tokens=100, calibration_tokens=100, checkpoints=folder / "checkpoints")


class Silent:
    """Measures sensitivities and no loss."""

    def __init__(self, **options: object) -> None:
        self.describe = self.profile = lambda: options


@pytest.fixture(name="mine")
def write_config_dir(tmp_path: Path) -> str:
    (tmp_path / "conf" / "oracle").mkdir(parents=True)
    (tmp_path / "conf" / "oracle" / "mine.yaml").write_text(OWN)
    return str(tmp_path / "conf")


def test_own_oracle_is_made_from_its_yaml(mine: str, tmp_path: Path) -> None:
    config = load_config(["+model=tiny", "oracle=mine", "oracle.noise=0.5"], mine)
    assert isinstance(oracles.make_oracle(config.to_dict(), str(tmp_path)), SyntheticOracle)


@pytest.mark.parametrize(("given", "message"), [
    (["oracle.nose=0.5"], r"oracle\.nose: .*make_oracle has no such parameter; known: noise"),
    ([f"oracle._target_={__name__}.Silent", "oracle.noise=1"], r"oracle: .*Silent must have .*; it lacks evaluate"),
    (["oracle._target_=no.such.Oracle"], r"oracle\._target_: 'no\.such\.Oracle' can't be imported")])
def test_own_oracle_that_can_not_be_made_is_refused(given: list[str], message: str, mine: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        oracles.make_oracle(load_config(["+model=tiny", "oracle=mine", *given], mine).to_dict(), str(tmp_path))


@pytest.mark.parametrize(("what", "given"), [("describe", None), ("describe", {"path": Path()}),
                                             ("describe", {"loss": float("nan")}), ("profile", [1.0])])
def test_own_oracle_that_returns_something_else_is_told_so(what: str, given: object) -> None:
    oracle: Any = SimpleNamespace(**{what: lambda *_: given})
    with pytest.raises(ContractError, match=rf"{what} must return a .*; got {re.escape(repr(given))}"):
        getattr(base, what)(oracle, lambda *_: None)


@pytest.mark.parametrize("name", ["finetune", "synthetic"])
def test_own_oracle_can_not_have_the_name_of_another(name: str) -> None:
    own = ["+model=tiny", f"oracle={name}", "oracle._target_=my.Oracle"]
    with pytest.raises(ConfigError, match=rf"oracle: its name must .*; got '{name}': give oracle\.name=NAME too\."):
        load_config(own)
    config = load_config([*own, "oracle.name=mine"])
    assert (config.oracle.name, config.oracle.trains) == ("mine", False)


@pytest.mark.parametrize("given", [
    ["method=random", "method._target_=mine.Swap"], ["method=random", "method.name=structured"],
    ["method=autoqra", "method.first._target_=mine.Swap"]])
def test_own_method_can_not_have_the_name_of_another(given: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^method\.name=.*give method\.name=NAME too"):
        load_config(["+model=tiny", *given])
    assert load_config(["+model=tiny", *given, "method.name=mine"]).method.name == "mine"


@pytest.mark.parametrize("more", [{}, {"changes": 3}, {"rates": None, "changes": 1.5}])
def test_own_class_alone_takes_no_options_of_the_default(more: dict[str, Any]) -> None:
    given = [f"method.{key}={'null' if value is None else value}" for key, value in more.items()]
    method = load_config(["+model=tiny", "method._target_=mine.Swap", *given]).method
    assert (method.name, method.target) == ("Swap", {"_target_": "mine.Swap", **more})


def test_stored_configuration_imports_no_target() -> None:
    stored = load_config(["+model=tiny"]).to_dict()
    for group in ("oracle", "method", "logger"):
        stored[group] = {"name": "evil", "_target_": "no_such_module.evil"}
    assert config_from_dict(stored).method.target == {"_target_": "no_such_module.evil"}
