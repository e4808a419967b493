"""Fine-tuning of one allocation: schedule, steps, held-out loss; the same code on a CPU and on CUDA."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qra_bo.finetune.training.learning_rate import RATE_RULES, RateRule
from qra_bo.finetune.training.loss import hidden_states, logits_of, token_losses
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW

Blocks = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings that all trials of a search share.

    Args:
        batch: Sequences that go forward and backward at once, in training and in evaluation.
        accumulate: Batches of an optimiser step.
        lr_rule: How the learning rate depends on the rank and on the length of training.
        lr_steps: Steps of the trainings that a trial's rate is for; ``None``: of any length.
        warmup: Share of the schedule in which the rate rises linearly; then it falls as a cosine.
        lr_floor: Rate at the end of the schedule, as a share of the peak.
        logits_chunk: Tokens whose logits are alive at once.
        checkpointing: Gradient checkpointing of every decoder layer.
    """

    batch: int = 4
    accumulate: int = 1
    lr_rule: RateRule = RATE_RULES["inverse_sqrt"]
    lr_steps: int | None = None
    warmup: float = 0.1
    lr_floor: float = 0.05
    logits_chunk: int = 128
    checkpointing: bool = False
    optimizer: AdamWSettings = field(default_factory=AdamWSettings)

    @property
    def step_sequences(self) -> int:
        """Sequences of an optimiser step."""
        return self.batch * self.accumulate

    def peak_lr(self, rate: float, rank: int, steps: int | None = None) -> float:
        """Return the peak learning rate of a rank in trainings of ``steps`` steps, where ``rate`` is that of the
        reference rank in trainings of ``lr_steps``; ``None``: as long as these."""
        ratio = 1.0 if steps is None or self.lr_steps is None else steps / self.lr_steps
        return rate * self.lr_rule.factor(rank, ratio)

    def lr_factor(self, step: int, total: int) -> float:
        """Return the schedule's factor on the peak for the update number ``step`` (from 0) of ``total``."""
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, total - warm)
        return self.lr_floor + (1 - self.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))


class DivergedError(Exception):
    """The loss or a gradient is no longer a finite number."""


def train_steps(model: Any, optimizer: UnitwiseAdamW, inputs: Blocks, labels: Blocks, order: Blocks,
                first: int, last: int, schedule: int, settings: TrainSettings, device: torch.device,
                mark: Callable[[str], None] = lambda phase: None, positions: Blocks | None = None) -> int:
    """Run optimiser steps ``first .. last - 1`` of a schedule of ``schedule`` steps.

    ``inputs`` are token ids, ``n x length``, and ``labels`` are -100 where no loss is taken; ``order`` holds the rows
    of each step, ``steps x (accumulate batch)``. Gradients of its batches are summed in the compute type, and divided
    by the number of target tokens of the whole step, so that every token has the same weight however the rows are cut
    into batches. ``mark`` is called with the name of each phase at its end: forward and backward of every batch, step.
    ``positions``, ``n x length``, isolate the records of a row. Returns the tokens that went forward and backward,
    padding counted.

    Raises:
        DivergedError: If the loss or the gradient is not finite.
    """
    model.train()
    tokens = 0
    for step in range(first, last):
        total, count = 0.0, 0
        for rows in order[step].reshape(-1, settings.batch):
            summed, targets = _gradients(model, inputs[rows], labels[rows], _taken(positions, rows, device),
                                         settings.logits_chunk, device, mark)
            total, count = total + summed, count + targets
            tokens += inputs[rows].size
        loss = total / max(1, count)
        norm = optimizer.step(settings.lr_factor(step, schedule), 1.0 / max(1, count))
        mark("step")
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"loss {loss} and gradient norm {norm} at step {step + 1}")
    return tokens


def _taken(positions: Blocks | None, rows: Any, device: torch.device) -> torch.Tensor | None:
    """Return the positions of some rows on the device, where there are any."""
    return None if positions is None else torch.from_numpy(positions[rows]).to(device)


def _gradients(model: Any, inputs: Blocks, labels: Blocks, positions: torch.Tensor | None, chunk: int,
               device: torch.device, mark: Callable[[str], None]) -> tuple[float, int]:
    """Add one batch's gradients to those that are there; return its summed loss and its number of target tokens."""
    total, count = token_losses(model, torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device), chunk,
                                positions)
    mark("forward")
    total.backward()  # type: ignore[no-untyped-call]
    mark("backward")
    return float(total.detach()), count


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out loss: mean over target tokens, its standard error over sequences, tokens that went forward."""

    loss: float
    se: float
    tokens: int


@torch.no_grad()
def held_out(model: Any, inputs: Blocks, labels: Blocks, settings: TrainSettings, device: torch.device,
             watch: Callable[[], AbstractContextManager[None]] = nullcontext,
             positions: Blocks | None = None) -> HeldOut:
    """Return the loss on ``n x length`` blocks; its standard error treats sequences as independent clusters of tokens.

    Its batches have as many sequences as those of training, so that an evaluation needs less memory than a step. Every
    batch runs within a ``watch()`` of its own. ``positions``, ``n x length``, isolate the records of a row.
    """
    model.eval()
    sums: list[float] = []
    counts: list[int] = []
    tokens = 0
    for start in range(0, len(inputs), settings.batch):
        ids = torch.from_numpy(inputs[start:start + settings.batch]).to(device)
        goal = torch.from_numpy(labels[start:start + settings.batch]).to(device)
        tokens += ids.numel()
        counts += [int(n) for n in (goal[:, 1:] != -100).sum(dim=1)]
        with watch():
            losses = _sequence_sums(model, ids, goal, settings.logits_chunk,
                                    _taken(positions, slice(start, start + settings.batch), device))
        sums += losses
    n_tokens, k = sum(counts), len(sums)
    mean = sum(sums) / n_tokens
    residual = np.array(sums) - mean * np.array(counts)
    se = math.sqrt(float((residual**2).sum()) * k / max(1, k - 1)) / n_tokens
    return HeldOut(mean, se, tokens)


def _sequence_sums(model: Any, ids: torch.Tensor, goal: torch.Tensor, chunk: int,
                   positions: torch.Tensor | None) -> list[float]:
    hidden = hidden_states(model, ids, positions)[:, :-1]
    out = []
    for i in range(len(ids)):
        targets, total = goal[i, 1:], 0.0
        for start in range(0, len(targets), chunk):
            logits = logits_of(model, hidden[i, start:start + chunk]).float()
            part = torch.nn.functional.cross_entropy(logits, targets[start:start + chunk], reduction="sum",
                                                     ignore_index=-100)
            total += float(part)
            del logits  # freed before the next chunk's are made
        out.append(total)
    return out


def unit_groups(parameters: Mapping[str, Mapping[str, torch.nn.Parameter]], unit_of: Mapping[str, str],
                ranks: Mapping[str, int], settings: TrainSettings, rate: float,
                steps: int | None = None) -> list[tuple[dict[str, torch.nn.Parameter], float]]:
    """Return one optimiser group per unit, with the learning rate that ``rate`` gives its rank (``peak_lr``).

    ``parameters`` are A and B of every module, ``unit_of`` names its unit, ``ranks`` are those of the units. ``steps``
    are those of the schedule; ``None``: as long as the settings' rate is for.
    """
    grouped: dict[str, dict[str, torch.nn.Parameter]] = {}
    for module, pair in parameters.items():
        for which, parameter in pair.items():
            grouped.setdefault(unit_of[module], {})[f"{module}.{which}"] = parameter
    return [(named, settings.peak_lr(rate, ranks[unit], steps)) for unit, named in grouped.items()]
