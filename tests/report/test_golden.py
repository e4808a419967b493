"""What each surface says of one finished run, held to a file; run as a module, it writes the files anew."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qra_bo.report.data import parse_events
from qra_bo.report.html import render_html
from qra_bo.report.tables import print_result
from qra_bo.study.results import build_best
from tests.report.fixtures import make_events

GOLDEN = Path(__file__).parent / "golden"
TRAIN = ("batch", "accumulate", "length", "packing", "warmup", "lr_floor", "weight_decay", "betas", "eps", "clip",
         "optimizer", "checkpointing")


def events() -> list[dict[str, Any]]:
    header, *rest = make_events()
    return [{**header, "config": {**header["config"], "train": dict.fromkeys(TRAIN, 1)}}, *rest]


def best() -> dict[str, Any]:
    return build_best(parse_events(events()).study)


def terminal() -> str:
    out = io.StringIO()
    print_result(Console(file=out, width=110), parse_events(events()), Path("runs/a"), ["best.json"])
    return out.getvalue()


def page() -> str:
    """The text of the page up to its tables of trials."""
    text = render_html(parse_events(events()), {}).partition("<main")[2].partition(">")[2].partition('id="trials"')[0]
    return re.sub(r"\s*\n\s*", "\n", re.sub(r"<[^>]*>", "\n", text)).strip() + "\n"


SURFACES: dict[str, Callable[[], str]] = {
    "terminal.txt": terminal, "page.txt": page,
    "best.json": lambda: json.dumps(best(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"}


@pytest.mark.parametrize("name", SURFACES)
def test_surface_says_what_its_file_holds(name: str) -> None:
    assert SURFACES[name]() == (GOLDEN / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for name, surface in SURFACES.items():
        (GOLDEN / name).write_text(surface(), encoding="utf-8")
