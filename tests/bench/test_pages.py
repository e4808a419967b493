"""Tables of studies that are not finished yet are made from what their summaries write."""

from pathlib import Path

import pytest

import bench.pages.blocks as blocks
from bench.embeddings.summary import rows_of, targets_of
from bench.formats.summary import summarise
from bench.formats.untrained_weights import DIVERGENCE
from bench.pages.exchanged import TABLES
from bench.report import publish
from tests.bench.test_embeddings import CONFIG as EMBEDDINGS
from tests.bench.test_embeddings import answered as embedded
from tests.bench.test_formats import CONFIG as FORMATS
from tests.bench.test_formats import answered, make_block

MEASURED = {"part": "weights never quantised", "task": "gaussian", "measure": DIVERGENCE, "bits": 4, "mean": 0.25,
            "format": "sym4-g64", "reference": "nf4", "minus_reference": None}
CARD = {"part": "what fits", "model": "llama3_1_8b", "embeddings": 16, "card_gb": 8, "best_uniform": None}


def test_tables_of_formats_follow_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "RESULTS", tmp_path)
    block = make_block("plays", 24, 3, 5, 30)
    summarise(("plays",), (24, 240), 5, answered([block])[1], FORMATS, [MEASURED], tmp_path)
    lines = TABLES["formats"]().splitlines()
    assert lines[0] == "| format, rank 8 | bits a weight | compared with | plays, 24 steps |"
    [line] = [line for line in lines if line.startswith("| `sym3-g64`")]
    assert "| `hqq3` |" in line
    assert "**\N{MINUS SIGN}0.1000" in line
    assert line.endswith(", 5 seeds |")
    assert "| `sym4-g64` | 0.25 |" in TABLES["formats-unquantised"]()


def test_tables_of_embeddings_follow_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "RESULTS", tmp_path)
    rows = rows_of(("plays",), 5, embedded(("plays",), 5)[1], EMBEDDINGS)
    publish("embeddings", targets_of(rows), [*rows, CARD], ("task",), folder=tmp_path)
    assert [line.split(" | ")[1] for line in TABLES["embeddings"]().splitlines()[2:5]] == ["16", "8", "6"]
    assert "| llama3_1_8b, 8 GB | nothing fits |" in TABLES["embeddings-cards"]()
