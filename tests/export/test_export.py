"""Exports say exactly the ranks and bits that were found, in each tool's own words."""

import json
import re
import shlex
from dataclasses import replace

import pytest

from qra_bo.config import load_config
from qra_bo.export import bitsandbytes, compressed_tensors, gguf, mlx, vllm
from qra_bo.export.record import recorded
from qra_bo.export.registry import SMALL, TARGETS, export_all, stale_exports
from qra_bo.export.run import GGUF_FILES, FinishedRun
from qra_bo.finetune.manifest import ModuleRecord
from qra_bo.memory.formats import FORMATS
from qra_bo.memory.serving import EXPORT_TARGETS, TARGET_FORMATS
from qra_bo.pipeline.exports import commands, warn_of_stale
from qra_bo.study.results import PREDICTED
from qra_bo.utils.errors import ConfigError, OutputError
from tests.export.fixtures import manifest_json, module_ranks, write_finished


def test_every_text_export_is_written_where_it_says(tmp_path):
    run = write_finished(tmp_path / "run")
    texts = [name for name in SMALL if name != "uniform_rank"]
    paths = export_all(run, texts)
    assert [str(p.relative_to(run)) for p in paths] == [TARGETS[name].path for name in texts]
    assert all(p.read_text() for p in paths)


@pytest.mark.parametrize("target", ["axolotl", "llamafactory"])
def test_yaml_parses_to_the_same_ranks(tmp_path, target):
    yaml = pytest.importorskip("yaml")
    [path] = export_all(write_finished(tmp_path / "run"), [target])
    data = yaml.safe_load(path.read_text())
    if target == "axolotl":
        found = {re.sub(r"\\(.)", r"\1", k): r for k, r in data["lora_rank_pattern"].items()}
        assert found == module_ranks()
        assert {k: a / 2 for k, a in data["lora_alpha_pattern"].items()} == data["lora_rank_pattern"]
        assert data["lora_target_modules"] == list(module_ranks())
        assert data["base_model"] == "org/tiny"
    else:
        assert data["adapter_name_or_path"] == str((tmp_path / "run" / "adapter").resolve())


@pytest.mark.parametrize(("target", "key", "pin"), [
    ("axolotl", "base_model", "revision_of_model"), ("llamafactory", "model_name_or_path", "model_revision")])
@pytest.mark.parametrize(("node", "base", "revision"), [
    ({"source": "path", "gguf_file": None, "revision": None}, "org/tiny", None),
    ({"source": "hub", "gguf_file": None, "revision": "0" * 40}, "org/tiny", "0" * 40),
    ({"source": "hub", "gguf_file": None, "revision": "0" * 40, "text_part": True}, "SET-ME", None),
    ({"source": "wheel", "gguf_file": "Tiny.Q4_1.gguf", "revision": None}, "SET-ME", None)])
def test_trainers_get_the_revision_of_the_base_and_no_gguf_file(tmp_path, target, key, pin, node, base, revision):
    yaml = pytest.importorskip("yaml")
    run = write_finished(tmp_path / "run")
    manifest = json.loads((run / "quant_manifest.json").read_text())
    (run / "quant_manifest.json").write_text(json.dumps({**manifest, "model": node}))
    [path] = export_all(run, [target])
    data = yaml.safe_load(path.read_text())
    assert (data[key], data.get(pin)) == (base, revision)
    assert ("GGUF file Tiny.Q4_1.gguf" in path.read_text()) == bool(node["gguf_file"])


def test_script_for_trl_is_python_whatever_the_model_is_called(tmp_path):
    [path] = export_all(write_finished(tmp_path / "run", model='a """ b \\ \' c'), ["trl"])
    compile(path.read_text(), str(path), "exec")


def test_vllm_serves_a_merged_copy_of_what_it_does_not_load(tmp_path):
    run = write_finished(tmp_path / "run")
    text = export_all(run, ["vllm"])[0].read_text()
    assert "vLLM has no hqq4, hqq8" in text
    assert f"vllm serve {run.resolve() / 'export' / 'merged'}\n" in text
    assert "serve=vllm" in text


def test_vllm_serves_the_mix_with_an_adapter_of_one_rank(tmp_path):
    run = write_finished(tmp_path / "run")
    formats = dict(zip(module_ranks(), ("sym4-g64", "sym8-g64", "sym4-g64", "fp16"), strict=True))
    (run / "quant_manifest.json").write_text(json.dumps(manifest_json(module_ranks(), formats)))
    text = export_all(run, ["vllm"])[0].read_text()
    assert f"vllm serve {run.resolve() / 'compressed_tensors'} --enable-lora --max-lora-rank 8 " in text
    assert f"--lora-modules qra_bo={run.resolve() / 'export' / 'adapter_uniform_rank'}\n" in text
    assert "(4, 8 bits), on a GPU." in text


@pytest.mark.parametrize(("formats", "said"), [
    (("sym4-g64", "sym4-g64", "sym4-g64", "fp16"), None), (("sym4-g64", "sym4-g32", "sym4-g64", "fp16"), "qkv"),
    (("sym4-g64", "sym4-g64", "nf4", "fp16"), "vLLM has no nf4")])
def test_vllm_wants_one_format_for_projections_of_one_input(formats, said):
    names = [f"layers.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
    found = vllm.obstacle(dict(zip(names, formats, strict=True)))
    assert found is None if said is None else said in found


def test_card_names_base_baseline_and_interval(tmp_path):
    [path] = export_all(write_finished(tmp_path / "run"), ["card"])
    text = path.read_text()
    assert path.parent.name == "adapter"
    for part in ('"base_model": "org/tiny"', "| uniform-4bit-r16 | 4.1300", "\u22120.0120", "needs its mixed base",
                 "| 0 | 8 | bitsandbytes 8-bit | 2 |", "| 1 | 4 | bitsandbytes 4-bit | 5 |", "Licence"):
        assert part in text


@pytest.mark.parametrize(("bits", "ranks", "said", "tag"), [
    ([4, 4], [8, 8], "A LoRA adapter of rank 8, trained on a base model of 4 bits. Both were", False),
    ([8, 8], [2, 5], "whose rank differs by unit, trained on a base model of 8 bits. Both were", False),
    ([16, 16], [2, 5], "whose rank differs by unit, trained on a base model of 16 bits. Both were", False),
    ([8, 4], [2, 2], "of rank 2, trained on a base model whose bit-width differs by unit. Both were", True)])
def test_card_says_what_differs_by_unit(tmp_path, bits, ranks, said, tag):
    run = write_finished(tmp_path / "run", bits=bits, ranks=ranks)
    [path] = export_all(run, ["card"])
    text = path.read_text()
    assert said in text
    assert ("mixed-precision" in text.split("---")[1]) == tag
    assert ("needs its mixed base" in text) == tag
    assert ("**Its base is `org/tiny` in 16 bits**" in text) == (bits[0] == 16)
    assert ("On a 16-bit base" in text) == (bits[0] != 16)


def test_card_states_the_adapters_own_test_loss_apart(tmp_path):
    final = {"loss": 3.871, "loss_se": .005, "steps": 320, "kept_step": 240, "metric": "test_loss"}
    [path] = export_all(write_finished(tmp_path / "run", delivered=final, search_loss=4.07), ["card"])
    text = path.read_text()
    assert "Test loss of this adapter: 3.8710 ± 0.0050 nats per token**, after 240 steps" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| | validation loss (nats per token) | predicted memory | fits |" in rows
    assert any(row.startswith("| **this allocation** | 4.0700 |") for row in rows)
    assert "4.0100" not in text  # the confirmation's mean test loss, of shorter trainings


@pytest.mark.parametrize("seeds", [0, 5])
def test_card_of_a_uniform_winner_does_not_compare_it_with_itself(tmp_path, seeds):
    same = {"mean": 0.0, "low": 0.0, "high": 0.0, "train_seeds": seeds}
    [path] = export_all(write_finished(tmp_path / "run", winner_kind="uniform", versus_best_uniform=same), ["card"])
    assert "This allocation is the best uniform baseline.\n" in path.read_text()  # a mixed one may not have fitted
    assert "95 % interval" not in path.read_text()


@pytest.mark.parametrize(("ahead", "said"), [
    (0.0, "after 24 steps: \u22120.0120 nats (95 % interval \u22120.0180 to \u22120.0060; negative is better).\n"),
    (.02, "negative is better); +0.0080 predicted for 240 steps.\n")])
def test_card_states_the_length_of_the_comparison_and_what_is_predicted_beyond(tmp_path, ahead, said):
    objective = {"steps": 240, "trial_steps": 24, "confirmed_steps": 24, "predicted_beyond": ahead}
    [path] = export_all(write_finished(tmp_path / "run", objective=objective), ["card"])
    assert said in path.read_text()


@pytest.mark.parametrize(("numbers", "compares"), [((-.02, -.03, -.01), True), ((None, None, None), False),
                                                   ((0.0, 0.0, 0.0), False)])
def test_card_states_a_predicted_difference_of_the_delivered_allocation_alone(tmp_path, numbers, compares):
    prediction = {"label": PREDICTED, **dict(zip(("mean", "low", "high"), numbers, strict=True)), "steps": 24}
    run = write_finished(tmp_path / "run", searched=False, prediction=prediction, versus_best_uniform=None)
    [path] = export_all(run, ["card"])
    text = path.read_text()
    assert PREDICTED in text
    assert ("nats against the best uniform choice" in text) == compares


def test_card_of_a_synthetic_run_says_so_first(tmp_path):
    [path] = export_all(write_finished(tmp_path / "run", oracle="synthetic"), ["card"])
    assert "no model was trained" in path.read_text().split("\n## ")[0]


def test_unknown_targets_are_all_named_nearest_first(tmp_path):
    with pytest.raises(ConfigError, match=r"'axolot' is unknown; known: axolotl.*'zzz' is unknown"):
        export_all(tmp_path, ["axolot", "zzz", "card"])


def test_an_unfinished_run_is_refused_with_all_that_is_missing(tmp_path):
    with pytest.raises(OutputError, match=r"best\.json can't be read.*quant_manifest\.json can't be read"):
        export_all(tmp_path, ["card"])
    run = write_finished(tmp_path / "run")
    (run / "best.json").write_text("{}")
    with pytest.raises(OutputError, match=r"best\.json: model is missing"):
        export_all(run, list(TARGETS))


def test_checks_of_another_release_are_passed_over_and_other_changes_refused(tmp_path, monkeypatch):
    run = write_finished(tmp_path / "run")
    best = json.loads((run / "best.json").read_text())
    monkeypatch.setattr("qra_bo.export.run.load_study", lambda folder: None)
    monkeypatch.setattr("qra_bo.export.run.build_best", lambda study: {**best, "checks": [{"action": "Reworded."}]})
    assert export_all(run, ["card"])
    (run / "best.json").write_text(json.dumps({**best, "ranks": best["ranks"][::-1], "loss": 0.1}))
    with pytest.raises(OutputError, match=r"is not what the run's trials\.jsonl says"):
        export_all(run, ["card"])


@pytest.mark.parametrize("modules", [{"a": "Int8WeightOnlyConfig"}, {"a": {"bits": 4}}, ["a"]])
def test_a_manifest_with_other_modules_is_refused(tmp_path, modules):
    run = write_finished(tmp_path / "run")
    (run / "quant_manifest.json").write_text(json.dumps({"modules": modules}))
    with pytest.raises(OutputError, match=r"quant_manifest\.json: every module must have"):
        export_all(run, list(TARGETS))


def test_padding_to_one_rank_keeps_the_product_and_scale(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    run = write_finished(tmp_path / "run")
    draw = torch.Generator().manual_seed(0)
    weights = {}
    for name, r in module_ranks().items():
        weights[f"base_model.model.{name}.lora_A.weight"] = torch.randn(r, 6, generator=draw)
        weights[f"base_model.model.{name}.lora_B.weight"] = torch.randn(7, r, generator=draw)
    save_file(weights, run / "adapter" / "adapter_model.safetensors")
    from tests.security.test_adapters import seal_adapter
    seal_adapter(run)
    paths = export_all(run, ["uniform_rank"])
    padded = load_file(paths[1])
    config = json.loads(paths[0].read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (5, 10, {})
    for name in module_ranks():
        a, b = (f"base_model.model.{name}.lora_{x}.weight" for x in "AB")
        assert padded[a].shape == (5, 6)
        assert padded[b].shape == (7, 5)
        torch.testing.assert_close(padded[b] @ padded[a], weights[b] @ weights[a])


def test_padding_without_weights_says_what_is_missing(tmp_path):
    with pytest.raises(OutputError, match="adapter_model"):
        export_all(write_finished(tmp_path / "run"), ["uniform_rank"])


@pytest.mark.parametrize(("files", "said"), [
    (("base", "adapter", "merged-f16"), "-m {}/base.gguf --lora {}/adapter.gguf"),
    (("merged-q8_0",), "-m {}/merged-q8_0.gguf"),
    (("base",), None), ((), None),
])
def test_the_server_of_llamacpp_is_started_with_the_files_at_hand(tmp_path, files, said):
    run = write_finished(tmp_path / "run")
    folder = run.resolve() / "gguf"
    folder.mkdir()
    merged = any(name.startswith("merged") for name in files)
    for name in (*(f"{name}.gguf" for name in files), *["Modelfile"] * merged):
        (folder / name).touch()
    wanted = None if said is None else f"llama-server {said.replace('{}', str(folder))} --host 127.0.0.1 --port 8080"
    assert gguf.start(FinishedRun.read(run)) == wanted
    ollama = gguf.start_ollama(FinishedRun.read(run))
    assert (ollama is None) == (not merged)
    assert ollama is None or ollama.startswith(f"cd {shlex.quote(str(run.resolve() / 'gguf'))} && ollama create ")


def test_models_of_two_runs_have_names_of_their_own_in_ollama(tmp_path):
    names = set()
    for folder in ("runs/tiny-8GB-20260101", "runs/2", "other runs/é" + 90 * "x"):
        run = write_finished(tmp_path / folder)
        (run / "gguf").mkdir()
        (run / "gguf" / "Modelfile").touch()
        names.add(shlex.split(gguf.start_ollama(FinishedRun.read(run)))[-1])
    assert len(names) == 3
    assert {"tiny-8gb-20260101", "tiny-2"} < names
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,79}", name) for name in names)


def test_vllm_is_started_where_its_files_are(tmp_path):
    run = write_finished(tmp_path / "run")
    formats = dict.fromkeys(module_ranks(), "sym4-g64")
    (run / "quant_manifest.json").write_text(json.dumps(manifest_json(module_ranks(), formats)))
    assert vllm.start(FinishedRun.read(run)) is None
    for name in ("compressed_tensors", "uniform_rank"):
        (run / TARGETS[name].path).mkdir(parents=True)
        assert vllm.start(FinishedRun.read(run)) is None  # begun, and perhaps not ended
        with recorded(FinishedRun.read(run), name):
            pass
    assert vllm.start(FinishedRun.read(run)).startswith(f"vllm serve {run.resolve() / 'compressed_tensors'} ")


def test_exports_that_failed_or_are_of_an_earlier_adapter_are_stale(tmp_path, monkeypatch, caplog):
    run = write_finished(tmp_path / "run")
    broken = []

    def write(finished):
        (finished.folder / "mlx").mkdir(exist_ok=True)
        if broken:
            raise OSError(28, "No space left on device")
        return []

    monkeypatch.setitem(TARGETS, "mlx", replace(TARGETS["mlx"], write=write))
    found = lambda: stale_exports(FinishedRun.read(run))  # noqa: E731
    assert found() == []
    export_all(run, ["mlx"])
    assert found() == []
    broken.append(True)
    with pytest.raises(OutputError, match="No space left"):
        export_all(run, ["mlx"])
    assert found() == ["mlx"]
    broken.clear()
    export_all(run, ["mlx"])
    assert found() == []
    manifest = json.loads((run / "quant_manifest.json").read_text())
    (run / "quant_manifest.json").write_text(json.dumps({**manifest, "adapter_sha256": "1" * 64}))
    assert found() == ["mlx"]
    warn_of_stale(load_config([]), run)
    [line] = caplog.messages
    assert line.startswith("the exports mlx are unfinished, or of an earlier result")
    assert line.endswith(f"python -m qra_bo task=export out={run} 'export.targets=[mlx]'")


def test_commands_that_write_exports_again_keep_folder_and_options(tmp_path, monkeypatch, caplog):
    def write(finished):
        raise OSError(28, "No space left on device")

    run = write_finished(tmp_path / "a run, of mine").resolve()
    asked = ["export.gguf=[base,adapter,merged-q8_0]", "export.merged_base=original", "model.trust_remote_code=true"]
    for name in ("gguf", "merged"):
        (run / TARGETS[name].path).mkdir(parents=True)
    monkeypatch.setitem(TARGETS, "merged", replace(TARGETS["merged"], write=write))
    with pytest.raises(OutputError, match="No space left") as failed:
        export_all(run, ["merged"], "original", trust_remote_code=True)
    assert commands(load_config(asked), run) == []
    warn_of_stale(load_config(asked), run)
    [line] = caplog.messages
    for told, targets, gguf_files in ((str(failed.value), ["merged"], GGUF_FILES),
                                      (line, ["gguf", "merged"], ("base", "adapter", "merged-q8_0"))):
        words = shlex.split(told.partition("again: ")[2])
        assert words[:4] == ["python", "-m", "qra_bo", "task=export"]
        again = load_config(words[3:])
        assert str(again.out) == str(run)
        assert (list(again.export.targets), tuple(again.export.gguf)) == (targets, gguf_files)
        assert again.export.merged_base == "original"
        assert again.model["trust_remote_code"]


def test_configurations_know_the_names_of_all_targets():
    assert set(EXPORT_TARGETS) == set(TARGETS)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_search_is_refused_the_formats_that_its_exports_refuse(fmt):
    def holds(refuse, *given):
        try:
            refuse(*given)
        except ConfigError:
            return False
        return True

    record = ModuleRecord(fmt, (4, 256), 0, 0.0, "")
    found = {"compressed_tensors": holds(compressed_tensors.refuse_formats, {"x": fmt}),
             "gguf": holds(gguf.refuse_formats, {"x": record}), "mlx": holds(mlx.refuse_formats, [record]),
             "bitsandbytes": fmt.name in bitsandbytes.SERVABLE}
    assert found == {target: stated(fmt) for target, (stated, _) in TARGET_FORMATS.items()}
