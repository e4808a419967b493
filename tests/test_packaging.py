"""The packages that are imported are those of this repository, and what ships with them composes."""

import importlib.resources
import importlib.util
from pathlib import Path
from typing import get_args

import pytest

from qra_bo.config import RunConfig, load_config
from qra_bo.config.overrides import DEFAULT_MODEL, options
from qra_bo.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [(group, option) for group, names in options().items() for option in names]
NEED_A_FILE = ("model=hf",)
"""Options that name a folder of the user's own."""
ALIASES = {"ollama": "llamacpp"}
"""Options that stand for another."""


def test_names_that_others_use_too_are_ours() -> None:
    for package in ("qra_bo", "surrogates", "conf"):
        assert Path(str(getattr(importlib.util.find_spec(package), "origin", None))).is_relative_to(ROOT), package


def test_every_yaml_is_a_known_option_or_hydras() -> None:
    names = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    known = {f"{group}/{option}.yaml" for group, option in OPTIONS}
    assert names - known == {"config.yaml", "model/_hub.yaml", "serve/_symmetric.yaml",
                             "hydra/job_logging/stderr.yaml", "hydra/hydra_logging/stderr.yaml"}


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda v: str(v))
def test_every_option_composes_and_fits_the_schema(group: str, option: str) -> None:
    overrides = [f"+model={option}"] if group == "model" else [f"+model={DEFAULT_MODEL}", f"{group}={option}"]
    if f"{group}={option}" in NEED_A_FILE:
        with pytest.raises(ConfigError, match="; got null"):
            load_config(["task=memory", *overrides])
        return
    chosen = load_config(["task=memory", *overrides]).to_dict().get(group, {})
    meant = ALIASES.get(option, option)
    assert group == "adapter" or (chosen if isinstance(chosen, str) else chosen.get("name", meant)) == meant


def test_every_key_has_a_comment() -> None:
    for path in (path for path in (ROOT / "conf").rglob("*.yaml") if "hydra" not in path.parts[-3:-1]):
        lines = path.read_text(encoding="utf-8").split("\nhydra:")[0].splitlines()  # Hydra documents its own keys
        assert lines[0].startswith("# "), path
        for line in lines:
            key, _, value = line.partition(":")
            if value.strip() and not key.lstrip().startswith(("#", "- ", '"', "_")):
                assert "  # " in line, f"{path.name}: {line}"


def test_every_task_has_its_module() -> None:
    for name in {*get_args(RunConfig.model_fields["task"].annotation)} - {"search", "finetune"}:
        assert importlib.util.find_spec(f"qra_bo.tasks.{name}") is not None, name
