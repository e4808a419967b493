"""Every key of the configuration is read by the package: a key that changes nothing misleads."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import qra_bo
from qra_bo.config import RunConfig
from qra_bo.config.check import fields_of, options_of

FOLDER = Path(qra_bo.__file__).parent
USED = ("derive.py", "presets.py")
"""Modules of ``qra_bo.config`` that read keys for more than a check of them."""
TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.rglob("*.py"))
         if path.parent.name != "config" or path.name in USED]
GROUPS: Mapping[str, frozenset[str]] = {key: frozenset(fields_of(hint)) for key, hint in fields_of(RunConfig).items()}
RUN = "run"
"""Stands for the configuration itself, whose fields are the groups and the keys outside them."""
CLASSES = {"RunConfig": RUN} | {option.__name__: key for key, hint in fields_of(RunConfig).items()
                                for option in (hint, *options_of(hint)) if hasattr(option, "__name__") and GROUPS[key]}
CLASSES |= {"UserData": "data", "DataConfig": "data"}
DERIVED = {(RUN, "bits"), (RUN, "codes"), ("quantizer", "formats"), ("train", "packing")}
"""Keys that are read as ``RunConfig.format_names``, ``RunConfig.stored`` and ``train.isolated``."""
OPEN = {"method", "logger", "model"}
"""Groups whose keys are passed on as a whole; those of a model are read by their names, below."""


def reads(trees: list[ast.Module], groups: Mapping[str, frozenset[str]]) -> set[tuple[str, str]]:
    """Return the fields that are read, with their groups, from what is a group by its attribute, name or annotation."""
    found: set[tuple[str, str]] = set()
    for tree in trees:
        names: dict[str, set[str]] = defaultdict(set, {"config": {RUN}, "cfg": {RUN}, "c": {RUN}})

        def held(node: ast.expr, names: Mapping[str, set[str]] = names) -> set[str]:
            """Groups that an expression may be."""
            if isinstance(node, ast.Attribute):
                return {node.attr} if node.attr in groups else {RUN} if node.attr in ("config", "_config") else set()
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                return {node.slice.value} & groups.keys()
            return names.get(node.id, set()) if isinstance(node, ast.Name) else set()

        for node in ast.walk(tree):
            for target, value in _bound(node):
                names[target] |= held(value)
            if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
                name = node.arg if isinstance(node, ast.arg) else getattr(node.target, "id", "")
                names[name] |= {CLASSES[part.id] for part in ast.walk(node.annotation)
                                if isinstance(part, ast.Name) and part.id in CLASSES}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                found |= {(group, node.attr) for group in held(node.value)}
                if node.attr == "model_dump":  # all of it is passed on
                    found |= {(group, name) for group in held(node.value) - {RUN} for name in groups[group]}
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found |= {(group, str(node.slice.value)) for group in held(node.value)}
    return found


def _bound(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a statement or expression binds, and their values."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(node, ast.Assign):
        pairs = [(target, node.value) for target in node.targets]
    elif isinstance(node, ast.NamedExpr):
        pairs = [(node.target, node.value)]
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs += zip(target.elts, value.elts, strict=False)
        elif isinstance(target, ast.Name):
            yield target.id, value


def unread(groups: Mapping[str, frozenset[str]]) -> list[str]:
    found = reads(TREES, groups)
    keys = {(group, name) for group, names in groups.items() if group not in OPEN for name in names}
    keys |= {(RUN, group) for group, names in groups.items() if not names}
    return sorted(f"{group}.{name}" for group, name in keys - found - DERIVED)


def test_every_key_is_read() -> None:
    assert unread(GROUPS) == []


@pytest.mark.parametrize("planted", ["train.momentum", "eval.tokens", "confirm.lr_floor", "run.rank"])
def test_a_key_that_nothing_reads_is_found(planted: str) -> None:
    group, _, name = planted.partition(".")  # tokens, lr_floor and rank are read of other groups and objects
    more = {name: frozenset[str]()} if group == RUN else {group: GROUPS[group] | {name}}
    assert unread({**GROUPS, **more}) == [planted]


def test_every_key_of_a_model_is_read_by_name() -> None:
    written = {node.value for tree in TREES for node in ast.walk(tree)
               if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert sorted(GROUPS["model"] - written) == []
