"""The command after a plan: what it keeps, what it trains, and that it composes."""

import json
import shlex
from pathlib import Path

import pytest

from qra_bo.cli.app import main
from qra_bo.config import load_config, make_space
from qra_bo.pipeline.forecast import make_forecast
from qra_bo.pipeline.next_step import NextStep, after_all, next_steps
from qra_bo.pipeline.plan import make_plan

MODEL = "+model=llama3_1_8b"


def steps_of(*overrides: str) -> list[NextStep]:
    config = load_config(["task=memory", *overrides])
    plan = make_plan(config)
    return next_steps(plan, make_space(config, plan.memory.spec), ["task=memory", *overrides],
                      make_forecast(config, plan), config.max_average_bits)


@pytest.mark.parametrize(("overrides", "commands"), [
    (("gpu=rtx4090",), [f"{MODEL} device=cuda task=finetune allocation=uniform:8,32"]),
    (("budget=8GB", "device=cuda"),
     [f"{MODEL} device=cuda task=finetune allocation=uniform:4,31", f"{MODEL} budget=8GB device=cuda effort=quick"]),
    (("budget=7GB", "device=cuda"),
     [f"{MODEL} device=cuda embeddings=8 task=finetune allocation=uniform:4,32",
      *(f"{MODEL} budget=7GB device=cuda effort={e}" for e in ("quick", "instant"))]),
    (("budget=6GB", "device=cuda", "effort=normal"), [f"{MODEL} budget=6GB device=cuda effort=normal"]),
    (("budget=7GB", "device=cuda", "max_average_bits=3"),  # 4 bits would be refused
     [f"{MODEL} budget=7GB device=cuda max_average_bits=3 effort={e}" for e in ("quick", "instant")]),
    (("budget=[7GB,8GB]", "device=cuda"), []),
    (("budget=1GB", "device=cuda"), [])])
def test_the_verdict_decides_what_to_run(overrides: tuple[str, ...], commands: list[str]) -> None:
    assert [step.command for step in steps_of(MODEL, *overrides)] == [f"python -m qra_bo {c}" for c in commands]


def test_commands_compose_and_keep_what_was_given() -> None:
    config = load_config(["task=memory", MODEL, "gpu=rtx3060", "train.length=512"])
    plan = make_plan(config)
    steps = next_steps(plan, make_space(config, plan.memory.spec),
                       ["task=memory", MODEL, "gpu=rtx3060", "++train.length=512", "memory.format=json", "out=one"])
    assert steps
    for step in steps:
        overrides = shlex.split(step.command)[3:]
        config = load_config(["task=memory", *(o for o in overrides if not o.startswith(("task=", "allocation=")))])
        assert (config.model_name, config.train.length, config.device) == ("llama3_1_8b", 512, "cuda")
        assert not {"gpu=rtx3060", "memory.format=json", "out=one"} & set(overrides)
        assert step.time is None  # without a forecast


@pytest.mark.parametrize("more", [["effort=instant", "effort.compare=[untuned,uniform]"], ["oracle=synthetic"]])
def test_what_is_of_a_search_alone_is_left_out_of_a_training(more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [step for budget in ("7GB", "8GB") for step in steps_of(MODEL, f"budget={budget}", "device=cuda", *more)]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    tasks = [load_config(shlex.split(step.command)[3:]).task for step in steps]
    assert tasks.count("finetune") == 2
    assert tasks.count("search") >= 2


def test_own_groups_are_found_by_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "my groups"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "mine.yaml").write_text("defaults:\n  - llama3_1_8b\n  - _self_\nname: mine\n")
    assert main(["--config-dir", str(mine), "task=memory", "+model=mine", "gpu=rtx4090"]) == 0
    command = capfd.readouterr().out.splitlines()[-1]
    assert command.endswith(" +model=mine device=cuda task=finetune allocation=uniform:8,32")
    flag, model, *_ = shlex.split(command)[3:]
    assert main([flag, model, "task=memory", "gpu=rtx4090"]) == 0


@pytest.mark.parametrize(("whole", "scope", "overrides", "fits"), [
    (700, "peak", ("train.length=704",), True), (None, "peak", ("embeddings=8",), True),
    (2048, "peak", ("embeddings=8",), True), (700, "stored", (), False)])
def test_before_a_search_the_trainer_may_change_until_4_bits_fit(whole: int | None, scope: str,
                                                                 overrides: tuple[str, ...], fits: bool) -> None:
    config = load_config(["task=memory", MODEL, "budget=7GB", "device=cuda", f"memory.scope={scope}"])
    plan = make_plan(config)
    space = make_space(config, plan.memory.spec)
    change = after_all(plan.memory, space, 7 * 10**9, whole)
    assert (change is not None) == fits
    if change is not None:
        assert change.overrides == overrides
        changed = load_config(["task=memory", MODEL, "budget=7GB", "device=cuda", *overrides])
        assert dict(make_plan(changed).budgets[0].ranks)["nf4"] == change.rank >= 4
    assert after_all(plan.memory, space, 5 * 10**9, whole) is None  # nothing helps there


def test_times_are_those_of_the_forecast() -> None:
    _, quick, instant = steps_of(MODEL, "budget=7GB", "gpu=rtx4090", "final.steps=100")
    assert None not in (quick.time, instant.time)
    assert quick.time != instant.time
    assert [step.time for step in steps_of(MODEL, "budget=7GB", "device=cuda", "final.steps=100")] == 3 * [None]


def test_the_command_line_prints_them_last_and_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["task=memory", MODEL, "gpu=rtx4090"]) == 0
    command = f"python -m qra_bo {MODEL} device=cuda task=finetune allocation=uniform:8,32"
    assert capfd.readouterr().out.splitlines()[-1] == f"  {command}"
    assert main(["task=memory", MODEL, "gpu=rtx4090", "memory.format=json"]) == 0
    assert [step["command"] for step in json.loads(capfd.readouterr().out)["next"]] == [command]
