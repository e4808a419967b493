"""``task=finetune``, and what is trained where nothing binds: delivered as after a search, equal to the last bit."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import qra_bo
from qra_bo.cli.app import main
from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.pipeline.given import read_allocation
from qra_bo.pipeline.prepare import checked_budget, make_setting
from qra_bo.report.data import load_run
from qra_bo.runs import main as runs
from qra_bo.study.baselines import BY_PRIOR, BY_TRIES
from qra_bo.study.header import BY_RULE, CALIBRATED
from qra_bo.study.journal import read_journal
from qra_bo.utils.errors import ConfigError, ModelError
from tests.executors import work_in_this_process
from tests.finetune.models import tiny_llama

REAL = ["+model=tiny", "data=tiny", "data.max_records=64", "train.batch=2", "train.length=32", "eval.sequences=4",
        "fidelity.high=2", "fidelity.low=1", "final.steps=3", "device=cpu", "dtype=float32", "display=none",
        "quantizer.rounding=rtn", "adapter.lr=0.003"]
SEARCH = ["method=random", "effort=quick", "effort.max_full_trials=1", "effort.uniform_baselines=1", "confirm.seeds=0",
          "calibrate.lr_scales=[0.7,1.3]", "bits=[4,8]", "budget=uniform:4,4"]


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        yield


@pytest.fixture(scope="module", name="searched")
def make_searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real search of a few steps."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    qra_bo.search([*REAL, *SEARCH, f"out={folder}"])
    return folder


@pytest.fixture(scope="module", name="trained")
def make_trained(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that search found, trained again."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*REAL, "task=finetune", f"allocation={searched}", f"out={folder}"]) == 0
    return folder


def event(folder: Path, kind: str) -> Mapping[str, Any]:
    return next(e for e in reversed(read_journal(folder / "trials.jsonl").events) if e["event"] == kind)


def best_of(folder: Path) -> dict[str, Any]:
    best: dict[str, Any] = json.loads((folder / "best.json").read_text())
    return best


def test_training_a_found_allocation_again_equals_the_final_fine_tune(searched: Path, trained: Path) -> None:
    first, again = event(searched, "final"), event(trained, "final")
    assert (again["loss"], again["loss_se"], again["steps"]) == (first["loss"], first["loss_se"], 3)
    for name in ("adapter/adapter_model.safetensors", "quant_manifest.json"):
        assert (trained / name).read_bytes() == (searched / name).read_bytes()
    assert event(searched, "calibration")["learning_rate"] == event(trained, "calibration")["learning_rate"] != 0.003
    assert event(trained, "calibration")["tried"] == []


def test_report_runs_and_load_take_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (trained / "report.html").read_text()
    assert "Nothing was searched: task=finetune was given" in page
    assert "calibrated in the search that found the allocation" in page
    assert runs(["list", str(trained)]) == 0
    assert {f"{best_of(trained)['loss']:.4f}", "given"} <= set(capsys.readouterr().out.split("\t"))
    assert main(["task=export", f"out={trained}"]) == 0
    assert "nothing was searched" in (trained / "adapter" / "README.md").read_text()
    model, _ = qra_bo.load(trained)
    assert not model.training
    assert load_run(trained).winner is not None


def test_a_run_keeps_its_compute_type_where_auto_means_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = tmp_path / "cpuinfo"
    monkeypatch.setattr("qra_bo.utils.device.CPUINFO", cpu)
    words = [*REAL, "dtype=auto", "task=finetune", "allocation=uniform:4,3", f"out={tmp_path / 'run'}"]
    cpu.write_text("flags : avx2 amx_bf16")
    assert main(words) == 0
    journal = tmp_path / "run" / "trials.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    begun = next(i for i, line in enumerate(lines, 1) if '"event":"provenance"' in line)
    journal.write_text("".join(lines[:begun]))  # killed in its training
    cpu.write_text("flags : avx2")
    before = best_of(tmp_path / "run")
    assert main([*words, "resume=true"]) == 0
    best, types = best_of(tmp_path / "run"), [e["dtype"] for e in read_journal(journal).events if "dtype" in e]
    assert types == ["bfloat16", "bfloat16"]
    assert (best["loss"], best["memory"]) == (before["loss"], before["memory"])
    assert main([*words[:-1], f"out={tmp_path / 'new'}"]) == 0
    assert event(tmp_path / "new", "provenance")["dtype"] == "float32"


@pytest.mark.parametrize("words", [["task=finetune", "allocation=uniform:4,3"], ["bits=[4,8]"]])
def test_another_allocation_or_a_search_is_refused_the_folder(trained: Path, words: list[str],
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "trials.jsonl").read_bytes()
    assert main([*REAL, *words, "budget=uniform:4,4", f"out={trained}"]) == 2
    assert "start a new run with another out=" in capsys.readouterr().err
    assert (trained / "trials.jsonl").read_bytes() == before


def test_a_killed_training_goes_on_to_the_same_end(trained: Path, searched: Path, tmp_path: Path) -> None:
    raw = (trained / "trials.jsonl").read_bytes()
    (tmp_path / "trials.jsonl").write_bytes(raw[:raw.index(b'{"event":"final"') + 20])
    assert main([*REAL, "task=finetune", f"allocation={searched / 'best.json'}", f"out={tmp_path}"]) == 0
    assert event(tmp_path, "final")["loss"] == event(trained, "final")["loss"]


def test_a_long_training_tries_rates_first_where_none_is_given(tmp_path: Path) -> None:
    """The rate for its width was four times the best one of a 0.5B model: 0.05 nats."""
    words = [*REAL[:-1], "task=finetune", "allocation=uniform:4,2"]
    short, run = tmp_path / "short", tmp_path / "run"
    assert main([*words, f"out={short}", "final.steps=29"]) == 0
    assert event(short, "calibration")["tried"] == []  # three trials of a step would cost more than a tenth
    assert not any(e.get("stage") == "comparison" for e in read_journal(short / "trials.jsonl").events)
    assert main([*words, f"out={run}", "final.steps=30"]) == 0
    found, lines = event(run, "calibration"), read_journal(run / "trials.jsonl").events
    losses = {trial["learning_rate"]: trial["loss"] for trial in found["trials"]}
    assert len(losses) >= 3
    assert found["learning_rate"] == min(losses, key=losses.__getitem__)
    assert {e["fidelity"] for e in lines if e["event"] == "trial"} == {"low"}
    best = best_of(run)
    assert (best["learning_rate"], best["learning_rate_source"]) == (found["learning_rate"], BY_TRIES)


def test_measured_over_the_budget_is_status_2_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("qra_bo.finetune.oracle.FinetuneOracle.measure_peak",
                        lambda self, **_: {"state": "ok", "message": "", "measured_bytes": 10**9, "peaks": {}})
    words = [*REAL, "task=finetune", "allocation=uniform:4,2", f"out={tmp_path / 'r'}"]
    assert main(words) == 2
    assert "the only allocation did not measure within the budget of" in capsys.readouterr().err
    assert not (tmp_path / "r" / "adapter").exists()


def test_predicted_over_the_budget_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*REAL, "task=finetune", "allocation=uniform:8,8", f"out={tmp_path / 'r'}"]
    assert main([*words, "budget=uniform:4,4"]) == 2
    assert " kB over the budget" in capsys.readouterr().err
    assert main([*words, "max_average_bits=4"]) == 2
    assert "max_average_bits=4" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_where_nothing_binds_the_search_trains_that_choice(tmp_path: Path) -> None:
    words = [*REAL, "bits=[2,4,8]", "ranks=[2,4]", "budget=uniform:8,4", f"out={tmp_path}"]
    result = qra_bo.search(words)
    best = result.best
    assert (result.exit_status, best["bits"], best["ranks"], best["searched"]) == (0, [8] * 4, [4] * 4, False)
    given = load_run(tmp_path).study.header.given
    assert given.reason == \
        "uniform 8 bits with rank 4, the most that bits and ranks allow, fits the budget"
    assert qra_bo.search(words).best == best


def test_over_the_budget_the_next_smaller_rank_is_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.finetune.oracle.FinetuneOracle.measure_peak", lambda self, allocation, **_: {
        "state": "ok", "message": "", "measured_bytes": 10**9 if allocation["ranks"][0] == 4 else 1, "peaks": {}})
    result = qra_bo.search([*REAL, "bits=[2,4,8]", "ranks=[2,4]", "budget=uniform:8,4", f"out={tmp_path}"])
    assert (result.exit_status, result.best["ranks"]) == (3, [2] * 4)


def file_of(folder: Path, **content: Any) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps({"formats": ["nf4", "hqq3", "nf4", "int8"], "ranks": [4, 2, 1, 8], **content}))
    return path


def finetune_config(path: object, *more: str) -> RunConfig:
    return load_config([*REAL, "task=finetune", f"allocation={path}", "budget=8MB", *more])


def test_a_plain_file_is_trained_at_the_rate_of_the_rule(tmp_path: Path) -> None:
    config = finetune_config(file_of(tmp_path))
    given, narrowed = read_allocation(config, make_setting(config).space)
    assert given.allocations[0].formats == ("nf4", "hqq3", "nf4", "int8")
    assert (given.learning_rate, given.rate_source) == (config.adapter.lr, "adapter.lr by its rule, not calibrated")
    assert (narrowed.bits, narrowed.ranks, narrowed.format_names) == ((3, 4, 8), (1, 2, 4, 8), ("hqq3", "nf4", "int8"))


@pytest.mark.parametrize(("options", "source"), [
    (["effort=instant"], BY_TRIES), (["effort=instant", "calibrate.lr_scales=[1.0]"], BY_PRIOR),
    (["effort=quick", "effort.max_full_trials=8", "calibrate.lr_scales=[1.0]"], BY_RULE),
    (["effort=quick", "effort.max_full_trials=8"], CALIBRATED)])
def test_a_rate_is_calibrated_only_where_a_search_tried_several(tmp_path: Path, options: list[str],
                                                                source: str) -> None:
    run = qra_bo.search(["+model=tiny", "data=tiny", "oracle=synthetic", "budget=uniform:3,16", "display=none",
                  "confirm.seeds=0", f"out={tmp_path / 'run'}", *options])
    assert run.best["learning_rate_source"] == (None if source == CALIBRATED else source)
    config = finetune_config(run.folder, "budget=9MB")
    given, _ = read_allocation(config, make_setting(config).space)
    assert given.rate_source == source


@pytest.mark.parametrize("steps", [1, 7])
def test_the_files_rate_stays_that_of_its_own_trials(tmp_path: Path, steps: int) -> None:
    config = finetune_config(file_of(tmp_path, learning_rate=0.004, training={"trial_steps": steps}))
    read = read_allocation(config, make_setting(config).space)[1]
    assert (read.fidelity.high, read.fidelity.low) == (steps, None if steps == 1 else 1)
    config = finetune_config(file_of(tmp_path, training={"trial_steps": steps}))
    assert read_allocation(config, make_setting(config).space)[1].fidelity == config.fidelity  # the run's own rate


def test_the_files_own_budget_bounds_what_it_did_in_the_search(tmp_path: Path) -> None:
    file = file_of(tmp_path, memory={"scope": "stored", "budget_bytes": 500_000})
    for more, scope, size in (([], "stored", 500_000), (["budget=8MB"], "peak", 8_000_000)):
        config = load_config([*REAL, "task=finetune", f"allocation={file}", *more])
        given, narrowed = read_allocation(config, make_space(config, make_spec(config)))
        assert narrowed.memory.scope == scope
        assert checked_budget(replace(make_setting(narrowed), given=given), tmp_path / "run") == size


def test_a_mix_is_expanded_trained_and_named_with_its_rule(tmp_path: Path) -> None:
    given = {key: yaml.safe_load(value) for key, value in (text.lstrip("+").split("=") for text in REAL)}
    best = qra_bo.allocate("mix:3.5,2", **given, out=str(tmp_path)).best
    assert (best["bits"], best["ranks"], best["average_bits"]) == ([4, 3, 3, 4], [2] * 4, 3.5)
    assert (best["winner_kind"], best["rule"], best["delivered"]["steps"]) == ("fractional", "both ends first", 3)
    assert best["memory"]["predicted_bytes"] == best["memory"]["budget_bytes"]
    config = load_config([*REAL, "task=finetune", "allocation=mix:3.1,2"])
    given, narrowed = read_allocation(config, make_space(config, make_spec(config)))
    assert (set(given.allocations[0].formats), narrowed.budget[0].text) == ({"t3"}, "uniform:3,2")


@pytest.mark.parametrize("text", ["mix:3.5,2", "' mix:3.5,2 '", '" mix: 3.5 , 2"', "'MIX:3.50,02'", "\" mix:3.5,2\""])
def test_a_quoted_simple_choice_is_read(text: str) -> None:
    config = load_config([*REAL, "task=finetune", f"allocation={text}"])
    assert set(read_allocation(config, make_space(config, make_spec(config)))[0].allocations[0].ranks) == {2}
    assert load_config([*REAL, "task=memory", f"budget={text}"]).budget[0].text.strip(" ").lower().startswith("mix:")


def test_a_path_may_begin_like_a_uniform_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file_of(tmp_path).rename(tmp_path / "uniform_run")
    config = finetune_config("uniform_run")
    given, _ = read_allocation(config, make_space(config, make_spec(config)))
    assert given.allocations[0].ranks == (4, 2, 1, 8)


@pytest.mark.parametrize(("content", "message"), [
    (None, "can't be read"), ("[", "is not JSON"), ("{}", "lists 'formats'"),
    ('{"formats": ["nf4"], "ranks": [4]}', "for 1 units; this model has 4"),
    ('{"formats": ["nf4", "nf4", "nf4", "nf4"], "ranks": [4, 4, 4, 4], "units": ["a", "b", "c", "d"]}',
     "file names ['a', 'b', 'c', 'd']"),
    ('{"formats": ["nf4", "nf4", "nf4", "nf5"], "ranks": [4, 4, 4, 4]}', "nf5"),
    ('{"formats": ["nf4", "nf4", "nf4", "nf4"], "ranks": [4, 4, 4, 4000]}', "4000"),
    ('{"formats": ["nf4", "nf4", "nf4", "nf4"], "ranks": [4, 4, 4, 4], "granularity": "block"}',
     "give granularity=block"),
    ('{"formats": ["nf4", "nf4", "nf4", "nf4"], "ranks": [4, 4, 4, 4], "model": "big", "unit_numel": [1, 1, 1, 1]}',
     "was found for big, whose units have other shapes than those of tiny")])
def test_unusable_allocation_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None,
                                          message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert main([*REAL, "task=finetune", f"allocation={path}", f"out={tmp_path / 'e'}", "budget=8MB"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("key", "value"), [("ranks", [1, 2, 3, 4]), ("learning_rate", 0.5), ("model", "x"),
                                            ("loss", 0.1), ("codes", "gptq"), ("training", {}), ("memory", None)])
def test_a_result_that_was_edited_in_its_run_is_refused(searched: Path, tmp_path: Path, key: str, value: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(searched / "trials.jsonl", run)
    for name in ("best.json", "edited.json"):
        (run / name).write_text(json.dumps({**best_of(searched), key: value}))
    for given in (run, run / "best.json"):
        config = finetune_config(given)
        with pytest.raises(ConfigError, match=r"is not what the run's trials\.jsonl says"):
            read_allocation(config, make_setting(config).space)
    config = finetune_config(run / "edited.json", "budget=90MB")  # a file of the user's own
    assert read_allocation(config, make_setting(config).space)


@pytest.fixture(scope="module", name="own")
def make_own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run on a model in a folder, and its command."""
    folder = tmp_path_factory.mktemp("own")
    tiny_llama(vocab=320)[0].save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    words = [*REAL[1:], "+model=hf", f"model.path={folder / 'model'}", "task=finetune", "allocation=uniform:4,3",
             f"out={folder / 'run'}"]
    assert main(words) == 0
    return folder, words


@pytest.mark.parametrize(("file", "old", "new", "field"), [
    ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05', "config.rms_norm_eps was 1e-06 and is 1e-05"),
    ("config.json", '"rope_theta": 10000.0', '"rope_theta": 5000.0', "config.rope_parameters.rope_theta was 10000.0"),
    ("tokenizer.json", '"ignore_merges": false', '"ignore_merges": true', "tokenizer was"),
    ("tokenizer.json", '"normalizer": null', '"normalizer": {"type": "Lowercase"}', "tokenizer was"),
    ("config.json", '"pretraining_tp": 1', '"pretraining_tp": 2', "config.pretraining_tp was 1 and is 2"),
    ("config.json", '"hidden_act": "silu"', '"hidden_act": "gelu"', "config.hidden_act was 'silu'"),
    ("config.json", '"max_position_embeddings": 2048', '"max_position_embeddings": 64', "config.max_position_emb"),
    ("tokenizer.json", '"Ā": 0', '"Ā": 1', "tokenizer was"),
    ("tokenizer.json", '"add_prefix_space": false', '"add_prefix_space": true', "tokenizer was")])
def test_a_base_that_was_changed_is_refused_with_its_field(own: tuple[Path, list[str]], file: str, old: str, new: str,
                                                          field: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder, words), path = own, own[0] / "model" / file
    text, journal = path.read_text(encoding="utf-8"), folder / "run" / "trials.jsonl"
    assert text.count(old) == 1
    lines = journal.read_text().splitlines(keepends=True)
    begun = next(i for i, line in enumerate(lines, 1) if '"event":"provenance"' in line)
    try:
        path.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ModelError, match=field):
            qra_bo.load(folder / "run")
        assert main(["task=export", f"out={folder / 'run'}", "export.targets=[merged]"]) == 2
        assert field in capsys.readouterr().err
        journal.write_text("".join(lines[:begun]))  # killed in its training
        assert main([*words, "resume=true"]) == 2
        assert f"base.{field}" in capsys.readouterr().err
    finally:
        path.write_text(text, encoding="utf-8")
        journal.write_text("".join(lines))
    assert qra_bo.load(folder / "run")
