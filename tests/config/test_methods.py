"""Files of ``conf/method``: they hold every hyperparameter of the searcher with its default."""

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
from hydra.utils import get_object

from qra_bo.config import load_config
from qra_bo.config.overrides import options

NOT_IN_YAML = {"problem", "make_model", "name", "warps"}
"""Parameters that are given in code, or that YAML and JSON share no notation for (infinity among ``warps``)."""
OWN_DEFAULTS = {"structured": {"rates"}, "default": {"rates"}}
"""By method, parameters that differ from the searcher's defaults."""


def check(target: Mapping[str, Any], changed: set[str]) -> None:
    parameters = inspect.signature(get_object(target["_target_"])).parameters
    assert {key for key in target if not key.startswith("_")} == set(parameters) - NOT_IN_YAML
    for key, value in target.items():
        if isinstance(value, Mapping):
            check(value, changed)
        elif not key.startswith("_") and key not in changed:
            default = parameters[key].default
            assert value == (list(default) if isinstance(default, tuple) else default), key


@pytest.mark.parametrize("method", options()["method"])
def test_method_holds_every_parameter_with_its_default(method: str) -> None:
    check(load_config([f"method={method}"]).method.target, OWN_DEFAULTS.get(method, set()))
