"""Exports say exactly the ranks and bits that were found, in each tool's own words."""

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from qra_bo.config import load_config
from qra_bo.export import gguf, vllm
from qra_bo.export.registry import TARGETS, export_all, stale_exports
from qra_bo.export.run import GGUF_FILES, FinishedRun
from qra_bo.finetune.manifest import MANIFEST, adapter_digest, sealed
from qra_bo.memory.formats import parse_format
from qra_bo.pipeline.exports import commands, warn_of_stale
from qra_bo.study.journal import JournalContent
from qra_bo.utils.errors import ConfigError, ModelError, OutputError
from tests.export.finished import exported
from tests.export.fixtures import manifest_json, module_ranks, write_finished

SYMMETRIC = ("sym4-g64", "sym8-g64", "sym4-g64", "fp16")


def with_manifest(run, **changes):
    """Change fields of a run's manifest, and seal it."""
    manifest = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps(sealed({**manifest, **changes})))
    return run


def with_formats(run, formats=SYMMETRIC):
    """Give the modules of a run these formats."""
    (run / MANIFEST).write_text(json.dumps(manifest_json(module_ranks(), dict(zip(module_ranks(), formats,
                                                                                  strict=True)))))
    return with_manifest(run, adapter_sha256=adapter_digest(run / "adapter"))


def test_vllm_serves_the_mix_with_an_adapter_of_one_rank(tmp_path):
    run = with_formats(write_finished(tmp_path / "run"))
    commands, config, weights = exported(run, ["vllm"])
    text = commands.read_text()
    assert f"vllm serve {run.resolve() / 'compressed_tensors'} --enable-lora --max-lora-rank 8 " in text
    assert f"--lora-modules qra_bo={run.resolve() / 'export' / 'vllm'}\n" in text
    assert "(4, 8 bits), on a GPU." in text
    padded, own, given = load_file(weights), load_file(run / "adapter" / weights.name), json.loads(config.read_text())
    assert (given["r"], given["lora_alpha"], given["rank_pattern"], given["alpha_pattern"]) == (5, 10, {}, {})
    for name in module_ranks():
        a, b = (f"base_model.model.{name}.lora_{x}.weight" for x in "AB")
        assert (padded[a].shape, padded[b].shape) == ((5, 6), (7, 5))
        torch.testing.assert_close(padded[b] @ padded[a], own[b] @ own[a])
    (run / "adapter" / weights.name).unlink()
    with pytest.raises(OutputError, match="adapter_model"):
        exported(run, ["vllm"])


@pytest.mark.parametrize(("formats", "said"), [
    ((*SYMMETRIC[:3], "sym4-g64"), "qkv"), (("sym4-g64", "sym4-g64", "sym4-g64", "fp16"), None),
    (("sym4-g64", "sym4-g32", "sym4-g64", "fp16"), "qkv"), (("sym4-g64", "sym4-g64", "nf4", "fp16"), "has no nf4")])
def test_vllm_wants_one_format_for_projections_of_one_input(formats, said):
    names = [f"layers.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
    found = vllm.obstacle(dict(zip(names, map(parse_format, formats), strict=True)))
    assert found is None if said is None else said in found


def test_checks_of_another_release_are_passed_over_and_other_changes_refused(tmp_path, monkeypatch):
    run = write_finished(tmp_path / "run")
    best = json.loads((run / "best.json").read_text())
    monkeypatch.setattr("qra_bo.study.results.read_journal", lambda path: JournalContent((), (), (), 0))
    monkeypatch.setattr("qra_bo.study.results.build_best", lambda study: {**best, "checks": [{"action": "Reworded."}]})
    assert exported(run, ["card"])
    (run / "best.json").write_text(json.dumps({**best, "ranks": best["ranks"][::-1], "loss": 0.1}))
    with pytest.raises(OutputError, match=r"is not what the run's trials\.jsonl says"):
        exported(run, ["card"])


@pytest.mark.parametrize("target", ["card", "trl", "vllm"])
@pytest.mark.parametrize("damage", [
    lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"x"),
    lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(),
    lambda run: (run / "adapter" / "adapter_config.json").write_text("{}"),
    lambda run: (run / MANIFEST).write_text((run / MANIFEST).read_text()[:-9]),
    lambda run: with_manifest(run, adapter_sha256="0" * 64),
    lambda run: with_manifest(run, modules={}), lambda run: with_manifest(run, modules=manifest_json(
        dict.fromkeys(module_ranks(), 3), dict.fromkeys(module_ranks(), "nf4"))["modules"])])
def test_a_damaged_adapter_or_manifest_gives_no_export(tmp_path, target, damage):
    run = write_finished(tmp_path / "run")
    damage(run)
    with pytest.raises(OutputError):
        exported(run, [target])
    assert not (run / TARGETS[target].path).is_file()


def test_models_of_two_runs_have_names_of_their_own_in_ollama(tmp_path):
    names = set()
    for folder in ("runs/tiny-8GB-20260101", "runs/2", "other runs/é" + 90 * "x"):
        run = write_finished(tmp_path / folder)
        (run / "gguf").mkdir()
        (run / "gguf" / "Modelfile").touch()
        names.add(shlex.split(gguf.start(FinishedRun.read(run))["Ollama"])[-1])
    assert len(names) == 3
    assert {"tiny-8gb-20260101", "tiny-2"} < names
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}", name) for name in names)


def test_exports_that_failed_or_are_of_an_earlier_adapter_are_stale(tmp_path, monkeypatch, caplog):
    run = write_finished(tmp_path / "run")
    broken = []

    def write(finished):
        (finished.folder / "mlx").mkdir(exist_ok=True)
        if broken:
            raise broken[0]
        return []

    monkeypatch.setitem(TARGETS, "mlx", replace(TARGETS["mlx"], write=write))
    found = lambda: stale_exports(FinishedRun.read(run))  # noqa: E731
    assert found() == []
    exported(run, ["mlx"])
    assert found() == []
    broken.append(ModelError("the base is gone"))
    with pytest.raises(ModelError):
        exported(run, ["mlx"])
    assert found() == []  # nothing was written over
    broken[0] = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="No space left"):
        exported(run, ["mlx"])
    assert found() == ["mlx"]
    broken.clear()
    exported(run, ["mlx"])
    assert found() == []
    with_manifest(run, adapter_sha256="1" * 64)
    assert found() == ["mlx"]
    warn_of_stale(FinishedRun.read(run))
    [line] = caplog.messages
    assert line.startswith("the exports mlx are unfinished, or of an earlier result")
    assert line.endswith(f"python -m qra_bo task=export out={run} 'export.targets=[mlx]'")


@pytest.mark.parametrize("left", [
    "chat_template.jinja", "model-00009-of-00009.safetensors", "old.gguf", "Modelfile", "generation_config.json",
    "adapter/adapter_config.json", "model.safetensors.index.json"])
def test_an_export_leaves_nothing_of_an_earlier_result(left, tmp_path, monkeypatch):
    def write(finished):
        (finished.folder / "mlx").mkdir(exist_ok=True)
        (finished.folder / "mlx" / "new").touch()
        return []

    run = write_finished(tmp_path / "run")
    monkeypatch.setitem(TARGETS, "mlx", replace(TARGETS["mlx"], write=write))
    exported(run, ["mlx"])
    (run / "mlx" / left).parent.mkdir(exist_ok=True)
    (run / "mlx" / left).touch()
    exported(run, ["mlx"])
    assert (run / "mlx" / left).exists()  # of the same result
    with_manifest(run, adapter_sha256="1" * 64)
    exported(run, ["mlx"])
    assert [p.name for p in (run / "mlx").iterdir()] == ["new"]


def test_commands_that_write_exports_again_keep_folder_and_options(tmp_path, monkeypatch, caplog):
    def write(finished):
        raise OSError(28, "No space left on device")

    run = write_finished(tmp_path / "a run, of mine").resolve()
    asked = load_config(["export.gguf=[base,adapter,merged-q8_0]", "model.trust_remote_code=true"])
    for name in ("gguf", "merged"):
        (run / TARGETS[name].path).mkdir(parents=True)
    monkeypatch.setitem(TARGETS, "merged", replace(TARGETS["merged"], write=write))
    finished = FinishedRun.read(run, asked.model["trust_remote_code"], asked.export.gguf)
    with pytest.raises(OutputError, match="No space left") as failed:
        export_all(finished, ["merged"])
    assert commands(finished) == []
    warn_of_stale(finished)
    [line] = caplog.messages
    for told, targets, gguf_files in ((str(failed.value), ["merged"], GGUF_FILES),
                                      (line, ["gguf", "merged"], ("base", "adapter", "merged-q8_0"))):
        words = shlex.split(told.partition("again: ")[2])
        assert words[:4] == ["python", "-m", "qra_bo", "task=export"]
        again = load_config(words[3:])
        assert str(again.out) == str(run)
        assert (list(again.export.targets), tuple(again.export.gguf)) == (targets, gguf_files)
        assert again.model["trust_remote_code"]


@pytest.mark.parametrize(("target", "formats", "said"), [
    ("gguf", ("nf4", "sym4-g64", "int8", "hqq8"), r"hqq8 \(128.*, int8 \(128.*, nf4 \(128 columns\).*=llamacpp,"),
    ("compressed_tensors", ("nf4", "sym4-g64", "int3-g64", "hqq2"), "hqq2 .*, int3-g64 .*, nf4 .*serve=transformers,"),
    ("mlx", ("sym4-g64", "nf4", "sym4-g64", "int8"), r"int8 \(128 columns\), nf4 \(128 columns\).*serve=mlx,")])
def test_formats_without_a_form_are_all_named_and_nothing_is_written(tmp_path, target, formats, said):
    run = write_finished(tmp_path / "run")
    by_name = dict(zip(module_ranks(), formats, strict=True))
    (run / MANIFEST).write_text(json.dumps(manifest_json(module_ranks(), by_name, dict.fromkeys(by_name, (128, 128)))))
    with pytest.raises(ConfigError, match=said):
        exported(run, [target])
    assert not (run / TARGETS[target].path).exists()
