"""The packages that are imported are those of this repository, and what ships with them composes."""

from pathlib import Path

import pytest

from qra_bo.config import load_config
from qra_bo.config.overrides import DEFAULT_MODEL, options
from qra_bo.utils.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = [(group, option) for group, names in options().items() for option in names]
NEED_A_FILE = ("model=hf",)
"""Options that name a folder of the user's own."""
ALIASES = {"ollama": "llamacpp"}
"""Options that stand for another."""


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
