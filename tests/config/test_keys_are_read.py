"""Every key of the configuration is read by the package: a key that changes nothing misleads."""

import re
from pathlib import Path

import qra_bo
from qra_bo.config import RunConfig
from qra_bo.config.check import fields_of

FOLDER = Path(qra_bo.__file__).parent
CODE = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.rglob("*.py"))
                 if path.parent.name not in ("config", "table1"))
DERIVED = {"bits", "model"}
"""Keys that the package reads through what ``qra_bo.config`` derives from them."""


def test_every_key_is_read_outside_the_schema() -> None:
    groups = {key: fields_of(hint) for key, hint in fields_of(RunConfig).items()}
    names = {name for key, fields in groups.items() if key != "model" for name in fields or [key]} - DERIVED
    assert sorted(name for name in names if not re.search(rf"\.{name}\b", CODE)) == []


def test_every_key_of_a_model_is_read_by_name() -> None:
    derived = (FOLDER / "config" / "derive.py").read_text(encoding="utf-8")
    names = fields_of(fields_of(RunConfig)["model"])
    assert sorted(name for name in names if f'"{name}"' not in CODE + derived) == []
