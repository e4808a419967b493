"""Memory model, plan and budget of a configuration."""

from pathlib import Path

import pytest
import torch

from qra_bo.config import load_config, make_space, make_spec
from qra_bo.memory import parse_format
from qra_bo.memory.advice import largest_rank
from qra_bo.memory.budget import parse_budget, simple_choice, smallest
from qra_bo.pipeline import pricing
from qra_bo.pipeline.forecast import next_command
from qra_bo.pipeline.prepare import checked_budget, make_setting
from qra_bo.pipeline.pricing import budget_bytes, make_memory, make_plan
from qra_bo.study.setting import Setting
from qra_bo.tasks.memory import plan_lines
from qra_bo.utils.errors import BudgetError


@pytest.mark.parametrize(("words", "at_hand", "grouped"), [
    (["gpu=t4"], None, False), (["gpu=v100"], (9, 0), False), (["gpu=l4"], (7, 5), True),
    (["gpu=l4", "dtype=float32"], None, False), (["device=cuda"], None, True), (["device=cuda"], (7, 5), False),
    (["device=cuda:1"], (7, 5), True), (["device=cpu"], (7, 5), True)])
def test_repeated_keys_and_values_are_priced_where_the_card_needs_them(
        words: list[str], at_hand: tuple[int, int] | None, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(at_hand is not None))  # device 0 alone
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: at_hand)
    config = load_config(["task=memory", "+model=tiny", "budget=1GB", *words])
    assert make_memory(config, make_spec(config), "cuda").shape.grouped is grouped
    assert make_memory(config, make_spec(config), "cpu").shape.grouped


@pytest.mark.parametrize("budget", ["mix:2.5,2", "uniform:2,2"])
def test_a_plan_names_the_fractional_choice_as_a_run_takes_it(budget: str) -> None:
    config = load_config(["task=memory", "+model=smollm2_135m", f"budget={budget}"])
    (answer,) = make_plan(config).budgets
    assert answer.fractional.total <= answer.size
    space, choice = make_space(config, make_spec(config)), parse_budget(answer.fractional.what)
    assert simple_choice(choice, space) == answer.fractional.allocation
    assert len(set(answer.fractional.allocation.formats)) == 2


@pytest.mark.parametrize("budget", ["uniform:4,4", "uniform:8,32"])
def test_no_fractional_choice_where_mixing_cannot_pay(budget: str) -> None:
    (answer,) = make_plan(load_config(["task=memory", "+model=tiny", f"budget={budget}"])).budgets
    assert answer.fractional is None


def test_held_out_evaluation_never_decides_a_plan() -> None:
    found = make_plan(load_config(["+model=qwen2_5_7b", "device=cpu", "train.batch=1", "train.length=2048",
                                   "train.checkpointing=true"]))
    rows = [*found.uniform, *(row for row in found.cards.values() if row is not None)]
    assert {row.phase for row in rows} == {"backward"}


@pytest.mark.parametrize(("changes", "fits"), [
    (["budget=8GB"], True), (["budget=8.1GB"], False), (["budget=8.1GB", "executor.workers=2"], False),
    (["budget=8.1GB", "device=cuda:1"], True), (["budget=8.1GB", "memory.scope=stored"], True),
    (["budget=8.1GB", "gpu=rtx4090"], True), (["budget=8.1GB", "oracle=synthetic"], True),
    (["budget=8.1GB", "device=cpu"], True), (["task=finetune", "allocation=uniform:4,4", "budget=8GB"], True),
    (["task=finetune", "allocation=uniform:4,4", "budget=8.1GB"], False)])
def test_a_budget_above_what_the_card_has_is_refused(changes: list[str], fits: bool, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    monkeypatch.setattr(pricing, "total_bytes", {0: 8 * 10**9, 1: 24 * 10**9}.__getitem__)
    monkeypatch.setattr("qra_bo.pipeline.prepare.check_ram", lambda *_: None)
    made = make_setting(load_config(["+model=tiny", "data=tiny", "device=cuda", *changes]))
    if fits:
        assert checked_budget(made, tmp_path) >= 8 * 10**9
        return
    with pytest.raises(BudgetError, match=r"a budget of 8\.10 GB is more than the GPU has, 8\.00 GB in all; use "
                                          r"budget=auto"):
        checked_budget(made, tmp_path)


def test_no_plan_is_made_of_more_than_the_named_card_has() -> None:
    words = ["task=memory", "+model=mistral_7b_instruct", "gpu=rtx3060", "train.length=512"]
    assert make_plan(load_config([*words, "budget=[8GB,12GB]"])).fits
    with pytest.raises(BudgetError, match=r"a budget of 20\.00 GB is more than the GPU has, 12\.\d+ GB in all"):
        make_plan(load_config([*words, "budget=[8GB,20GB]"]))
    assert make_plan(load_config([*words, "budget=20GB", "memory.scope=stored"])).fits


def test_a_recommended_mix_keeps_the_embedding_that_it_was_priced_with() -> None:
    words = ["task=memory", "+model=qwen2_5_14b_instruct", "gpu=rtx3060", "budget=9.4GB"]
    config = load_config(words)
    plan = make_plan(config)
    (answer,) = plan.budgets
    assert answer.fractional is not None
    assert answer.fractional.embeddings == 6
    offered = f"task=finetune allocation={answer.fractional.what} embeddings=6"
    assert f"Without a search: {offered} needs 9." in " ".join(" ".join(plan_lines(plan)).split())
    following = next_command(plan, Setting(config, make_space(config, plan.memory.spec), plan.memory), None)
    assert following is not None
    assert {"embeddings=6", f"allocation={answer.fractional.what}"} <= set(following.split())


@pytest.mark.parametrize(("changes", "size"), [([], 8), (["executor.workers=1"], 20), (["device=cuda:1"], 8)])
def test_auto_is_what_the_gpus_of_all_workers_have_free(changes: list[str], size: int,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    monkeypatch.setattr(pricing, "free_bytes", {"cuda:0": 21 * 10**9, "cuda:1": 9 * 10**9}.__getitem__)
    config = load_config(["+model=tiny", "data=tiny", "device=cuda", "budget=auto", *changes])
    spec = make_spec(config)
    memory = make_memory(config, spec, "cuda")
    assert budget_bytes(config, config.budget[0], memory, make_space(config, spec)) == size * 10**9


def test_a_budget_that_only_mixed_allocations_fit_is_refused_before_a_profile(tmp_path: Path) -> None:
    made = make_setting(load_config(["+model=llama3_2_1b_instruct", "oracle=synthetic", "gpu=rtx4090",
                                     "budget=1489MB", "train=gpu", "embeddings=16", "quantizer.formats.2=[int2-g64]"]))
    assert smallest(made.costs(1489 * 10**6), made.space)[0] <= 1489 * 10**6
    with pytest.raises(BudgetError, match=r"below the smallest uniform choice: int2-g64 with rank 1 needs 1,490,"):
        checked_budget(made, tmp_path)


@pytest.mark.parametrize(("budget", "bits", "most"), [
    ("9GB", 16, "nf4"), ("8GB", 8, "nf4"), ("uniform:2,4", 16, "t2"), ("4200MB", 6, "t2")])
def test_a_run_has_the_embedding_of_its_plan(budget: str, bits: int, most: str) -> None:
    words = ["+model=llama3_1_8b", f"budget={budget}", "device=cuda", "oracle=synthetic", "bits=[2,3,4]",
             "quantizer.formats.2=[t2]", "quantizer.formats.3=[t3]", "train=gpu"]
    (answer,) = make_plan(load_config([*words, "task=memory"])).budgets
    assert (answer.memory.shape.embeddings, answer.best.embeddings, answer.best.fmt) == (bits, bits, most)
    made = make_setting(load_config(words))
    assert made.config.embeddings == made.memory.shape.embeddings == bits
    assert largest_rank(made.memory, made.space, parse_format(most), answer.size) == answer.best.rank
    assert make_setting(load_config([*words, "embeddings=16"])).memory.shape.embeddings == 16
