"""Every key of the configuration is read by something: a knob that turns nothing is a lie.

Leaves of ``RunConfig`` are followed through the syntax trees of the package. A read counts when it is an attribute of
something that is known to be the group (``cfg.train.batch``; ``t = cfg.train`` and then ``t.batch``; a parameter
annotated with the group's class). Checking a value is not using it: reads in ``validate.py`` do not count, and those in
``config.py`` count where they stand in a property that somebody else reads.
"""

import ast
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qra_bo.config.schema import RunConfig, load_config

PACKAGE = Path(__file__).resolve().parents[2] / "qra_bo"
ROOT_NAMES = {"cfg", "config"}
"""What a ``RunConfig`` is called where it is not annotated."""
NOT_READ: dict[str, str] = {}
"""Keys that nothing reads, with the reason why they are kept."""


def groups() -> dict[str, type]:
    """Dataclass of every group, by the group's name."""
    hints = typing.get_type_hints(RunConfig)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}


def leaves() -> Iterator[str]:
    """``seed``, ``train.batch``, ... of the composed default configuration; the keys of ``model`` have a test of
    their own."""
    def walk(prefix: str, value: Any) -> Iterator[str]:
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            if dataclasses.is_dataclass(inner):
                yield from walk(f"{prefix}{field.name}.", inner)
            elif f"{prefix}{field.name}" != "model":
                yield f"{prefix}{field.name}"

    yield from walk("", load_config())


def trees(*, but: tuple[str, ...]) -> dict[str, ast.Module]:
    return {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text(encoding="utf-8"))
            for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).as_posix() not in but}


class Reads(ast.NodeVisitor):
    """Keys that one module reads, ``train.batch`` or ``seed``.

    Args:
        known: Group (``""``: the whole) by local name, at the start.
    """

    def __init__(self, known: dict[str, str]) -> None:
        self.known, self.found = dict(known), set[str]()
        self.by_class = {cls.__name__: name for name, cls in groups().items()} | {"RunConfig": ""}

    def group_of(self, node: ast.expr) -> str | None:
        """The group that an expression is, ``""`` for the whole, or ``None``."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            if node.attr in ROOT_NAMES:  # self.config
                return ""
            if self.group_of(node.value) == "" and node.attr in groups():
                return node.attr
        return None

    def visit_arg(self, node: ast.arg) -> None:
        if node.annotation is None:
            return
        self.known.pop(node.arg, None)  # it may be another class's "config"
        for part in ast.walk(node.annotation):
            name = part.id if isinstance(part, ast.Name) else getattr(part, "value", None)  # or a quoted name
            if name in self.by_class:
                self.known[node.arg] = self.by_class[name]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.known)
        self.generic_visit(node)
        self.known = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                group = self.group_of(value)
                if isinstance(name, ast.Name) and group is not None:
                    self.known[name.id] = group

    def visit_Attribute(self, node: ast.Attribute) -> None:
        group = self.group_of(node.value)
        if group is not None and isinstance(node.ctx, ast.Load):
            self.found.add(f"{group}.{node.attr}" if group else node.attr)
        self.generic_visit(node)


def keys_read() -> set[str]:
    found: set[str] = set()
    for tree in trees(but=("config.py", "validate.py")).values():
        reads = Reads(dict.fromkeys(ROOT_NAMES, ""))
        reads.visit(tree)
        found |= reads.found
    classes = {cls.__name__: name for name, cls in groups().items()} | {"RunConfig": ""}
    config = ast.parse((PACKAGE / "config.py").read_text(encoding="utf-8"))
    for cls in (n for n in config.body if isinstance(n, ast.ClassDef) and n.name in classes):
        group = classes[cls.name]
        for method in (n for n in cls.body if isinstance(n, ast.FunctionDef)):
            if (f"{group}.{method.name}" if group else method.name) in found:
                reads = Reads({"self": group})
                reads.visit(method)
                found |= reads.found
    return found


@pytest.fixture(scope="module")
def read() -> set[str]:
    return keys_read()


@pytest.mark.parametrize("key", sorted(leaves()))
def test_every_key_is_read(key: str, read: set[str]) -> None:
    if key in NOT_READ:
        assert key not in read, f"{key} is read now: take it off the list"
    else:
        assert key in read, f"nothing reads {key}: use it, or take it out of conf/ and qra_bo/config/schema.py"


def test_keys_of_the_model_are_named_in_the_code() -> None:
    """``model`` is a mapping: its keys are strings in the code that reads it."""
    strings = {n.value for tree in trees(but=("validate.py",)).values() for n in ast.walk(tree)
               if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    assert set(load_config().model) <= strings


def test_the_list_of_exceptions_is_short_and_current() -> None:
    known = set(leaves())
    assert set(NOT_READ) <= known
    assert len(NOT_READ) <= 5
    assert all(NOT_READ.values())


def test_the_test_tells_reads_from_other_attributes() -> None:
    module = ast.parse("def f(cfg, d: 'DataConfig', settings: TrainSettings):\n"
                       "    t, e = cfg.train, cfg.eval\n"
                       "    return t.batch, e.tokens, d.path, settings.clip, other.length, cfg.seed\n")
    reads = Reads(dict.fromkeys(ROOT_NAMES, ""))
    reads.visit(module)
    assert reads.found == {"train", "eval", "train.batch", "eval.tokens", "data.path", "seed"}
