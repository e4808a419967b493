"""Study of embeddings: its plan, a resumed run on the tiny model, and its summary with planted losses."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bench.embeddings import __main__ as program
from bench.embeddings.fits import CARDS_GB, MODELS, fits
from bench.embeddings.plan import UNTRAINED, choice, following, setting
from bench.embeddings.summary import rows_of, targets_of
from bench.length.plan import UNSEEN_SEEDS
from bench.length.trials import Key, PlannedTrial, load
from qra_bo.config import load_config
from qra_bo.memory.embeddings import WIDTHS

CONFIG = load_config(["+model=smollm2_135m", "device=cpu", "dtype=bfloat16"])
TINY = ["+model=tiny", "model.intermediate_size=128", "model.n_layers=1", "data=tiny", "dtype=float32",
        "quantizer.rounding=rtn", "eval.sequences=4"]
RISE = {16: 0.0, 8: 0.0003, 6: 0.013}


def answered(texts: tuple[str, ...], seeds: int, most: int = 1000) -> tuple[list[PlannedTrial], dict[Key, Any]]:
    """Planted losses: half the rate is best, and the bits of the embedding cost ``RISE``."""
    order: list[PlannedTrial] = []
    found: dict[Key, Any] = {}
    while len(order) < most and (planned := following(texts, seeds, 30, found)) is not None:
        trial = planned[0]
        bits = int(trial.task.rpartition("-")[2])
        loss = 4 + RISE[bits] + (trial.lr_scale - 0.5) ** 2 + 0.01 * (trial.train_seed % 7)
        order.append(trial)
        found[trial.key] = {"loss": loss, "measured_bytes": 10**8}
    return order, found


def test_plan_calibrates_in_16_bits_and_pairs_seeds() -> None:
    order, _ = answered(("plays", "gsm8k"), 5)
    assert len({trial.key for trial in order}) == len(order) == 2 * (3 + 3 + 3 * 5)
    first = order[:3]
    assert {trial.task for trial in first} == {setting("plays", 16)}
    assert sorted(trial.lr_scale for trial in first) == [0.25, 0.5, 1.0]
    tested = [trial for trial in order if trial.split == "test" and trial.task.startswith("plays")]
    assert {trial.lr_scale for trial in tested} == {0.5}
    assert [trial.task for trial in tested[:2]] == [setting("plays", bits) for bits in WIDTHS[:2]]
    assert "6" not in {trial.task.rpartition("-")[2] for trial in order[:2 * (3 + 2 + 2 * 5)]}  # 8 bits on both first
    assert all({t.train_seed for t in tested if t.task == setting("plays", b)} == set(UNSEEN_SEEDS) for b in WIDTHS)
    changes = sum(a.task != b.task for a, b in itertools.pairwise(order))
    assert changes == 9  # each starts another worker


def test_summary_has_planted_differences_and_judges_peaks() -> None:
    _, found = answered(("plays",), 5)
    rows = {row["embeddings"]: row for row in rows_of(("plays",), 5, found, CONFIG)}
    assert rows[16]["minus_16_bits"] is None
    for bits in (8, 6):
        assert rows[bits]["minus_16_bits"]["mean"] == pytest.approx(RISE[bits])
        assert rows[bits]["untrained"] - rows[16]["untrained"] == pytest.approx(RISE[bits])
    assert rows[16]["file_bytes"] - rows[8]["file_bytes"] == 2 * 49152 * 576 - rows[8]["embedding_bytes"]
    assert rows[16]["stored_bytes"] == rows[6]["stored_bytes"]
    verdicts = {target.what.partition(" (")[0]: target.met for target in targets_of(list(rows.values()))}
    assert verdicts["plays, embedding in 8 bits: test loss less that with 16 bits"]
    assert not verdicts["plays, embedding in 6 bits: test loss less that with 16 bits"]
    assert not verdicts["plays, embedding in 8 bits: predicted peak over the measured one"]  # 100 MB are planted


def test_what_is_not_measured_is_null() -> None:
    rows = rows_of(("plays",), 5, {}, CONFIG)
    assert all(row["mean"] is row["untrained"] is row["measured_bytes"] is None for row in rows)
    assert not any(target.met or target.value is not None for target in targets_of(rows))


def test_fewer_bits_leave_room_on_every_card() -> None:
    rows = list(fits())
    assert len(rows) == len(MODELS) * len(WIDTHS) * len(CARDS_GB)
    for model in MODELS:
        needs = [next(r["qlora_bytes"] for r in rows if r["model"] == model and r["embeddings"] == b) for b in WIDTHS]
        assert needs == sorted(needs, reverse=True)
    for row in rows:
        larger = next(r for r in rows if (r["model"], r["card_gb"], r["embeddings"]) == (
            row["model"], row["card_gb"], 16))
        assert all(row["largest_rank"][name] >= rank for name, rank in larger["largest_rank"].items())
        assert row["qlora_fits"] == (row["qlora_bytes"] <= row["card_gb"] * 10**9)


@pytest.mark.slow
def test_a_run_resumes_and_publishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trials.jsonl"
    assert program.main(["--out", str(out), "--trials", "1", *TINY]) == 0
    (first,) = load(out)
    assert program.main(["--out", str(out), "--trials", "1", *TINY]) == 0
    assert [key for key in load(out) if key == first] == [first]
    assert len(load(out)) == 2
    assert all(event["loss"] and event["measured_bytes"] for event in load(out).values())
    assert program.main(["--out", str(out), "--summary", "--results", str(tmp_path), *TINY]) == 0
    written = json.loads((tmp_path / "embeddings.json").read_text())
    assert {"part", "task", "embeddings", "measured_bytes"} <= written["rows"][0].keys()
    assert "plays-embedding-16" in capsys.readouterr().out


def test_one_step_at_rate_0_is_the_loss_before_training() -> None:
    order, _ = answered(("plays",), 1)
    untrained = [trial for trial in order if trial.lr_scale == UNTRAINED]
    assert [(trial.steps, trial.split) for trial in untrained] == [(1, "validation")] * 3
    assert {trial.allocation for trial in order} == {choice(30).allocation}


def test_seeds_beyond_the_unseen_ones_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--out", "x", "--seeds", "9"])
    assert "--seeds: invalid choice: 9" in capsys.readouterr().err
