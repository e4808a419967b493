"""Fine-tuning of one allocation: schedule, steps, held-out loss, and how the model goes on from a held-out prompt; the
same code on a CPU and on CUDA."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from qra_bo.finetune.data.records import NO_LOSS, IntArray, TokenBlocks
from qra_bo.finetune.training.learning_rate import RATE_RULES, RateRule
from qra_bo.finetune.training.loss import hidden_states, logits_of, token_losses
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.finetune.training.processes import ALONE, Processes
from qra_bo.trials import by_document

PROMPT_TOKENS = 48
"""Tokens of a text that serve as a prompt where the data has none of its own."""
NEW_TOKENS = 24
"""Tokens that the model adds to a prompt: on a CPU they cost about as much as two training steps."""


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

    def unit_groups(self, parameters: Mapping[str, Mapping[str, Parameter]], unit_of: Mapping[str, str],
                    ranks: Mapping[str, int], rate: float,
                    steps: int | None = None) -> list[tuple[dict[str, Parameter], float]]:
        """Return one optimiser group per unit, with the learning rate that ``rate`` gives its rank (``peak_lr``).

        ``parameters`` are A and B of every module, ``unit_of`` names its unit, ``ranks`` are those of the units.
        ``steps`` are those of the schedule; ``None``: as long as the settings' rate is for.
        """
        grouped: dict[str, dict[str, Parameter]] = {}
        for module, pair in parameters.items():
            for which, parameter in pair.items():
                grouped.setdefault(unit_of[module], {})[f"{module}.{which}"] = parameter
        return [(named, self.peak_lr(rate, ranks[unit], steps)) for unit, named in grouped.items()]

    def lr_factor(self, step: int, total: int) -> float:
        """Return the schedule's factor on the peak for the update number ``step`` (from 0) of ``total``."""
        warm = max(1, round(self.warmup * total))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, total - warm)
        return self.lr_floor + (1 - self.lr_floor) * 0.5 * (1 + math.cos(math.pi * progress))


class DivergedError(Exception):
    """The loss or a gradient is no longer a finite number."""


def train_step(model: Any, optimizer: UnitwiseAdamW, blocks: TokenBlocks, order: IntArray, step: int,
               settings: TrainSettings, device: torch.device,
               mark: Callable[[str], None] = lambda phase: None, processes: Processes = ALONE) -> tuple[float, int]:
    """Run the optimiser step number ``step`` (from 0) of a schedule; return its loss before the update, in nats per
    target token, and the tokens that went forward and backward, padding counted.

    ``order`` holds the rows of ``blocks`` of each step, ``steps x (accumulate batch)``. Gradients of a step's batches
    are summed in the compute type, and divided by the number of target tokens of the whole step, so that every token
    has the same weight however the rows are cut into batches and shared between ``processes``. ``mark`` is called with
    the name of each phase at its end: forward and backward of every batch, step.

    Raises:
        DivergedError: If the loss or the gradient is not finite.
    """
    model.train()
    own = np.array_split(order[step], processes.size)[processes.number]  # two shares differ by one row at most
    total, count = 0.0, 0.0
    for rows in np.split(own, range(settings.batch, len(own), settings.batch)):
        summed, targets = _gradients(model, *_tensors(blocks, rows, device), settings.logits_chunk, mark)
        total, count = total + summed, count + targets
    total, count = processes.total(total, count)
    if processes.size > 1:
        optimizer.add_up(torch.distributed.all_reduce)
    loss = total / max(1, count)
    norm = optimizer.step(settings.lr_factor(step, len(order)), 1.0 / max(1, count))
    mark("step")
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(f"loss {loss} and gradient norm {norm} at step {step + 1}")
    return loss, int(order[step].size * blocks.input_ids.shape[1])


def _tensors(blocks: TokenBlocks, rows: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ids, labels and, where records are isolated, positions of some rows on the device."""
    def moved(part: IntArray) -> Tensor:
        return torch.from_numpy(part[rows]).to(device)

    return moved(blocks.input_ids), moved(blocks.labels), None if blocks.positions is None else moved(blocks.positions)


def _gradients(model: Any, ids: Tensor, labels: Tensor, positions: Tensor | None, chunk: int,
               mark: Callable[[str], None]) -> tuple[float, int]:
    """Add one batch's gradients to those that are there; return its summed loss and its number of target tokens."""
    total, count = token_losses(model, ids, labels, chunk, positions)
    mark("forward")
    total.backward()  # type: ignore[no-untyped-call]
    mark("backward")
    return float(total.detach()), count


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out loss.

    Args:
        sequences: Summed loss, number of target tokens and document of every sequence.
        tokens: Tokens that went forward.
    """

    sequences: tuple[tuple[float, int, int], ...]
    tokens: int

    @property
    def loss(self) -> float:
        """Mean over target tokens."""
        return sum(loss for loss, _, _ in self.sequences) / sum(n for _, n, _ in self.sequences)

    @property
    def se(self) -> float:
        """Standard error of the loss, with documents as independent clusters of tokens."""
        sums, counts = by_document([self.sequences])[0].T
        k, residual = len(sums), sums - self.loss * counts
        return math.sqrt(float((residual**2).sum()) * k / max(1, k - 1)) / float(counts.sum())


@torch.no_grad()
def held_out(model: Any, blocks: TokenBlocks, settings: TrainSettings, device: torch.device,
             watch: Callable[[], AbstractContextManager[None]] = nullcontext) -> HeldOut:
    """Return the held-out loss on ``blocks``.

    Its batches have as many sequences as those of training, so that an evaluation needs less memory than a step. Every
    batch runs within a ``watch()`` of its own.
    """
    model.eval()
    documents = list(range(len(blocks))) if blocks.documents is None else blocks.documents.tolist()
    sequences: list[tuple[float, int, int]] = []
    for start in range(0, len(blocks), settings.batch):
        ids, labels, positions = _tensors(blocks, slice(start, start + settings.batch), device)
        counts = [int(n) for n in (labels[:, 1:] != NO_LOSS).sum(dim=1)]
        with watch():
            losses = _sequence_sums(model, ids, labels, settings.logits_chunk, positions)
        sequences += zip(losses, counts, documents[start:start + settings.batch], strict=True)
    return HeldOut(tuple(sequences), blocks.input_ids.size)


def _sequence_sums(model: Any, ids: Tensor, goal: Tensor, chunk: int, positions: Tensor | None) -> list[float]:
    hidden = hidden_states(model, ids, positions)[:, :-1]
    out = []
    for i in range(len(ids)):
        targets, total = goal[i, 1:], 0.0
        for start in range(0, len(targets), chunk):
            logits = logits_of(model, hidden[i, start:start + chunk]).float()
            total += float(torch.nn.functional.cross_entropy(logits, targets[start:start + chunk], reduction="sum",
                                                             ignore_index=NO_LOSS))
            del logits  # freed before the next chunk's are made
        out.append(total)
    return out


@torch.no_grad()
def continuation(model: Any, blocks: TokenBlocks, end: int | None,
                 device: torch.device) -> tuple[list[int], list[int], int]:
    """Return the first record's prompt, its tokens before the first with a loss, else the beginning of the text; the
    most likely next tokens, ``NEW_TOKENS`` or up to the token ``end``; and the number of tokens that went forward.

    Logits of one token are alive at once, and no cache of keys: it takes no more memory than an evaluation."""
    model.eval()
    ids, trained = blocks.input_ids[0].tolist(), np.flatnonzero(blocks.labels[0] != NO_LOSS)
    first = int(trained[0]) if len(trained) else len(ids)
    prompt, new, passed = ids[:first if first > 1 else min(PROMPT_TOKENS, len(ids) // 2)], list[int](), 0
    while len(new) < NEW_TOKENS:
        text = torch.tensor([prompt + new], device=device)
        passed += text.numel()
        token = int(logits_of(model, hidden_states(model, text)[0, -1:]).argmax())
        if token == end:
            break
        new.append(token)
    return prompt, new, passed
