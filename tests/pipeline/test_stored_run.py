"""Runs on the codes of a GGUF file, or of two: from the plan to the adapter in llama.cpp, beside the untouched file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qra_bo
from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.export.registry import check_exports
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.models.gguf_header import ROPE, read_header
from qra_bo.finetune.models.host_linear import keep_on_host
from qra_bo.finetune.models.load import load_base
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.stored import StoredLinear
from qra_bo.finetune.quantization.stored_model import load_others, load_stored
from qra_bo.memory.file_formats import TYPES
from qra_bo.pipeline.pricing import make_plan
from qra_bo.pipeline.run import run
from qra_bo.study.lines import begun_study
from qra_bo.utils.errors import ConfigError, ModelError, SpaceError
from tests.executors import work_in_this_process
from tests.finetune.stored_files import MIXED, write_file
from tests.finetune.test_stored_model import changed, logits, node

SMALL = ("codes=stored", "data=tiny", "device=cpu", "dtype=float32", "train.batch=2", "train.length=32",
         "eval.sequences=4", "data.max_records=64", "data.calibration=4", "ranks=[1,2,4]", "display=none",
         "effort=instant", "final.steps=8", "adapter.lr=0.02")
EXPORTS = ("export.targets=[gguf,merged]", "export.gguf=[base,adapter,merged-q8_0,base-f32]")
WIDE = {**dict.fromkeys(MIXED, "Q5_1"), "ffn_down": "Q8_0"}
BOTH = ["other3", "stored6"]  # of the two layers, the first with the codes of m.gguf


def overrides(file: Path | str, *more: str) -> list[str]:
    return ["+model=hf", f"model.path={file}", *SMALL, *more]


def two(folder: Path, *more: str) -> list[str]:
    return overrides(f"[{folder / 'w.gguf'},{folder / 'm.gguf'}]", *more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("stored")
    file = write_file(folder / "m.gguf", tables=("Q8_0", "Q6_K"), rope=True)
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        best = run(load_config(overrides(file, f"out={folder / 'run'}", *EXPORTS))).best
        write_file(folder / "w.gguf", types=WIDE, tables=("Q8_0", "Q4_K"), rope=True)
        (folder / "mix.json").write_text(json.dumps({"formats": BOTH, "ranks": [2, 4]}))
        run(load_config(two(folder, f"out={folder / 'mix'}", "task=finetune", f"allocation={folder / 'mix.json'}",
                            "budget=1GB", *EXPORTS)))
    return folder, dict(best)


def test_best_json_gives_types_bits_and_bytes_of_the_file(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, best = finished
    stored, spec = best["stored"], make_spec(load_config(overrides(folder / "m.gguf")))
    assert set(stored["files"]["stored3"]["types"].values()) == set(" ".join(MIXED.values()).split())
    assert stored["tables"] == ["Q8_0", "Q6_K"]
    kinds = [(m.numel, TYPES[m.stored[0][1]]) for m in spec.linears]
    weighted = sum(kind.bits * numel for numel, kind in kinds) / spec.linear_numel
    assert math.isclose(best["average_bits"], weighted)
    assert best["codes"] == "stored"
    assert sum(stored["files"]["stored3"]["unit_bytes"]) == sum(
        numel // kind.weights * kind.size for numel, kind in kinds)
    assert best["memory"]["measured_bytes"] == pytest.approx(best["memory"]["predicted_bytes"], rel=0.03)
    assert sum(isinstance(m, StoredLinear) for m in qra_bo.load(folder / "run")[0].modules()) == 14
    assert not (folder / "run" / "packed.safetensors").exists()
    assert not (folder / "run" / "gguf" / "base.gguf").exists()


@pytest.mark.parametrize("name", ["run", "mix"])
def test_llamacpp_computes_the_adapter_beside_the_file(finished: tuple[Path, dict[str, Any]], name: str) -> None:
    pytest.importorskip("llama_cpp_py_sync")
    rows = {row.what: row for row in check_exports(FinishedRun.read(finished[0] / name))}
    assert rows["manifest and adapter"].largest == 0
    for what in ("gguf, base-f32", "gguf, base-f32 with the adapter"):
        assert rows[what].largest is not None and rows[what].largest <= 1e-3  # noqa: PT018
    for what in ("gguf, base with the adapter", "gguf, merged-q8_0", "merged"):
        assert rows[what].kl is not None and rows[what].kl <= 0.01  # noqa: PT018


def test_another_file_is_refused(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    file = folder / "m.gguf"
    kept = file.read_bytes()
    try:
        data = bytearray(kept)
        data[-131] ^= 1  # a code of the head, before the divisors
        file.write_bytes(data)
        with pytest.raises(ModelError, match="lm_head"):
            qra_bo.load(folder / "run")
        write_file(file, types={**MIXED, "ffn_up": "Q4_0"}, tables=("Q8_0", "Q6_K"), rope=True)
        for name in ("run", "mix"):
            with pytest.raises(ModelError, match="up_proj"):
                qra_bo.load(folder / name)
    finally:
        file.write_bytes(kept)


def test_a_mix_of_two_files_has_the_weights_and_the_very_tensors_of_each(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    mixed, narrow = (load_base(node(folder / f"{name}.gguf"))[0].float() for name in "wm")
    for linear in make_spec(load_config(two(folder))).linears[:7]:
        mixed.get_submodule(linear.name).weight = narrow.get_submodule(linear.name).weight
    torch.testing.assert_close(logits(qra_bo.load(folder / "mix", adapter=False)[0]), logits(mixed), rtol=1e-5,
                               atol=1e-5)
    wide, narrow, base = (read_header(folder / name).tensors for name in ("w.gguf", "m.gguf", "mix/gguf/base.gguf"))
    assert base.keys() == wide.keys()
    np.testing.assert_allclose(base[ROPE].data, wide.pop(ROPE).data, rtol=1e-6)  # made from the configuration's entry
    for name, tensor in {**wide, **{name: t for name, t in narrow.items() if name.startswith("blk.0.")}}.items():
        assert (base[name].tensor_type, base[name].data.tobytes()) == (tensor.tensor_type, tensor.data.tobytes())
    best = json.loads((folder / "mix" / "best.json").read_text())
    parts = best["memory"]["breakdown"]
    assert parts["weights"] + parts["quant_metadata"] == sum(
        t.n_bytes for name, t in base.items() if name.startswith("blk.") and t.data.ndim == 2)
    assert best["average_bits"] == 8 * parts["weights"] / sum(best["unit_numel"])


def assert_a_profile_chooses_a_mix(words: list[str], out: Path, budget: str) -> None:
    """Search a mix of the codes of two bases; those of the model itself lose nothing in its profile."""
    config = load_config([*words, f"out={out}", "memory.scope=stored", f"budget={budget}", "final.steps=2"])
    best, found = run(config).best, begun_study(out).profile
    assert (found.profile.quantization_kl > 0).tolist() == [[True, False]] * 2
    assert best["memory"]["measured_bytes"] == best["memory"]["predicted_bytes"] <= best["memory"]["budget_bytes"]
    assert run(config).best["delivered"] == best["delivered"]


@pytest.mark.slow
def test_a_mix_of_two_files_is_chosen_by_a_profile_of_the_second(finished: tuple[Path, dict[str, Any]]) -> None:
    assert_a_profile_chooses_a_mix(two(finished[0]), finished[0] / "instant", "mix:5,2")


def assert_codes_on_the_host_are_built(config: RunConfig, fmt: str) -> None:
    """Install the codes of ``fmt``, of the second base, from the host, and then the first base's again."""
    spec, model = make_spec(config), load_stored(config.model, torch.float32)[0].float()
    plain, (other,) = logits(model), load_others(config.model, torch.float32)
    names = [linear.name for linear in spec.linears]
    keep_on_host(model, names)  # as on a GPU, whose memory holds what is installed alone
    bank = LayerBank(model, spec, make_space(config, spec).formats, torch.float32, "cpu", dense_on_device=True,
                     states={(name, fmt): other.get_submodule(name).packed_state() for name in names})
    bank.install(dict.fromkeys(names, fmt))
    assert not torch.equal(logits(model), plain)
    bank.restore_dense()
    assert torch.equal(logits(model), plain)


def test_codes_of_two_files_on_the_host_are_built_where_they_run(finished: tuple[Path, dict[str, Any]]) -> None:
    assert_codes_on_the_host_are_built(load_config(two(finished[0])), BOTH[0])


@pytest.mark.parametrize(("what", "named"), [
    ("order", "2.75"), ("codes=chosen", "gguf_file"), ("place", "one folder"), ("llama", "general.architecture"),
    ("<|endoftext|>", "tokenizer.ggml.tokens"), ("blk.1.ffn_up", "blk.1.ffn_up.weight"),
    ("norms", "output_norm.weight"), ("shapes", "blk.0.attn_q.weight")])
def test_files_that_are_not_of_one_model_are_refused(tmp_path: Path, what: str, named: str) -> None:
    file = write_file(tmp_path / "m.gguf")
    write_file(tmp_path / "w.gguf", types=MIXED if what == "order" else WIDE)
    norm = read_header(file).tensors["output_norm.weight"].data.tobytes()
    old, new = {"norms": (norm, norm[::-1]), "llama": (b"llama", b"qwen2")}.get(
        what, (what.encode(), what.swapcase().encode()))
    file.write_bytes(file.read_bytes().replace(old, new))
    if what == "shapes":
        changed(file, named, rows=128).rename(file)
    words = [word.replace("m.gguf", "sub/m.gguf") if what == "place" else word for word in two(tmp_path)]
    with pytest.raises(ConfigError) as caught:
        load_config([*words, *[what] * ("=" in what)])
    assert len(caught.value.problems) == 1
    assert named in caught.value.problems[0]


def test_plan_reads_the_header_alone(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf")
    plan = make_plan(load_config(overrides(file, "task=memory", "budget=uniform:4,2")))
    answer = plan.budgets[0]
    assert set(answer.ranks) == {"stored3"}
    assert answer.ranks["stored3"] >= 2
    assert json.loads(json.dumps(plan.to_json()))["stored"]["tables"] == ["Q8_0"]
    with pytest.raises(SpaceError, match=r"no two of bits=\[3\]"):
        make_plan(load_config(overrides(file, "task=memory", "budget=mix:3.5,2")))


def test_ranks_are_searched_within_the_budget(tmp_path: Path) -> None:
    file = write_file(tmp_path / "m.gguf")
    config = load_config(overrides(file, "effort=quick", "oracle=synthetic", "budget=uniform:4,2", "granularity=fused",
                                   f"out={tmp_path / 'run'}"))
    best = run(config).best
    assert len(best["ranks"]) == make_space(config, make_spec(config)).n_units == 8
    assert best["memory"]["predicted_bytes"] <= best["memory"]["budget_bytes"]


@pytest.mark.parametrize(("given", "key"), [
    ("bits=[4]", "bits"), ("quantizer.rounding=rtn", "quantizer.rounding"), ("quantizer.rounding=gptq",
                                                                            "quantizer.rounding"),
    ("embeddings=8", "embeddings"), ("serve=vllm", "serve"), ("max_average_bits=4", "max_average_bits"),
    ("export.targets=[mlx]", "export.targets")])
def test_keys_that_need_other_codes_are_refused(given: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["codes=stored", "effort=instant", given])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(key)


def test_two_files_of_1_bit_differ_in_their_names(tmp_path: Path) -> None:
    write_file(tmp_path / "w.gguf", types=dict.fromkeys(MIXED, "IQ1_M") | {"attn_k": "IQ2_XXS"})
    write_file(tmp_path / "m.gguf", types=dict.fromkeys(MIXED, "IQ1_S"))
    assert make_spec(load_config(two(tmp_path))).linears[0].stored == (("other1", "IQ1_S"), ("stored2", "IQ1_M"))


def test_types_of_files_are_no_formats_of_a_search() -> None:
    with pytest.raises(ConfigError, match="Q4_K"):
        load_config(["quantizer.formats.4=[Q4_K]"])
    with pytest.raises(ConfigError, match="gguf_file"):
        load_config(["+model=tiny", "codes=stored"])
