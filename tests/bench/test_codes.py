"""What the choice of codes is worth: by hand, and the program on a real tiny model."""

import json
from pathlib import Path

import pytest

from bench import codes
from qra_bo.utils.errors import ConfigError


def test_codes_are_compared_with_the_nearest_on_the_same_seeds() -> None:
    rows = codes.compared([
        {"task": "t", "codes": "rtn", "test_losses": {1: 3.0, 2: 3.1, 3: 3.2, 4: 3.0, 5: 3.1}},
        {"task": "t", "codes": "gptq", "test_losses": {1: 2.9, 2: 3.0, 3: 3.11, 4: 2.9, 5: 3.0}}])
    assert rows[1]["difference"] == pytest.approx(-0.49 / 5)
    assert rows[1]["verdict"] == "better"
    assert "difference" not in rows[0]
    target, = codes.targets_of(rows)
    assert target.met
    assert target.value == rows[1]["difference"]
    alone, = codes.targets_of([{"task": "t", "codes": "gptq"}])
    assert alone.value is None
    assert not alone.met


@pytest.mark.slow
def test_a_small_run_goes_on_with_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_BO_CACHE", str(tmp_path / "cache"))
    settings = ["--rank", "2", "--seeds", "2", "--work", str(tmp_path / "w"), "--out", str(tmp_path), "+model=tiny",
                "data=tiny", "train.batch=2", "train.length=32", "eval.sequences=8", "fidelity.high=4",
                "fidelity.low=null", "data.max_records=64", "device=cpu", "quantizer.tokens=256"]
    codes.main(settings)
    rows = json.loads((tmp_path / "codes_tiny.json").read_text())["rows"]
    assert [(r["codes"], r["format"], len(r["test_losses"])) for r in rows] == [
        ("rtn", "nf4", 2), ("gptq", "nf4", 2), ("16 bits", "fp16", 2)]
    assert rows[0]["mean"] != rows[1]["mean"]
    before = (tmp_path / "w" / "table1.jsonl").read_bytes()
    codes.main(settings)
    assert (tmp_path / "w" / "table1.jsonl").read_bytes() == before


def test_planted_landscapes_have_no_codes_to_choose(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="oracle=synthetic does not have"):
        codes.main(["--work", str(tmp_path / "w"), "--out", str(tmp_path), "+model=tiny", "data=tiny",
                    "oracle=synthetic"])
