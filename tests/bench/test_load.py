"""The benchmark of host memory runs, and keeps the rows of other labels."""

import json
import sys
from pathlib import Path

import pytest

from bench import load

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "vocab_size": 300}


@pytest.mark.slow
def test_rows_of_every_phase_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "TINYLLAMA", SMALL)
    (tmp_path / "load.json").write_text(json.dumps({"rows": [{"label": "before", "phase": "load", "share": 2.0}]}))
    monkeypatch.setattr(sys, "argv", ["load", "--layers", "2", "--profile", "--out", str(tmp_path), "bits=[4,8]"])
    load.main()
    found = json.loads((tmp_path / "load.json").read_text())
    assert [(row["label"], row["phase"]) for row in found["rows"]] == \
        [("before", "load"), *(("after", phase) for phase in ("load", "pack", "profile", "trial"))]
    assert [target["value"] for target in found["targets"]] == [2.0, found["rows"][-1]["share"]]
    row = found["rows"][-1]
    assert row["bank_bytes"] > row["shard_bytes"] / 2
    assert row["peak_bytes"] > 0
