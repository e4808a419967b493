"""RAM of a run before it starts."""

import json
from collections.abc import Mapping

import pytest

from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.finetune.quantization.moments import ROWS
from qra_bo.memory.budget import format_size, parse_size
from qra_bo.pipeline import host_memory, pricing
from qra_bo.pipeline.host_memory import CUDA_LIBRARIES, packed_bytes
from qra_bo.pipeline.prepare import make_setting
from qra_bo.pipeline.pricing import bank_formats, budget_bytes, make_memory
from qra_bo.space import DecoderSpec, SearchSpace
from qra_bo.tasks.memory import run as plan
from qra_bo.utils.errors import DeviceError


def host_parts(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device: str = "cpu") -> Mapping[str, int]:
    budget = budget_bytes(config, config.budget[0], make_memory(config, spec, device), space)
    return host_memory.host_parts(config, spec, space, budget, device)


def check_ram(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device: str = "cpu") -> None:
    host_memory.check_ram(config, spec, space, 8 * 10**9, device)


def setting(*overrides: str) -> tuple[RunConfig, DecoderSpec, SearchSpace]:
    config = load_config(["device=cpu", "dtype=bfloat16", *overrides])
    spec = make_spec(config)
    return config, spec, make_space(config, spec)


@pytest.mark.parametrize(("overrides", "measured"), [
    (["budget=uniform:4,4"], 2_698_000_000), (["budget=uniform:4,16", "memory.scope=stored"], 2_754_000_000)])
def test_the_default_needs_what_its_worker_was_seen_to_hold(overrides: list[str], measured: int,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "keeps_dense", lambda spec, formats: True)
    assert abs(sum(host_parts(*setting("+model=smollm2_135m", *overrides)).values()) / measured - 1) < 0.05


def test_parts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "keeps_dense", lambda spec, formats: True)
    config, spec, space = setting("+model=tiny", "bits=[8]", "budget=10MB", "effort.references=false",
                                  "quantizer.rounding=rtn")
    parts = host_parts(config, spec, space)
    rows = sum(m.out_features for m in spec.linears)
    nf4 = sum(m.numel // 2 + m.numel // 64 + 4 * -(-m.numel // (64 * 256)) + 4 for m in spec.linears)
    assert parts["dense weights"] == 2 * (spec.linear_numel + spec.other_numel)
    assert parts["packed formats"] == spec.linear_numel + 4 * rows
    assert parts["unpacked copies"] == 2 * spec.linear_numel
    assert parts["training or choosing codes"] == 10**7 - (spec.linear_numel + 4 * rows) - 2 * spec.other_numel
    more = host_parts(config.with_changes(effort=config.effort.with_changes(references=True)), spec, space)
    assert more["packed formats"] - parts["packed formats"] == nf4  # 16 bits are the base itself
    assert more["unpacked copies"] == 2 * parts["unpacked copies"]


def test_choosing_codes_may_take_more_than_training() -> None:
    config, spec, space = setting("+model=tiny", "bits=[8]", "quantizer.tokens=1024000")
    width, d = max(m.in_features for m in spec.linears), spec.hidden_size
    assert host_parts(config, spec, space)["training or choosing codes"] == \
        3 * 4 * width**2 + 3 * 4 * d**2 + 2 * (1024000 * d + ROWS * (4 * d + 3 * width))
    nearest = setting("+model=tiny", "bits=[8]", "quantizer.tokens=1000000", "quantizer.rounding=rtn")[0]
    assert host_parts(nearest, spec, space)["training or choosing codes"] < 10**9


def test_in_fp32_the_16_bit_format_is_packed_too() -> None:
    config, spec, space = setting("+model=tiny", "bits=[8]")
    full = host_parts(config.with_changes(dtype="float32"), spec, space)
    half = host_parts(config, spec, space)
    assert full["packed formats"] - half["packed formats"] == 2 * spec.linear_numel
    assert full["dense weights"] == 2 * half["dense weights"]
    on_gpu = host_parts(config.with_changes(dtype="float32"), spec, space, "cuda")
    assert on_gpu["packed formats"] == half["packed formats"]  # 16 bits are made again at each use


def test_too_little_ram_is_refused_with_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec, space = setting("+model=llama2_7b", "budget=10GB", "data=tiny", "worker.spill_above=1TB")
    monkeypatch.setattr(host_memory, "free_bytes", lambda device: parse_size("16GB"))
    with pytest.raises(DeviceError, match=r"on a CPU needs about 19\.\d\d GB of RAM \(packed formats 1\d\.\d\d GB"
                                          r".* and 16\.00 GB is available; .*worker\.spill_above=.*device=cuda"):
        check_ram(config, spec, space)
    with pytest.raises(DeviceError):
        make_setting(config)
    monkeypatch.setattr(host_memory, "free_bytes", lambda device: parse_size("64GB"))
    check_ram(config, spec, space)


REFERENCES = ["+model=llama2_7b", "data=tiny", "quantizer.rounding=rtn", "train.batch=1", "train.length=512",
              "bits=[3]"]


@pytest.mark.parametrize(("words", "names"), [
    (["effort=normal"], {"nf4", "fp16"}), (["effort=quick"], set()),
    (["effort=instant", "effort.references=true"], {"nf4"}), (["effort=instant"], set()),
    (["task=profile"], set()), (["task=finetune", "allocation=uniform:3,8"], set())])
def test_formats_of_references_are_prepared_where_they_are_trained(words: list[str], names: set[str]) -> None:
    config, _, space = setting(*REFERENCES, *words)
    assert {fmt.name for fmt in bank_formats(config, space)} == {"t3"} | names


def test_packed_layers_on_disk_take_no_ram_but_for_those_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "keeps_dense", lambda spec, formats: False)
    config, spec, space = setting("+model=llama2_7b", "budget=8GB", "effort.references=false")
    for free, spilled in (("64GB", False), ("16GB", True)):
        monkeypatch.setattr(host_memory, "free_bytes", lambda device, free=free: parse_size(free))
        parts = host_parts(config, spec, space)
        assert (parts["packed formats"] == 0) is spilled
        assert (parts["training or choosing codes"] == 8 * 10**9) is spilled
        assert parts["dense weights"] == 0  # mapped
    check_ram(config, spec, space)


@pytest.mark.parametrize("budget", ["auto", "64GB"])
def test_a_budget_beyond_all_allocations_needs_no_more_ram_than_they_do(budget: str,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "free_bytes", lambda device: parse_size("16GB"))
    monkeypatch.setattr(pricing, "free_bytes", lambda device: parse_size("16GB"))
    config, spec, space = setting("+model=smollm2_135m", f"budget={budget}")
    needs = host_parts(config, spec, space)["training or choosing codes"]
    stored = host_parts(config.with_changes(memory=config.memory.with_changes(scope="stored")), spec, space)
    assert needs == stored["training or choosing codes"] < 10**9
    check_ram(config, spec, space)


def test_workers_with_a_gpu_each_need_host_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec, space = setting("+model=llama2_7b", "budget=10GB", "quantizer.rounding=rtn", "executor.workers=2",
                                  "worker.spill_above=1TB")
    each = sum(host_parts(config, spec, space, "cuda").values())
    assert each == packed_bytes(config, spec, space, "cuda") + CUDA_LIBRARIES + 2**28
    monkeypatch.setattr(host_memory, "free_bytes", lambda device: 2 * each - 1)
    with pytest.raises(DeviceError, match=r"on a GPU needs .*; for each of 2 workers\) .*fewer executor\.workers"):
        check_ram(config, spec, space, "cuda")
    monkeypatch.setattr(host_memory, "free_bytes", lambda device: 2 * each)
    check_ram(config, spec, space, "cuda")


def test_more_free_memory_never_refuses_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec, space = setting("+model=qwen2_5_7b_instruct", "budget=uniform:8,32", "train=gpu", "bits=[8]",
                                  "effort.references=false", "embeddings=16")
    ran = []
    for free in range(4, 18):
        monkeypatch.setattr(host_memory, "free_bytes", lambda device, free=free: free * 10**9)
        try:
            check_ram(config, spec, space, "cuda")
        except DeviceError:
            ran.append(False)
        else:
            ran.append(True)
    assert ran == sorted(ran)
    assert (ran[0], ran[-1]) == (False, True)


@pytest.mark.parametrize(("device", "lacks"), [("auto", "torch sees none on this machine"),
                                               ("cpu", "device=cpu is another")])
def test_a_card_is_planned_for_and_not_trained_on_a_cpu(device: str, lacks: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.pipeline.pricing.resolve_device", lambda device: "cpu")
    words = ["+model=llama2_7b", "gpu=rtx4090", "data=tiny", f"device={device}"]
    with pytest.raises(DeviceError, match=rf"gpu=rtx4090 names a card, .*needs a CUDA device, and {lacks}\. .*"
                                          r"task=memory gpu=rtx4090\. .* leave gpu out"):
        make_setting(load_config(words))
    assert make_setting(load_config([*words, "oracle=synthetic"])).memory.shape.device == "cuda"
    monkeypatch.setattr("qra_bo.pipeline.pricing.resolve_device", lambda device: "cuda")
    monkeypatch.setattr(host_memory, "free_bytes", lambda device: parse_size("900GB"))
    assert make_setting(load_config(["+model=llama2_7b", "gpu=rtx4090", "data=tiny"])).memory.shape.device == "cuda"


def test_the_plan_counts_the_embedding_as_its_budget_packs_it(capsys: pytest.CaptureFixture[str]) -> None:
    config, spec, space = setting("+model=smollm2_135m", "task=memory", "budget=560MB", "memory.format=json")
    assert plan(config) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["budgets"][0]["embeddings"] == 6
    whole, packed = (format_size(sum(host_parts(config.with_changes(embeddings=bits), spec, space).values()))
                     for bits in (16, 6))
    assert whole != packed
    assert any(packed in note for note in found["notes"])
    assert not any(whole in note for note in found["notes"])
