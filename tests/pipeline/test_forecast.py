"""Size of the user's text, read once, and the time of a run before it starts."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qra_bo.cli.app import main
from qra_bo.config import load_config, named_efforts
from qra_bo.finetune.data.load import byte_tokenizer, data_notes, load_data
from qra_bo.finetune.models import load
from qra_bo.finetune.training.final import FinalSettings
from qra_bo.memory.cards import CARDS
from qra_bo.pipeline import data, forecast
from qra_bo.pipeline.data import RunText, text_size
from qra_bo.pipeline.estimate import token_seconds
from qra_bo.pipeline.forecast import make_forecast, plan_rows
from qra_bo.pipeline.plan import make_plan
from qra_bo.pipeline.run import make_setting
from qra_bo.report.example import print_data
from qra_bo.tasks.memory import plan_lines

SEQUENCES = 40.0


@pytest.fixture(name="file")
def make_file(tmp_path: Path) -> Path:
    """Nine records of 64 characters and one of 32."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": str(i) + (63 if i else 31) * "y"}) + "\n" for i in range(10)))
    return path


def words(file: Path, *more: str) -> list[str]:
    return ["+model=tiny", "device=cpu", "data=jsonl", f"data.path={file}", "train.length=32", *more]


def test_a_text_is_counted_by_the_models_tokenizer(file: Path) -> None:
    config = load_config(words(file))
    size, prepared = text_size(config), load_data(config.data, byte_tokenizer(), 32)
    assert size is not None
    assert (size.records, size.training_records, size.counted, size.source) == (10, 8, True, str(file))
    assert size.training_tokens == prepared.train.facts.used_tokens
    assert size.sequences == len(prepared.train)


def test_a_profile_that_is_given_takes_no_time_of_a_plan(file: Path) -> None:
    def seconds(*more: str) -> float | None:
        config = load_config(words(file, "budget=uniform:4,4", "effort=instant", "effort.compare=[]", *more))
        found = make_forecast(config, make_plan(config))
        assert found is not None
        return {effort.effort: effort.seconds for effort in found.efforts}["instant"]

    assert (seconds() or 0.0) > 0.0
    assert seconds(f"sensitivity.path={file}") == 0.0  # a plan does not read it


def test_a_large_text_is_counted_by_a_sample(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SAMPLE", 4)
    size = text_size(load_config(words(file)))
    assert size is not None
    assert not size.counted
    assert size.basis == "estimated from 4 of them that the model's tokenizer counted"
    assert size.training_tokens == pytest.approx(8 * 65, abs=2 * 32)  # the short record counts twice or not at all
    assert size.sequences == pytest.approx(size.training_tokens / 32, rel=0.5)


def test_without_a_tokenizer_tokens_are_estimated_from_characters(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("qra_bo.finetune.models.hub._Repository.local", lambda self, files: None)
    size = text_size(load_config([*words(file), "+model=llama2_7b"][1:]))
    assert size is not None
    assert (size.training_records, size.counted, size.cut_share) == (8, False, None)
    assert size.training_tokens in (round(512 / 3.2), round(480 / 3.2))
    assert size.sequences == pytest.approx(size.training_tokens / 32, abs=0.02)
    assert size.basis.endswith("embedded text has; this machine lacks the model's tokenizer")
    assert load.tokenizer_at_hand(load_config(["+model=llama2_7b"]).model) is None


def test_a_tokenizer_in_a_folder_is_at_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    model = load_config(["+model=hf", f"model.path={tmp_path}", "oracle=synthetic", *NUMBERS]).model
    assert load.tokenizer_at_hand(model) is None  # the folder has none yet
    byte_tokenizer().save_pretrained(tmp_path)
    assert load.tokenizer_at_hand(model)("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]


NUMBERS = ["model.family=llama", "model.n_layers=1", "model.hidden_size=64", "model.intermediate_size=64",
           "model.n_heads=1", "model.n_kv_heads=1", "model.head_dim=64", "model.vocab_size=300", "model.tied=true",
           "model.attention_bias=false"]


def test_a_run_reads_the_users_file_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, reads = load_config(words(file, "display=none", "train.batch=1")), list[Any]()
    read = data.read_data
    monkeypatch.setattr(data, "read_data", lambda cfg: reads.append(cfg) or read(cfg))
    monkeypatch.setattr("qra_bo.finetune.data.load.read_data", None)  # nor by another way
    text = RunText(config)
    setting = make_setting(config, (), text)
    sequences = text.show()
    final = plan_rows(replace(setting, sequences=sequences))[-1]
    assert reads == [config.data]
    assert sequences is not None
    assert final.what.startswith(f"final fine-tune (1 epoch: about {sequences:.0f} steps")


def test_a_data_set_of_the_hub_is_not_fetched_for_a_plan() -> None:
    config = load_config(["+model=llama2_7b", "gpu=rtx4090", "task=memory"])
    assert config.data.kind == "hub"
    found = make_forecast(config, make_plan(config))
    assert found is not None
    assert (found.text, found.final_steps, found.final) == (None, 1000, "at most 1,000 steps")


@pytest.mark.parametrize("card", ["rtx4090", None])
def test_times_are_those_of_the_parts_at_every_effort(card: str | None, file: Path) -> None:
    config = load_config(words(file, "task=memory", *(["gpu=rtx4090"] if card else ["device=cuda"]), "final.steps=7"))
    plan = make_plan(config)
    found = make_forecast(config, plan)
    assert found is not None
    assert [e.effort for e in found.efforts] == ["instant", "quick", "normal", "thorough"]
    if card is None:
        assert found.final_seconds is None
        assert {e.seconds for e in found.efforts} == {None}
        assert found.basis == "times are known after the first trial; gpu=NAME estimates them for a card"
        return
    setting = make_setting(config.with_changes(task="search", oracle=load_config(["oracle=synthetic"]).oracle))
    setting = replace(setting, config=config, memory=plan.memory)
    each = token_seconds(setting, CARDS["rtx4090"])
    assert each is not None
    for time, name in zip(found.efforts, ("instant", "quick", "normal", "thorough"), strict=True):
        rows = plan_rows(replace(setting, config=config.with_changes(effort=named_efforts()[name])), CARDS["rtx4090"])
        assert time.seconds == pytest.approx(each * sum(row.cost for row in rows[:-1]))
        assert found.final_seconds == pytest.approx(rows[-1].seconds)
    assert "GeForce RTX 4090" in found.basis
    assert "not measured on a GPU" in found.basis


@pytest.mark.parametrize(("final", "advice"), [
    (33, "fidelity.high=8 fidelity.low=2 makes a search about 4 times shorter"), (100, "fidelity.high=25"),
    (108, "fidelity.high=27 fidelity.low=6 makes a search about 1.2 times shorter"), (500, None)])
def test_trials_as_long_as_the_final_fine_tune_are_advised_against(final: int, advice: str | None) -> None:
    config = load_config(["task=memory", "+model=llama3_1_8b", "gpu=rtx4090", f"final.steps={final}"])
    found = make_forecast(config, make_plan(config))
    assert found is not None
    shown = " ".join(plan_lines(make_plan(config), forecast=found))
    assert found.advice in shown
    assert advice in shown if advice else not found.advice
    words = [word for word in found.advice.split() if word.startswith("fidelity.")]
    assert load_config(["+model=tiny", *words]).fidelity.high <= 32  # what it says composes


def test_a_simulation_has_no_times() -> None:
    config = load_config(["+model=tiny", "oracle=synthetic", "task=memory"])
    assert make_forecast(config, make_plan(config)) is None


def test_the_plan_shows_text_and_times_as_lines_and_as_json(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = load_config(words(file, "task=memory"))
    found = make_forecast(config, make_plan(config))
    assert found is not None
    text = " ".join(plan_lines(make_plan(config), forecast=found))
    assert "10 records, 8 of them for training;" in text
    assert "tokens (counted by the model's tokenizer)" in text
    assert f"Final fine-tune: {found.final}" in text
    assert main(words(file, "task=memory", "memory.format=json")) == 0
    stated = json.loads(capfd.readouterr().out)
    assert stated["text"]["training_records"] == 8
    assert stated["times"]["final"]["steps"] == found.final_steps
    assert [e["effort"] for e in stated["times"]["efforts"]] == [e.effort for e in found.efforts]


def test_a_plan_and_a_run_count_equal_records_once(file: Path) -> None:
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n")
    config = load_config(words(file, "task=memory"))
    text = " ".join(plan_lines(make_plan(config), forecast=make_forecast(config, make_plan(config))))
    assert "10 records (left out as repeats: 1), 8 of them for training;" in text
    data, out = load_data(config.data, byte_tokenizer(), 32), io.StringIO()
    print_data(Console(file=out, width=120), data)
    assert "left out as repeats of an earlier record: 1" in out.getvalue()
    assert [note for note in data_notes(config.data, data) if note.startswith("repeats of an earlier record")]


def test_a_plan_warns_of_answers_that_a_run_would_cut(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "completion": 90 * "z"}) + "\n" for i in range(9)))
    config = load_config(words(path, "task=memory"))
    text = " ".join(plan_lines(make_plan(config), forecast=make_forecast(config, make_plan(config))))
    assert "66% of its answer tokens lie beyond train.length: a run ends with a message" in text


def test_a_missing_file_ends_with_2_after_the_plan(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(Path("nowhere.jsonl"), "task=memory")) == 2
    said = capfd.readouterr()
    assert "Where the bytes go" in said.out
    assert "there is no file 'nowhere.jsonl'" in said.err
    assert "Next:" not in said.out


def test_a_missing_file_is_reported_beside_a_small_budget(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(words(Path("nowhere.jsonl"), "task=memory", "budget=10")) == 2
    error = capfd.readouterr().err
    assert "a budget of 10 bytes (a bare number means bytes) is below the smallest allocation" in error
    assert "there is no file 'nowhere.jsonl'" in error


@pytest.mark.parametrize(("final", "cost"), [
    (["final.steps=10"], (10 * 4 + 64 / 3) * 128), (["final.epochs=2"], None),
    (["final.max_steps=5"], (5 * 4 + 64 / 3) * 128)])
def test_every_row_of_the_plan_has_a_time(final: list[str], cost: float | None,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = load_config(["+model=tiny", "data=tiny", "device=cpu", *final])
    monkeypatch.setattr(forecast, "token_seconds", lambda setting, card: 0.5)
    setting = replace(make_setting(config), sequences=SEQUENCES)
    rows = plan_rows(setting)
    assert all(row.seconds == 0.5 * row.cost and row.cost > 0 for row in rows)
    steps = round(2 * SEQUENCES / 4)
    validations = len(FinalSettings().validations(steps))
    assert rows[-1].cost == pytest.approx((steps * 4 + validations * 64 / 3) * 128 if cost is None else cost)
    share = 100 * rows[-1].cost / sum(row.cost for row in rows)
    assert f"; {share:.0f} % of the whole)" in rows[-1].what
    monkeypatch.setattr(forecast, "token_seconds", lambda setting, card: None)
    assert [row.seconds for row in plan_rows(setting)] == [None] * len(rows)
