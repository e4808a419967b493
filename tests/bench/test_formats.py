"""Study of formats: its plan, a resumed run on the tiny model, and its summary with planted losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.formats import __main__ as program
from bench.formats.plan import (
    RANK,
    STAGES,
    UNTRAINED,
    WIDTHS,
    bits_a_weight,
    family_of,
    following,
    make_block,
    make_plan,
    overrides_of,
    reference_of,
    setting_of,
    untrained,
)
from bench.formats.summary import COLUMNS, rows_of, summarise, targets_of
from bench.formats.untrained_weights import BASELINE, DECODER, DIVERGENCE, decoder_errors, draw, matrix_errors
from bench.length.plan import SEARCH_SEED, UNSEEN_SEEDS
from bench.length.trials import Key, PlannedTrial, load
from bench.report import RESULTS
from qra_bo.config import load_config, make_spec
from qra_bo.memory.formats import check_shape, parse_format

CONFIG = load_config(["+model=smollm2_135m"])
SPEC = make_spec(CONFIG)
TINY = ["+model=tiny", "model.intermediate_size=128", "model.n_layers=1", "data=tiny", "dtype=float32",
        "quantizer.rounding=rtn", "eval.sequences=4"]


def loss_of(trial: PlannedTrial) -> float:
    """Planted loss: integer formats win by 0.1, half the rate is best, and the rest grows with the seed."""
    name = trial.allocation.formats[0]
    loss = 4.0 - (0.1 if parse_format(name).backend == "integer" else 0.0) + (trial.lr_scale - 0.5) ** 2
    return loss + 0.01 * (trial.train_seed % 7)


def answered(plan: Any, most: int = 10000) -> tuple[list[PlannedTrial], dict[Key, dict[str, Any]]]:
    order: list[PlannedTrial] = []
    found: dict[Key, dict[str, Any]] = {}
    while len(order) < most and (planned := following(plan, found)) is not None:
        order.append(planned[0])
        found[planned[0].key] = {"loss": loss_of(planned[0])}
    return order, found


def test_every_format_fits_the_embedded_model_and_its_width() -> None:
    for bits, names in WIDTHS.items():
        assert {parse_format(name).bits for name in names} == {bits}
        for linear in SPEC.linears:
            for name in names:
                check_shape(parse_format(name), linear.out_features, linear.in_features)
    assert sorted(bits for widths in STAGES.values() for bits in widths) == sorted(WIDTHS)


@pytest.mark.parametrize(("name", "bits", "reference"), [
    ("sym3-g64", 3.25, "hqq3-g128"), ("int3-g32", 3.75, "hqq3"), ("sym2-g64", 2.25, "hqq2-g128"),
    ("int2-g64", 2.375, "hqq2"), ("sym8-g32", 8.5, "hqq8"), ("hqq5", 5.5, None), ("int8", 8.047, None)])
def test_reference_is_the_nearest_in_bytes(name: str, bits: float, reference: str | None) -> None:
    assert bits_a_weight(name, SPEC) == pytest.approx(bits, abs=0.001)
    assert reference_of(name, SPEC) == reference


def test_low_widths_and_short_trainings_come_first() -> None:
    order = [(b.task, b.limit, b.steps, b.seeds) for b in make_plan(("plays", "gsm8k"), (240, 24), 2, 30)]
    first = [(task, bits, 24, seeds)
             for seeds in (1, 2) for task in ("plays", "gsm8k") for bits in ("3 bits", "2 bits")]
    assert order[:8] == first
    assert [(b[1], b[2]) for b in order[8:16]] == [("3 bits", 240), ("2 bits", 240)] * 4
    assert {b[1] for b in order[16:]} == {"5 bits", "6 bits", "8 bits"}


def test_losses_before_training_then_rates_then_seeds() -> None:
    order, _ = answered([make_block("plays", 24, 3, 1, 2)])
    names = [t.allocation.formats[0] for t in order]
    assert names[:6] == list(WIDTHS[3])
    assert {(t.steps, t.lr_scale, t.split) for t in order[:6]} == {(1, UNTRAINED, "validation")}
    assert [(n, t.lr_scale) for n, t in zip(names[6:15], order[6:15], strict=True)] == [
        (lead, rate) for lead in ("hqq3", "sym3-g64", "int3-g64") for rate in (0.5, 1.0, 0.25)]
    assert {t.train_seed for t in order[:15]} == {SEARCH_SEED}
    assert [(n, t.split, t.train_seed, t.lr_scale) for n, t in zip(names[15:], order[15:], strict=True)] == [
        (name, "test", UNSEEN_SEEDS[0], 0.5) for name in WIDTHS[3]]
    assert {rank for t in order for rank in t.allocation.ranks} == {RANK}


def test_more_seeds_repeat_no_trial() -> None:
    order, _ = answered(make_plan(("plays",), (24,), 2, 2))
    assert len({trial.key for trial in order}) == len(order)
    formats, families = sum(map(len, WIDTHS.values())), sum(len({*map(family_of, names)}) for names in WIDTHS.values())
    assert len(order) == formats + 3 * families + 2 * formats


@pytest.mark.slow
def test_settings_hold_the_formats_of_their_trials() -> None:
    for trial in answered(make_plan(("plays",), (24,), 1, 2))[0]:
        task, stage = setting_of(trial).split("-")
        assert task == "plays"
        assert set(trial.allocation.formats) <= set(load_config(overrides_of(stage)).format_names)


@pytest.mark.slow
def test_stopped_study_resumes_without_repeating_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trials.jsonl"
    command = ["--out", str(out), "--steps", "2", "--seeds", "1", *TINY]
    assert program.main([*command, "--trials", "7"]) == 0
    before = out.read_bytes()
    assert program.main([*command, "--trials", "2"]) == 0
    assert out.read_bytes().startswith(before)
    assert len(load(out)) == 9
    losses = [event["loss"] for event in load(out).values()]
    assert None not in losses
    assert len(set(losses[:6])) == 6  # every format has its own loss before training
    assert "hqq3, before training" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["--tasks", "plays,alpaca"], "--tasks takes plays and gsm8k; got alpaca"),
    (["--tasks", "gsm8k"], "needs --gsm8k"), (["--seeds", "6"], "--seeds: invalid choice: 6")])
def test_wrong_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["--out", str(tmp_path / "x.jsonl"), *arguments])
    assert message in capsys.readouterr().err


def test_rows_have_paired_differences_at_nearly_equal_bytes() -> None:
    block = make_block("plays", 24, 3, 5, SPEC.n_layers)
    rows = {row["format"]: row for row in rows_of([block], answered([block])[1], CONFIG)}
    assert list(rows) == list(WIDTHS[3])
    row = rows["sym3-g64"]
    assert (row["reference"], row["default"], row["seeds"]) == ("hqq3-g128", "hqq3", 5)
    for difference in (row["minus_reference"], row["minus_default"]):
        assert difference["mean"] == pytest.approx(-0.1)
        assert difference["low"] == pytest.approx(difference["high"])
    assert row["untrained"] == pytest.approx(loss_of(untrained(block, block.choices[2])))
    assert row["learning_rate"] == pytest.approx(0.5 * CONFIG.adapter.lr)
    assert row["rate_is_inside"]
    assert rows["hqq3"]["minus_reference"] is rows["hqq3"]["minus_default"] is None
    targets = targets_of(list(rows.values()))
    assert [t.met for t in targets] == [True, True]
    assert "3 bits: test loss of sym3-g64 less that of hqq3-g128" in targets[0].what


def test_a_family_that_is_not_trained_keeps_no_other_back() -> None:
    trained = ("int8", "sym8-g64")
    found = answered([make_block("plays", 24, 8, 5, SPEC.n_layers, trained)])[1]
    rows = {row["format"]: row for row in rows_of([make_block("plays", 24, 8, 5, SPEC.n_layers)], found, CONFIG)}
    assert {name for name, row in rows.items() if row["mean"] is not None} == set(trained)
    assert rows["sym8-g64"]["minus_default"]["mean"] == pytest.approx(-0.1)


def test_summary_of_nothing_says_what_is_missing(tmp_path: Path) -> None:
    rows = [{"part": "weights never quantised", "task": "gaussian", "measure": DIVERGENCE, "bits": 4,
             "format": "sym4-g64", "reference": BASELINE,
             "minus_reference": {"mean": 0.1, "low": 0.05, "high": 0.15, "seeds": 5}}]
    summarise(("plays",), (24,), 5, {}, CONFIG, rows, tmp_path)
    content = json.loads((tmp_path / "formats.json").read_text())
    assert {row.get("mean") for row in content["rows"]} == {None}
    assert [t["value"] for t in content["targets"]].count(None) == len(content["targets"]) - 1
    assert not any(t["met"] for t in content["targets"])
    assert set(COLUMNS) <= {key for row in content["rows"] for key in row}


@pytest.mark.parametrize("kind", ["gaussian", "student-t"])
def test_drawn_weights_have_unit_gain(kind: str) -> None:
    weight = draw(kind, (512, 256), torch.Generator().manual_seed(0))
    assert float(weight.std()) * 16 == pytest.approx(1.0, abs=0.05)
    kurtosis = float(weight.double().pow(4).mean() / weight.double().square().mean() ** 2)
    assert (kurtosis > 5) == (kind == "student-t")


def test_more_bytes_err_less_on_random_weights() -> None:
    names = ("sym4-g128", "sym4-g32", "sym8-g64")
    coarse, fine, eight = matrix_errors("gaussian", 0, names, side=128).values()
    assert coarse > fine > 5 * eight
    found = decoder_errors("gaussian", 0, names, width=128, layers=1)
    assert list(found) == [DECODER, DIVERGENCE]
    for coarse, fine, eight in (values.values() for values in found.values()):
        assert coarse > fine > eight > 0


def test_the_published_rows_are_of_the_published_trials(tmp_path: Path) -> None:
    assert program.main(["--out", str(RESULTS / "formats" / "trials.jsonl"), "--tasks", "plays,gsm8k",
                         "--steps", "24,240", "--summary", "--results", str(tmp_path)]) == 0
    published = json.loads((RESULTS / "formats.json").read_text())["rows"]
    assert json.loads((tmp_path / "formats.json").read_text())["rows"] == published
