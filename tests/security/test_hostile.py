"""Files of unknown origin are data: each hostile one is refused with one clear message, and none of it runs."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qra_bo.config import load_config
from qra_bo.export import merged
from qra_bo.export.load import load
from qra_bo.export.registry import check_exports
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.data.jsonl import read_rows, records_of
from qra_bo.finetune.manifest import MANIFEST, PROBE, read_manifest, sealed
from qra_bo.finetune.models.load import load_base
from qra_bo.pipeline.folders import run_folder
from qra_bo.report.data import load_run
from qra_bo.report.html import write_report
from qra_bo.runs import main as runs
from qra_bo.study.journal import Journal, checksum, read_journal
from qra_bo.tasks.evaluate import run as evaluate
from qra_bo.utils.errors import DataError, DeviceError, JournalError, ModelError, OutputError, UserError
from qra_bo.utils.files import check_run_folder
from tests.report.fixtures import make_events, write_run

DEEP = "[" * 100_000
HF = {"name": "hf", "source": "path", "gguf_file": None, "revision": None, "trust_remote_code": False}


def changed(whole: Path, target: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a finished run with one JSON file changed; a manifest is sealed again, as its author could."""
    shutil.copytree(whole, target)
    data = json.loads((target / name).read_text())
    change(data)
    (target / name).write_text(json.dumps(sealed(data) if name == MANIFEST else data))
    return target


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda d: d["model"].update(trust_remote_code=True, source="path", path="evil/model"), ModelError,
     r"trust_remote_code.*qra_bo\.load\(run, trust_remote_code=True\)"),
    (lambda d: d["model"].update(source="wheel", path="evil.package"), ModelError, "installed package"),
    (lambda d: d["model"].update(source="pickle"), ModelError, "model.source"),
    (lambda d: d.update(model=[1]), OutputError, "malformed"),
    (lambda d: d.update(model={}), OutputError, "names no base model"),
    (lambda d: d["model"].pop("vocab_size"), OutputError, "vocab_size"),
    *((lambda d, changes=changes: d["model"].update(changes), OutputError, message) for changes, message in [
        ({"n_heads": 0}, "n_heads: .* got 0"), ({"n_layers": "2"}, "n_layers: .* got '2'"),
        ({"hidden_size": 64.0}, "hidden_size: .* got 64"), ({"tied": 1}, "tied: .* got 1"),
        ({"n_kv_heads": 3}, "n_kv_heads must divide"), ({"n_layers": 10**12}, "n_layers: .* got 1000000000000"),
        ({"n_layers": 10**6}, "1000000 layers"), ({"hidden_size": 10**9}, "not those of its modules"),
        ({"head_dim": True}, "head_dim: .* got True"), ({"vocab_size": 10**9}, "bytes of memory")]),
    (lambda d: d.update(packed="../../etc/passwd"), OutputError, "packed"),
    *((lambda d, name=name: d["modules"].update({name: next(iter(d["modules"].values()))}), OutputError, "a name of")
      for name in ("." * 30_000, "a." * 15_000, "a" * 30_000)),
    (lambda d: d.update(compute_dtype="load"), OutputError, "compute_dtype"),
    (lambda d: d.update(packed_on="/dev/mem"), OutputError, "packed_on"),
    (lambda d: next(iter(d["modules"].values())).update(bits=10**200), UserError, "bits"),
    (lambda d: next(iter(d["modules"].values())).update(bits=10**400), OutputError, "beyond the range of numbers"),
    (lambda d: next(iter(d["modules"].values())).update(shape=[-1, 1 << 60]), OutputError, "shape")])
def test_hostile_manifests_are_refused(whole: Path, tmp_path: Path, change: Any, error: type[UserError],
                                       message: str) -> None:
    with pytest.raises(error, match=message):
        load(changed(whole, tmp_path / "run", MANIFEST, change))


WRITERS: dict[str, Callable[[FinishedRun], Any]] = {"merged": merged.write, "check": check_exports}


@pytest.mark.parametrize("name", WRITERS)
def test_no_export_runs_remote_code_without_consent(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               name: str) -> None:
    folder = changed(whole, tmp_path / "run", MANIFEST,
                     lambda d: d["model"].update(trust_remote_code=True, source="path", path="evil/model"))
    save_file({"input_ids": torch.zeros(1, 2), "logits": torch.zeros(1, 2, 3)}, folder / PROBE)
    asked: list[Any] = []
    monkeypatch.setattr("qra_bo.export.load.fetch", lambda _: None)
    monkeypatch.setattr("qra_bo.export.load.load_base", asked.append)
    run = FinishedRun(folder, {}, {}, read_manifest(folder))
    with pytest.raises(ModelError, match=r"evil/model.*model\.trust_remote_code=true"):
        WRITERS[name](run)
    assert not asked
    with pytest.raises(TypeError):  # at the user's word it asks the loader, which gives nothing here
        WRITERS[name](replace(run, trust_remote_code=True))
    assert asked[0]["trust_remote_code"] is True


def test_tasks_run_no_remote_code_without_consent(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = changed(whole, tmp_path / "run", MANIFEST,
                  lambda d: d["model"].update(trust_remote_code=True, source="path", path="evil/model"))
    monkeypatch.setattr("qra_bo.finetune.evaluation.check_tasks", lambda tasks: None)
    config = ["task=evaluate", "eval.tasks=[x]", f"out={run}", "device=cpu"]
    with pytest.raises(ModelError, match="If you trust it"):
        evaluate(load_config(config))


@pytest.mark.parametrize(("change", "what"), [
    (lambda d: d.update(megatron_config={"a": 1}, megatron_core="evil"), "megatron_core"),
    (lambda d: d.update(auto_mapping={"parent_library": "evil", "base_model_class": "X"}), "auto_mapping"),
    (lambda d: d["rank_pattern"].update({"(a+)+$": 4}), "rank_pattern"),
    (lambda d: d.update(init_lora_weights="pissa"), "init_lora_weights"),
    (lambda d: d.update(peft_type="LOKR"), "LoRA"),
    (lambda d: d.update(modules_to_save=["lm_head"]), "modules_to_save")])
def test_hostile_adapter_configurations_are_refused(whole: Path, tmp_path: Path, change: Any, what: str) -> None:
    with pytest.raises(OutputError, match=what):
        load(changed(whole, tmp_path / "run", "adapter/adapter_config.json", change))


def test_an_adapter_that_is_a_pickle_is_never_read(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({}, run / "adapter" / "adapter_model.bin")
    with pytest.raises(OutputError, match="a pickle, which can run code"):
        load(run)


def test_links_in_a_run_are_refused_by_every_command(whole: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = write_run(tmp_path / "runs" / "r", make_events())
    (run / "report.html.part").symlink_to(victim)
    for action in (lambda: write_report(run), lambda: load(run), lambda: check_run_folder(run),
                   lambda: run_folder(load_config(["+model=tiny", "data=tiny", f"out={run}"]))):
        with pytest.raises(OutputError, match=r"holds report\.html\.part, which is a symbolic link to"):
            action()
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", [".lock", "trials.jsonl"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    with pytest.raises(OutputError, match="symbolic link"), Journal(tmp_path / "run"):
        pass
    assert victim.read_text() == "precious"


def test_a_journal_that_is_a_pipe_does_not_hang(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "trials.jsonl")
    with pytest.raises(OutputError, match="no regular file"):
        read_journal(tmp_path / "trials.jsonl")
    assert runs(["list", str(tmp_path)]) == 0
    assert "unreadable" in capsys.readouterr().out


def test_a_journal_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text('{"event":"header","x":' + DEEP + "\n")
    with pytest.raises(JournalError, match="line 1 is not the header"):
        read_journal(tmp_path / "trials.jsonl")


def test_control_characters_and_markup_are_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07<script>alert(1)</script>\u202e\ud800[red]"
    events = make_events(model=evil)
    run = write_run(tmp_path / "r", events)
    assert runs(["list", str(tmp_path)]) == 0
    assert runs(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    write_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    for text in (shown, page):
        assert not set("\x1b\x07\u202e") & set(text)
    assert "<script>alert" not in page
    assert load_run(run).header.model.endswith("</script>\ufffd\ufffd[red]")


def test_checksums_hold_for_what_was_written(tmp_path: Path) -> None:
    event = {"event": "header", "session": 1, "elapsed": 0, "schema_version": 3, "note": "\x1b[2J"}
    line = json.dumps({**event, "crc": checksum(event)}).encode()
    (tmp_path / "trials.jsonl").write_bytes(line + b"\n")
    (read,) = read_journal(tmp_path / "trials.jsonl").events
    assert read["note"] == "\ufffd[2J"


def test_a_data_file_that_is_a_pipe_or_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="must be a file"):
            records_of(read_rows(str(path)), None, str(path))


def test_a_model_folder_of_pickles_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: pickles.*safe_serialization=True"):
        load_base({**HF, "path": str(tmp_path)})


@pytest.mark.parametrize("config", ['{"model_type": "llama", "hidden_size": "x"}', "{", DEEP, "[]", '{"model_type": 3}',
                                    '{"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}'])
def test_hostile_model_folders_are_refused_without_running(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="can't be read"):
        load_base({**HF, "path": str(tmp_path)})
    assert not (tmp_path / "ran").exists()


def test_a_gguf_file_lies_in_the_models_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gguf_file"):
        load_base({**HF, "source": "wheel", "path": "qra_bo", "gguf_file": "../../secret.gguf"})


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "gpu", "", torch.device("mps"), torch.device("meta"), 3])
def test_devices_that_no_run_has_are_refused(whole: Path, device: Any) -> None:
    with pytest.raises(DeviceError, match="device must be 'cpu'"):
        load(whole, device)
    assert load(whole, torch.device("cpu"))
