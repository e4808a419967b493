"""Tokens per second of this trainer against PEFT + bitsandbytes + Trainer, and the cost of switching.

    python -m bench.evaluation_speed [--rounds 5] [--steps 10] [--warm 2] [--model NAME]

Both train the same mixed allocation on the same packed batches in the same compute type with the same threads. Every
measurement is a process of its own, like a run's worker; the three variants take turns, and the order rotates. The
Trainer runs once as started from a shell, and once with the malloc settings of our worker. Run it on an idle machine;
``load_average`` is in the results.

On a CPU with enough memory, our worker keeps every layer's unpacked weight beside the packed one, which costs host
memory and changes no result. The row *packed weights only* is our loop without that: it unpacks at every use, like the
Trainer's layers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import RESULTS, Target, publish
from qra_bo.config import RunConfig, load_config, make_space, make_spec
from qra_bo.pipeline.executors import prepare_worker_environment
from qra_bo.pipeline.finetune_oracle import make_finetune
from qra_bo.space import Allocation, Unit

SIDES = {"qra_bo": ("ours", True), "Trainer": ("trainer", False), "Trainer, our malloc settings": ("trainer", True)}
"""Side and whether it gets the worker's environment, by the name in the table."""
SWITCH_SHARE = 0.05
LOSS_TOLERANCE = 0.02
"""Nats: what rounding in another order may do to the mean loss of a batch in bf16."""
TRAIN_SEED = 0
SWITCHES = 5
Measured = dict[str, list[dict[str, Any]]]


def mixed_allocation(n_units: int) -> Allocation:
    """The allocation of this benchmark: the last 8 of 30 units in 8 bits and the rest in NF4, rank 2 on the last 10 of
    30 and rank 1 below; other depths in proportion."""
    n_int8, n_two = max(1, round(n_units * 8 / 30)), max(1, round(n_units * 10 / 30))
    return Allocation(("nf4",) * (n_units - n_int8) + ("int8",) * n_int8, (1,) * (n_units - n_two) + (2,) * n_two)


def real_tokens(labels: np.ndarray) -> int:
    """Tokens of ``n x length`` packed blocks that are text: padding stands at the end of a row and has no label."""
    has_label = labels != -100
    return int(np.where(has_label.any(axis=1), labels.shape[1] - has_label[:, ::-1].argmax(axis=1), 0).sum())


def synchronise(device: Any) -> None:
    """Wait for what was queued on a GPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def timed(device: Any, action: Callable[[], Any]) -> float:
    """Seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - start


def loss_of(model: Any, ids: np.ndarray, labels: np.ndarray, device: Any) -> float:
    """Loss of one batch (``b x length``) before any step, in training mode: what tells whether both sides train the
    same model."""
    import torch

    model.train()
    with torch.no_grad():
        return float(model(input_ids=torch.from_numpy(ids).to(device), labels=torch.from_numpy(labels).to(device),
                           use_cache=False).loss)


def ours(cfg: RunConfig, steps: int, warm: int) -> dict[str, Any]:
    """Training, evaluation and switching of the oracle, as its worker process does them."""
    from qra_bo.finetune.adapters.lora import detach
    from qra_bo.finetune.data.records import batches
    from qra_bo.finetune.training.loop import held_out, train_step

    with tempfile.TemporaryDirectory() as folder:
        oracle = make_finetune(cfg, Path(folder))
        oracle.bank.build()
        allocation, train, settings = mixed_allocation(len(oracle.units)), oracle.data.train, oracle.settings.train
        other = Allocation(allocation.formats[::-1], allocation.ranks[::-1])
        switches = []
        for chosen in [other, allocation] * SWITCHES:  # each differs from what is installed in most units
            def switch(chosen: Allocation = chosen) -> None:
                oracle.build(chosen, TRAIN_SEED)
                oracle.optimizer(chosen, cfg.adapter.lr)

            switches.append(timed(oracle.device, switch))
            detach(oracle.model)
        oracle.build(allocation, TRAIN_SEED)
        optimizer = oracle.optimizer(allocation, cfg.adapter.lr)
        total = warm + 2 * steps
        order = batches(len(train.input_ids), settings.step_sequences, total, TRAIN_SEED)
        first_loss = loss_of(oracle.model, train.input_ids[order[0]], train.labels[order[0]], oracle.device)

        def seconds_of(step: int) -> float:
            return timed(oracle.device, lambda: train_step(oracle.model, optimizer, train, order, step, settings,
                                                           oracle.device))

        tokens = [real_tokens(train.labels[rows]) for rows in order]
        seconds = [seconds_of(step) for step in range(warm + steps)]
        with oracle.bank.only_packed():
            packed = [seconds_of(step) for step in range(warm + steps, total)]
        blocks = oracle.data.validation.take(oracle.settings.eval_blocks)

        def evaluate() -> None:
            held_out(oracle.model, blocks, settings, oracle.device)

        evaluations = [timed(oracle.device, evaluate) for _ in range(2)]
        trainable = sum(p.numel() for p in oracle.model.parameters() if p.requires_grad)
        return {**_rates(seconds, tokens[:warm + steps], warm),
                "packed_tokens_per_second": _rates(packed, tokens[warm + steps:], 0)["tokens_per_second"],
                "trainable": trainable, "first_loss": first_loss,
                "dtype": str(oracle.bank.compute_dtype).removeprefix("torch."),
                "device": str(oracle.device), "switch_seconds": statistics.median(switches),
                "evaluation_seconds": evaluations[-1], "evaluation_tokens": real_tokens(blocks.labels)}


def trainer(cfg: RunConfig, steps: int, warm: int) -> dict[str, Any]:
    """The same fine-tuning as a user of PEFT, bitsandbytes and transformers' Trainer would write it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from qra_bo.finetune.data.load import load_data
    from qra_bo.finetune.data.records import batches
    from qra_bo.finetune.models.load import load_base
    from qra_bo.space.allocation import peft_patterns
    from qra_bo.utils.device import resolve_device, resolve_dtype

    device = torch.device(resolve_device(cfg.device))
    dtype = getattr(torch, resolve_dtype(cfg.dtype, device.type))
    model, tokenizer = load_base(cfg.model)
    model = model.to(dtype)
    train = load_data(cfg.data, tokenizer, cfg.train.length).train
    units = make_space(cfg, make_spec(cfg)).units
    allocation = mixed_allocation(len(units))
    replace_linears(model, units, allocation, dtype, device)
    model = model.to(device)
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = True
    model.is_quantized = False  # a mark of the GGUF it was read from, which Trainer refuses: its tensors are dense
    ranks = {linear.name: rank for unit, rank in zip(units, allocation.ranks, strict=True) for linear in unit.linears}
    model = get_peft_model(model, LoraConfig(**peft_patterns(ranks, cfg.adapter.alpha_over_rank), bias="none",
                                             lora_dropout=0.0, task_type="CAUSAL_LM"))
    total = warm + steps
    order = batches(len(train.input_ids), cfg.train.step_sequences, total, TRAIN_SEED)

    class Blocks(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return order.size

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            row = order.flat[index]
            return {"input_ids": torch.from_numpy(train.input_ids[row]), "labels": torch.from_numpy(train.labels[row])}

    class Timer(TrainerCallback):  # type: ignore[misc]
        seconds: list[float]

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            synchronise(device)
            self.seconds, self._last = [], time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronise(device)
            now = time.perf_counter()
            self.seconds.append(now - self._last)
            self._last = now

    timer, first = Timer(), order[0]
    first_loss = loss_of(model, train.input_ids[first], train.labels[first], device)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(model, TrainingArguments(
            output_dir=folder, max_steps=total, per_device_train_batch_size=cfg.train.batch,
            gradient_accumulation_steps=cfg.train.accumulate,
            learning_rate=cfg.adapter.lr, lr_scheduler_type="cosine", max_grad_norm=1.0,
            warmup_steps=max(1, round(cfg.train.warmup * total)), optim="adamw_torch",
            bf16=dtype == torch.bfloat16, use_cpu=device.type == "cpu", logging_strategy="no", save_strategy="no",
            report_to=[], disable_tqdm=True, dataloader_pin_memory=False),
            train_dataset=Blocks(), callbacks=[timer]).train()
    return {**_rates(timer.seconds, [real_tokens(train.labels[rows]) for rows in order], warm),
            "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad), "first_loss": first_loss,
            "dtype": str(dtype).removeprefix("torch."), "device": str(device)}


def replace_linears(model: Any, units: tuple[Unit, ...], allocation: Allocation, dtype: Any, device: Any) -> None:
    """Put bitsandbytes' own layers in the place of the decoder's linears; they quantise when moved to ``device``."""
    import bitsandbytes as bnb
    from torch import nn

    for unit, fmt in zip(units, allocation.formats, strict=True):
        for linear in unit.linears:
            dense = model.get_submodule(linear.name)
            has_bias = dense.bias is not None
            new: nn.Module
            if fmt == "nf4":
                new = bnb.nn.Linear4bit(dense.in_features, dense.out_features, bias=has_bias, compute_dtype=dtype,
                                        compress_statistics=True, quant_type="nf4")
                new.weight = bnb.nn.Params4bit(dense.weight.data, requires_grad=False, compress_statistics=True,
                                               quant_type="nf4", module=new)
            else:
                new = bnb.nn.Linear8bitLt(dense.in_features, dense.out_features, bias=has_bias, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(dense.weight.data, requires_grad=False, has_fp16_weights=False)
            new.bias = dense.bias
            parent, _, child = linear.name.rpartition(".")
            setattr(model.get_submodule(parent), child, new.to(device))


def _rates(seconds: list[float], tokens: list[int], warm: int) -> dict[str, Any]:
    """Median of the timed steps' rates; the first ``warm`` steps pay for lazy initialisation on either side."""
    rates = [n / s for n, s in zip(tokens[warm:], seconds[warm:], strict=True)]
    return {"tokens_per_second": statistics.median(rates), "step_seconds": statistics.median(seconds[warm:]),
            "steps": len(rates)}


def measure(args: argparse.Namespace) -> Measured:
    """Results of every variant, one a round.

    Raises:
        SystemExit: If a variant fails, or the two sides do not train the same model: as many parameters, and a loss
            before the first step that differs by at most ``LOSS_TOLERANCE``.
    """
    plain = dict(os.environ)
    prepare_worker_environment()
    tuned = dict(os.environ)
    found: Measured = {name: [] for name in SIDES}
    names = list(SIDES)
    for number in range(args.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            side, with_malloc = SIDES[name]
            print(f"round {number + 1} of {args.rounds}: {name}", file=sys.stderr, flush=True)
            found[name].append(run_side(side, tuned if with_malloc else plain, args))
    everything = [result for results in found.values() for result in results]
    trainable, losses = {r["trainable"] for r in everything}, [r["first_loss"] for r in everything]
    if len(trainable) != 1 or max(losses) - min(losses) > LOSS_TOLERANCE:
        raise SystemExit(f"the sides do not train the same model: {sorted(trainable)} parameters, losses before the "
                         f"first step from {min(losses):.4f} to {max(losses):.4f}")
    return found


def run_side(name: str, environment: Mapping[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Measure one side in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.evaluation_speed", "--side", name, "--steps", str(args.steps), "--warm",
         str(args.warm), "--model", args.model], capture_output=True, text=True, check=False,
        env={**environment, "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))})
    if done.returncode:
        raise SystemExit(f"the side {name!r} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows_of(found: Measured) -> list[dict[str, Any]]:
    """A row for every variant, then our evaluation and switching."""
    ours = [r["tokens_per_second"] for r in found["qra_bo"]]
    rows = []
    for name, results in found.items():
        rates = [r["tokens_per_second"] for r in results]
        ratios = [a / b for a, b in zip(ours, rates, strict=True)]
        rows.append({"what": f"training: {name}", **spread("tokens_per_second", rates),
                     "ratio": None if name == "qra_bo" else statistics.median(ratios), "ratio_low": min(ratios),
                     "ratio_high": max(ratios), "rounds": len(results),
                     **{k: results[0][k] for k in ("steps", "batch", "length", "dtype", "device", "trainable",
                                                   "first_loss")}})
    mine = found["qra_bo"]
    rows.append({"what": "training: qra_bo, packed weights only", "rounds": len(mine),
                 **spread("tokens_per_second", [r["packed_tokens_per_second"] for r in mine])})
    rows.append({"what": "evaluation, forward only: qra_bo", "rounds": len(mine),
                 **spread("tokens_per_second", [r["evaluation_tokens"] / r["evaluation_seconds"] for r in mine])})
    rows.append({"what": "switch to a new allocation: qra_bo", "rounds": len(mine),
                 **spread("seconds", [r["switch_seconds"] for r in mine])})
    if mine[0]["low_steps"] is not None:
        rows.append({"what": "switch, share of a low-fidelity evaluation", "rounds": len(mine),
                     **spread("share", [switch_share(r) for r in mine])})
    return rows


def spread(what: str, values: list[float]) -> dict[str, Any]:
    """Median and range over the rounds."""
    return {"unit": what, "median": statistics.median(values), "low": min(values), "high": max(values)}


def switch_share(result: Mapping[str, Any]) -> float:
    """Switch over the whole low-fidelity evaluation: switch, its steps, one look at the held-out text."""
    switch = float(result["switch_seconds"])
    whole = switch + result["low_steps"] * result["step_seconds"] + result["evaluation_seconds"]
    return float(switch / whole)


def targets_of(rows: list[dict[str, Any]]) -> list[Target]:
    """At least as fast as either Trainer; a switch of at most 5 % of a low-fidelity evaluation."""
    by_name = {row["what"]: row for row in rows}
    targets = [Target(f"our training tokens per second over those of: {name}", ">= 1.0",
                      by_name[f"training: {name}"]["ratio"], by_name[f"training: {name}"]["ratio"] >= 1.0)
               for name in SIDES if name != "qra_bo"]
    share = by_name.get("switch, share of a low-fidelity evaluation")
    what, limit = "switch to a new allocation, share of a low-fidelity evaluation", f"<= {SWITCH_SHARE}"
    targets.append(Target(what, limit, share["median"], share["median"] <= SWITCH_SHARE) if share else
                   Target(what, limit, None, False, "the configuration has no low fidelity"))
    return targets


def side(name: str, model: str, steps: int, warm: int) -> dict[str, Any]:
    """Measure one side in this process."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cfg = load_config([f"+model={model}", "dtype=bfloat16", "bits=[4,8]", "quantizer.rounding=rtn",
                       *(["data=tiny"] if model == "tiny" else [])])
    return {**(ours if name == "ours" else trainer)(cfg, steps, warm), "batch": cfg.train.batch,
            "length": cfg.train.length, "low_steps": cfg.fidelity.low}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="timed optimiser steps of a process")
    parser.add_argument("--warm", type=int, default=2, help="untimed steps before them")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # of a process that measures
    args = parser.parse_args()
    if args.side:
        print(json.dumps(side(args.side, args.model, args.steps, args.warm)))
        return
    rows = rows_of(measure(args))
    publish("evaluation_speed", targets_of(rows), rows, ("what", "unit", "median", "low", "high", "ratio", "ratio_low",
                                                         "ratio_high"), threads=len(os.sched_getaffinity(0)),
            folder=args.out)


if __name__ == "__main__":
    main()
