"""A finished run goes on training in transformers' Trainer, in TRL and in plain loops as in the project's trainer."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

import qra_bo
from qra_bo.export.run import FinishedRun, rate_of, render
from qra_bo.finetune.adapters.lora import adapter_parameters
from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.training.loop import TrainSettings, train_step
from qra_bo.finetune.training.loss import token_losses
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from tests.export.finished import exported, finish

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing` is deprecated:FutureWarning",
                                        "ignore:.*pin_memory.*no accelerator is found:UserWarning")
RANKS = (1, 4, 2, 3)
BATCH, LENGTH = 2, 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("elsewhere") / "run", ("hqq2", "nf4", "sym3-g64", "int8"), RANKS,
                  "quantizer.rounding=rtn", "dtype=float32")


def batches(steps: int, vocabulary: int) -> torch.Tensor:
    """Token ids, ``steps x BATCH x LENGTH``, that can be learned: counting from a random start."""
    start = torch.randint(0, vocabulary, (steps, BATCH, 1), generator=torch.Generator().manual_seed(0))
    return (start + torch.arange(LENGTH)) % vocabulary


def settings_of(run: Path, batch: int = BATCH) -> TrainSettings:
    best = json.loads((run / "best.json").read_text())
    return TrainSettings(batch=batch, warmup=best["training"]["warmup"],
                         lr_floor=best["training"]["lr_floor"], optimizer=AdamWSettings(clip=best["training"]["clip"]))


def own_losses(run: Path, data: torch.Tensor) -> list[float]:
    """Training loss of every step of the project's own trainer, from the delivered adapter on."""
    model, _ = qra_bo.load(run)
    steps, batch, length = data.shape
    settings, rate = settings_of(run, batch), json.loads((run / "best.json").read_text())["learning_rate"]
    base = model.get_base_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    groups = [({f"{name}.{which}": p for which, p in pair.items()}, settings.peak_lr(rate, len(pair["A"])))
              for name, pair in adapter_parameters(base).items()]
    optimizer = UnitwiseAdamW(groups, settings.optimizer)
    rows, flat = torch.arange(steps * batch).view(steps, batch).numpy(), data.view(-1, length)
    losses = []
    for step in range(steps):
        with torch.no_grad():
            total, count = token_losses(base.train(), data[step], data[step], 128)
        losses.append(float(total) / count)
        train_step(base, optimizer, TokenBlocks(flat.numpy(), flat.numpy()), rows, step, settings, CPU)
    return losses


def pieces(run: Path, steps: int, batch: int) -> tuple[Any, Any, dict[str, Any]]:
    """The trainable model, optimiser and schedule of the run, and arguments that both trainers share."""
    model, tokenizer = qra_bo.load(run, trainable=True)
    optimizer, settings = torch.optim.AdamW(qra_bo.optimizer_groups(model, run)), settings_of(run)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: settings.lr_factor(min(step, steps - 1), steps))
    arguments = dict(max_steps=steps, per_device_train_batch_size=batch, logging_steps=1, report_to="none",
                     use_cpu=True, max_grad_norm=settings.optimizer.clip, save_strategy="no", disable_tqdm=True,
                     bf16=False)
    return model, tokenizer, {"optimizers": (optimizer, schedule), "arguments": arguments}


def trainer_losses(run: Path, data: torch.Tensor, out: Path, kind: str) -> list[float]:
    """Logged training losses of transformers' Trainer or of TRL's on the same batches in the same order."""
    model, tokenizer, given = pieces(run, *data.shape[:2])
    rows = [{"input_ids": ids.tolist(), "labels": ids.tolist()} for ids in data.view(-1, data.shape[-1])]
    if kind == "transformers":
        base, arguments = Trainer, TrainingArguments(output_dir=str(out), **given["arguments"])
        more: dict[str, Any] = {}
    else:
        from trl import SFTConfig, SFTTrainer

        base, more = SFTTrainer, {"processing_class": tokenizer}
        arguments = SFTConfig(output_dir=str(out), max_length=None, gradient_checkpointing=False, **given["arguments"])

    class InOrder(base):  # type: ignore[misc, valid-type]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    trainer = InOrder(model=model, args=arguments, train_dataset=Dataset.from_list(rows),
                      optimizers=given["optimizers"], **more)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["transformers", "trl"])
def test_other_trainers_lose_as_much_as_our_own(run: Path, tmp_path: Path, kind: str) -> None:
    data = batches(2, 200).repeat(4, 1, 1)
    wanted = own_losses(run, data)
    assert wanted[0] - wanted[6] > 0.03  # it learns, so that a trainer that does nothing would differ
    found = trainer_losses(run, data, tmp_path, kind)
    assert found[:5] == pytest.approx(wanted[:5], abs=1e-4)
    assert found == pytest.approx(wanted, abs=1e-3)  # rounding grows with the steps: 0.0005 on one processor


def test_trl_trains_over_a_packed_head(tmp_path: Path) -> None:
    run = finish(tmp_path / "run", ("nf4",) * 4, RANKS, "quantizer.rounding=rtn", "dtype=float32", "embeddings=8")
    data = batches(3, 200)
    assert trainer_losses(run, data, tmp_path / "out", "trl") == pytest.approx(own_losses(run, data), abs=1e-4)


def test_script_for_trl_trains_the_adapter(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [script] = exported(run, ["trl"])
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"{i}: one two three."}) + "\n" for i in range(16)))
    monkeypatch.setattr(sys, "argv", [str(script), str(data), str(tmp_path / "out"), "2"])
    runpy.run_path(str(script), run_name="__main__")
    trained = load_file(tmp_path / "out" / "adapter_model.safetensors")
    before = load_file(run / "adapter" / "adapter_model.safetensors")
    assert trained.keys() == before.keys()
    assert not any(torch.equal(trained[key].float(), before[key].float()) for key in before)


def test_script_for_trl_scales_fp16_losses_and_keeps_a_constant_rate(run: Path) -> None:
    finished = FinishedRun.read(run)
    assert rate_of({**finished.best, "lr_rule": "constant"}, 3) == finished.best["learning_rate"]
    assert "fp16=False" in render("train_trl.py", finished)
    half = replace(finished, manifest=replace(finished.manifest, compute_dtype="float16"))
    assert "fp16=cuda" in render("train_trl.py", half)
