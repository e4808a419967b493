"""The typed configuration: defaults, types, meaning, and the hash that decides what a run may be continued by."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qra_bo.config import RunConfig, config_from_dict, load_config
from qra_bo.config.compose import config_from
from qra_bo.config.overrides import normalise
from qra_bo.finetune.data.options import HubData
from qra_bo.memory.budget import parse_budget
from qra_bo.utils.errors import ConfigError


@pytest.fixture(scope="module")
def default() -> RunConfig:
    return load_config()


def problems(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides)
    return caught.value.problems


@pytest.mark.parametrize(("override", "budget"), [
    ("budget=10GB", ("10GB",)),
    ("budget=10000000000", ("10000000000",)),
    ("budget=Uniform: 4, 16", ("Uniform: 4, 16",)),
    ("budget='uniform:4,16'", ("uniform:4,16",)),
    ("budget=mix:3.8,2", ("mix:3.8,2",)),
    ("budget=[uniform:4,4,10GB,uniform:8,2]", ("uniform:4,4", "10GB", "uniform:8,2")),
])
def test_budgets(override: str, budget: tuple[str, ...]) -> None:
    assert load_config(["task=memory", override]).budget == tuple(map(parse_budget, budget))


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_models_keys_and_groups_may_be_given_with_a_plus(plus: str) -> None:
    given = ("model=tiny", "seed=3", "data=tiny", "effort=quick", "profile=paper")
    config = load_config(["task=memory", *(f"{plus}{text}" for text in given)])
    assert (config.model_name, config.seed, config.data.name) == ("tiny", 3, "tiny")
    assert (config.effort.name, config.fidelity.high) == ("quick", 100)


@pytest.mark.parametrize("task", ["+task=finetune", "task='finetune'"])
def test_an_allocation_brings_its_budget_however_the_task_is_spelled(task: str) -> None:
    assert load_config([task, "allocation=uniform:4,16"]).budget[0].text == "allocation"
    assert load_config(["budget=8GB", task, "allocation=uniform:4,16"]).budget[0].text == "8GB"
    assert load_config([task, "task=search"]).budget[0].text == "uniform:4,4"


def test_free_keys_need_no_plus() -> None:
    assert load_config(["bits=[4,5,6]"]).format_names == ("nf4", "hqq5-g128", "hqq6-g128")
    config = load_config(["method.extra=1.5", "quantizer.formats.4=[nf4,hqq4]", "quantizer.formats.8=[hqq8]"])
    assert config.method.target["extra"] == 1.5
    assert config.format_names == ("t2", "t3", "nf4", "hqq4", "hqq8")


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_tilde_is_the_users_folder(quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "hara, j"
    monkeypatch.setenv("HOME", str(home))
    given = {key: f"{key}={quote}~/{name}{quote}" for key, name in (("out", "runs/a"), ("model.path", "models/mine"))}
    config = load_config(["+model=hf", given["model.path"], given["out"]])
    assert (config.model["path"], config.out) == (f"{home}/models/mine", f"{home}/runs/a")


@pytest.mark.parametrize("value", ["uniform:4,16", "mix:3.8,2", "uniform:sym7-g64,4"])
def test_a_choice_with_a_comma_is_one_value(value: str) -> None:
    assert normalise([f"allocation={value}"]) == [f"allocation='{value}'"]


@pytest.mark.parametrize("text", ["2026_05_01", "12e3"])
def test_names_that_look_like_numbers_stay_as_they_are(text: str) -> None:
    config = load_config([f"out={text}", "+model=hf", "model.path=ORG/NAME", f"model.revision={text}", "data=hub",
                          f"data.path={text}", f"data.subset={text}", "adapter.lr=1e-3", "budget=1_000"])
    assert isinstance(config.data, HubData)
    assert {config.out, config.model["revision"], config.data.path, config.data.subset} == {text}
    assert (config.adapter.lr, str(config.budget[0])) == (1e-3, "1000")


def test_one_name_stands_for_a_list() -> None:
    config = load_config(["eval.tasks=a.jsonl", "task=evaluate", "out=run", "export.gguf=base"])
    assert (config.eval.tasks, config.export.gguf) == (("a.jsonl",), ("base",))


def test_all_problems_are_reported_at_once() -> None:
    found = problems("modl=x", "+model=lama2_7b", "task=memry", "budget=ten", "bits=[3,2]", "ranks=abc",
                     "train.bach=4", "train.batch=-1", "device=gpu", "data=alpacca", "seed=0,1", "bits=2,4", "foo")
    assert len(found) == 13
    for text in ("Unknown key 'modl'; nearest: model", "Unknown model 'lama2_7b'; known, nearest first: llama2_7b, ",
                 "'bits=2,4' gives bits several values: write bits=[2,4] for a list",
                 "ranks must be a list of integers separated by commas, e.g. [2,4,8]; got 'abc'",
                 "train.batch must be at least 1; got -1"):
        assert any(text in p for p in found), text


@pytest.mark.parametrize(("overrides", "message"), [
    (["budget=uniform:9,4"], "no backend stores weights in 9 bits"),
    (["memory"], "'memory' is not of the form KEY=VALUE: did you mean task=memory\\?"),
    (["seed=]"], "is not of the form KEY=VALUE that Hydra reads .* into quotes"),
    (["+model=meta-llama/Llama-3.1-8B"], r"given as \+model=hf model\.path=meta-llama/Llama-3\.1-8B\.$"),
    (["model=tiny", "+model=qwen3_4b"], "model must be given once; got tiny and qwen3_4b"),
    (["model.path=models/mine"], r"model\.path=models/mine needs \+model=hf"),
    (["ranks=[4,193]"], r"rank 193 is larger than model\.layers\.0\.self_attn\.k_proj allows"),
    (["quantizer.formats.4=[]"], r"quantizer\.formats must name a storage format for 4 bits, e\.g\. .*=\[nf4\]"),
    (["quantizer.formats.4=[int8]"], r"of 4 bits must be distinct and store 4 bits; got \['int8'\], of \[8\] bits"),
    (["export.gguf=[bse]"], r"export\.gguf must be a list of the names base, .*; got \['bse'\]"),
    (["data.path=nowhere.jsonl"], "there is no file 'nowhere.jsonl'"),
    (["task=memory", "data=alpaca", "data.path=x.jsonl"], "data.path is a key of data=jsonl and data=hub alone"),
    (["export.targets=[gguf]"], "the export gguf has no form for t2, t3, nf4, int8, .* use serve=llamacpp"),
    (["oracle.table=bench/data/plays"], "'oracle.table' was removed: --config-dir bench/conf oracle=emu"),
    (["lr=1e-4"], r"Unknown key 'lr'; nearest: adapter\.lr, "),
    (["gradient_accumulation_steps=4"], r"Unknown key 'gradient_accumulation_steps'; here it is train\.accumulate\."),
    (["oracle.noise=1"], "oracle.noise is a key of oracle=synthetic alone"),
    (["method._target_=3"], "method: _target_ must be the dotted path of a class or function"),
    (["quantizer.formats.four=[nf4]"], "must be a mapping from bit-widths to lists of format names"),
    (["~seed"], "keys of the configuration can't be deleted"),
    (["model.name=llama2_7b"], "model.name is a label alone; model=llama2_7b chooses"),
    (["data=jsonl", "data.path='~nobody_here/x.jsonl'"], "there is no file '~nobody_here/x.jsonl'"),
    *(([f"adapter.lr={rate}"], "adapter.lr must be at") for rate in ("1e308", "1e7", "1e-320")),
    *(([f"calibrate.lr_scales=[{scales}]"], "at most 50 distinct numbers from 1e-6 to 1e6") for scales in (
        "1e300", "1e-300", "1,1e7", "1,1", "", ",".join(map(str, range(1, 60))))),
    (["hydra/launcher=nowhere"], "Hydra can't compose this configuration: .*nowhere"),
])
def test_one_bad_value(overrides: list[str], message: str) -> None:
    (found,) = problems(*overrides)
    assert re.search(message, found), found


LONG = "a" * 20_000


@pytest.mark.parametrize("override", [f"{LONG}=1", LONG, f"seed={LONG} {LONG}", f"data={LONG}", f"+model={LONG}",
                                      f"train.{LONG}=1", f"budget={LONG}", f"seed={LONG}", f"method.x={LONG})"])
def test_messages_about_long_overrides_are_short(override: str) -> None:
    assert len(" ".join(problems(override))) < 900


@pytest.mark.parametrize("folder", ["", "nowhere", "/dev/null", "x" * 300])
def test_a_folder_of_groups_is_a_folder(folder: str) -> None:
    with pytest.raises(ConfigError, match="--config-dir must name a folder"):
        load_config([], folder)


def test_cuda_is_demanded_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert load_config(["device=cuda"]).device == "cuda"
    assert "device=cuda:1 needs a CUDA device that torch can use; it sees 1" in problems("device=cuda:1")[0]
    assert load_config(["device=cuda:1", "task=memory"]).device == "cuda:1"
    assert load_config(["device=cuda:1", "oracle=synthetic"]).device == "cuda:1"


@pytest.mark.parametrize(("key", "nearest"), [("sedd", "seed"), ("tran", "train"), ("budgets", "budget"), ("lr", ""),
                                              ("train.batch", "train"), ("_unresolved", "")])
def test_changes_of_unknown_keys_are_refused(default: RunConfig, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown key '{key}'; nearest: {nearest}"):
        default.with_changes(**{key: 5})
    with pytest.raises(ConfigError):
        default.train.with_changes(bacth=5)
    assert default.with_changes(seed=5).seed == 5


def test_dictionary_round_trip(default: RunConfig) -> None:
    plain = default.to_dict()
    assert config_from_dict(plain).to_dict() == plain
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == set(RunConfig.model_fields)


def test_a_composed_dictionary_with_holes_is_refused(default: RunConfig) -> None:
    raw: dict[str, Any] = default.to_dict()
    del raw["seed"], raw["train"]["batch"]
    raw["trian"] = {}
    raw["memory"] = 3
    with pytest.raises(ConfigError) as caught:
        config_from(raw)
    assert sorted(caught.value.problems) == [
        "Unknown key 'trian'; nearest: train, ranks, data.",
        "memory must be a group of the keys memory.scope, memory.headroom, memory.format; got 3.",
        "seed is missing.", "train.batch is missing."]
