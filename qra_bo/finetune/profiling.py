"""Sensitivity profile of the real model: I_q by quantising one unit at a time, I_r from gradients."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.models.activations import carried, decoder_layers, starting_at
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loss import CalibrationText, each_gradient, hidden_states, logits_of
from qra_bo.oracle.protocol import Progress
from qra_bo.space import FloatArray, StorageFormat, Unit
from qra_bo.utils.errors import DeviceError, is_out_of_memory

Value = TypeVar("Value")
KEPT_LOG_PROBABILITIES = 512 * 2**20
"""Bytes of the dense model's log-probabilities up to which a CPU keeps them instead of computing them again for each
format; a device keeps none, because its memory plan has no room for them."""
TILE_NUMEL = 1 << 18
"""Log-probabilities that are alive at once on a CPU: they fit into its cache."""
GRAM_COLUMNS = 1024
"""Columns that are widened to fp64 at a time."""


class Measured(NamedTuple):
    """I_q, each ``L x F`` in nats: rise of the loss, KL from the dense model, standard error of the rise."""

    rise: FloatArray
    kl: FloatArray
    se: FloatArray


class Difference(NamedTuple):
    """Sums over tokens, in nats: the next-token loss, KL(dense || model), and the squared error of each token's rise.

    On text drawn from the dense model, the rise of each token's loss is its KL plus an error of mean 0 that is
    uncorrelated with those of earlier tokens: their squares add up.
    """

    loss: float
    kl: float
    squares: float


class DenseReference:
    """The dense model's predictions on some sequences, to which quantised models are compared.

    Args:
        model: The model, for its head.
        hidden: Final hidden states of the dense model, ``b x length x d``; kept in host memory.
        labels: ``b x length``.
        chunk: Tokens whose logits are alive at once.
        keep: Keep the dense model's log-probabilities.
    """

    def __init__(self, model: Any, hidden: Tensor, labels: Tensor, chunk: int, *, keep: bool) -> None:
        self._model, self._chunk, self._device = model, chunk, hidden.device
        targets = labels[:, 1:].reshape(-1)
        self._valid = targets != -100
        self._goal = targets[self._valid].unsqueeze(1)
        self.tokens = len(self._goal)
        vocab = model.get_output_embeddings().out_features
        self._rows = max(1, TILE_NUMEL // vocab) if hidden.device.type == "cpu" else chunk
        self._hidden = self._select(hidden).to("cpu")
        self._kept = {start: self._log_p(start) for start in range(0, self.tokens, chunk)} if keep else None

    def _select(self, hidden: Tensor) -> Tensor:
        return hidden[:, :-1].reshape(len(self._valid), -1)[self._valid]

    def _logits(self, hidden: Tensor, start: int) -> Tensor:
        return logits_of(self._model, hidden[start:start + self._chunk].to(self._device))

    @torch.no_grad()
    def _log_p(self, start: int) -> Tensor:
        return torch.log_softmax(self._logits(self._hidden, start).float(), -1)

    @torch.no_grad()
    def loss(self) -> float:
        """Return the dense model's next-token loss, summed over the tokens, in nats."""
        chunks = ((start, self._log_p(start) if self._kept is None else self._kept[start])
                  for start in range(0, self.tokens, self._chunk))
        return -sum(float(log_p.gather(1, self._goal[start:start + len(log_p)]).sum()) for start, log_p in chunks)

    @torch.no_grad()
    def tiles(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the targets, ``n x 1``, of a few tokens at a time, with the log-probabilities of the dense model and of
        ``b x length x d`` final hidden states, ``n x vocabulary``."""
        selected = self._select(hidden)
        for start in range(0, self.tokens, self._chunk):
            log_p = self._log_p(start) if self._kept is None else self._kept[start]
            logits, goal = self._logits(selected, start), self._goal[start:start + self._chunk]
            for parts in zip(*(torch.split(whole, self._rows) for whole in (goal, log_p, logits)), strict=True):
                yield parts[0], parts[1], torch.log_softmax(parts[2].float(), -1)

    @torch.no_grad()
    def compare(self, hidden: Tensor) -> Difference:
        """Compare ``b x length x d`` final hidden states to those of the dense model."""
        loss = kl = squares = 0.0
        for goal, log_p, log_q in self.tiles(hidden):
            chosen = log_q.gather(1, goal)
            apart = torch.sum(log_p.exp().mul_(log_p - log_q), dim=1)
            loss -= float(chosen.sum())
            kl += float(apart.sum())
            squares += float((log_p.gather(1, goal).sub(chosen).squeeze(1) - apart).square().sum())
        return Difference(loss, kl, squares)


@contextmanager
def _on_device(device: torch.device, text: CalibrationText) -> Iterator[None]:
    """Turn a lack of memory within the block into a ``DeviceError``: it is not the result of any one allocation."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"measuring sensitivities on {text.batch} sequences of {text.ids.shape[1]} tokens at once "
                          f"takes more memory than {device} has; lower train.batch or train.length, or name a measured "
                          "profile by sensitivity.path") from error


@torch.no_grad()
def measure_quantization_sensitivity(bank: LayerBank, units: Sequence[Unit], formats: Sequence[StorageFormat],
                                     text: CalibrationText, progress: Progress) -> tuple[Measured, float, int]:
    """Measure I_q of ``L`` units in ``F`` formats: rise of the calibration loss, and KL, with one unit quantised.

    The model is without adapters, its other units are in 16 bits. ``text.batch`` sequences go forward at a time, from
    the first layer of the unit on; the dense model's input to that layer is kept in host memory. Returns the
    sensitivities, the dense model's loss, and the tokens that went forward (a pass through k of n layers counts as its
    share of the layers).

    Raises:
        DeviceError: If memory runs out.
    """
    model, batches = bank.model, [(ids.to(bank.device), labels.to(bank.device)) for ids, labels in text.batches()]
    model.eval()
    bank.restore_dense()
    found = Measured(*(np.zeros((len(units), len(formats))) for _ in range(3)))
    n_layers, size = len(decoder_layers(model)), text.ids.numel()
    log_p_bytes = 4 * model.get_output_embeddings().out_features * int((text.labels[:, 1:] != -100).sum())
    keep = bank.device.type == "cpu" and log_p_bytes <= KEPT_LOG_PROBABILITIES
    below, at, spent = [torch.empty(0)] * len(batches), 0, float(size)
    starts = [min(linear.layer for linear in unit.linears) for unit in units]
    with _on_device(bank.device, text):
        references = [DenseReference(model, hidden_states(model, ids), labels, text.logits_chunk, keep=keep)
                      for ids, labels in batches]
        tokens = sum(reference.tokens for reference in references)
        base = sum(reference.loss() for reference in references) / tokens
        for done, u in enumerate(sorted(range(len(units)), key=starts.__getitem__), start=1):
            first, choice = starts[u], [linear.name for linear in units[u].linears]
            if first > at:
                below = [carried(model, ids, at, first, hidden.to(bank.device)).to("cpu")
                         for (ids, _), hidden in zip(batches, below, strict=True)]
                spent, at = spent + size * (first - at) / n_layers, first
            for f, fmt in enumerate(formats):
                if fmt.bits >= 16:
                    continue  # the reference itself, whose sensitivity is 0
                bank.install(dict.fromkeys(choice, fmt.name))
                sums = np.zeros(3)
                for (ids, _), hidden, reference in zip(batches, below, references, strict=True):
                    with starting_at(model, first, hidden.to(bank.device)):
                        final = hidden_states(model, ids)
                    sums += reference.compare(final)
                found.rise[u, f], found.kl[u, f] = sums[0] / tokens - base, sums[1] / tokens
                found.se[u, f] = math.sqrt(sums[2]) / tokens
                spent += size * (n_layers - first) / n_layers
            bank.restore_dense()
            progress("profile: quantisation sensitivity", done, len(units))
    return found, base, round(spent)


def measure_rank_sensitivity(bank: LayerBank, units: Sequence[Unit], text: CalibrationText, k: int,
                             progress: Progress) -> tuple[FloatArray, int]:
    """Measure I_r: the first-order effect of an update of rank 1..k, from the spectrum of the weight gradient.

    For a step along the leading k singular directions, the loss falls by the step times the sum of squared
    singular values: cumulative sums of them, averaged over batches, summed over a unit's matrices. The model is without
    adapters. Returns ``L x k``, and the tokens that went forward and backward.

    Raises:
        DeviceError: If memory runs out.
    """
    spectra: dict[str, FloatArray] = {}
    names = [linear.name for unit in units for linear in unit.linears]

    def add(name: str, gradient: Tensor, x: Tensor) -> None:
        spectra[name] = spectra.get(name, np.zeros(k)) + leading_energy(gradient, x, k)

    bank.restore_dense()
    with _on_device(bank.device, text):
        tokens = each_gradient(bank.model, names, text, bank.device, add,
                               lambda done, n: progress("profile: rank sensitivity", done, n))
    sums = np.stack([sum((spectra[m.name] for m in unit.linears), np.zeros(k)) for unit in units])
    return sums / len(text.batches()), tokens


def leading_energy(gradient: Tensor, x: Tensor, k: int) -> FloatArray:
    """Return the cumulative sums of the ``k`` largest squared singular values of ``gradient^T x``.

    They are the eigenvalues of a Gram matrix in fp64: of the product, or, where tokens are few, of
    ``X^T (G G^T) X`` with ``x x^T = X X^T``, which has a row and a column for every token only. Values that there are
    not count as 0.

    Args:
        gradient: Of a linear's output, ``t x out``.
        x: Its input, ``t x in``.
        k: How many sums.
    """
    tokens, narrow = len(x), min(gradient.shape[1], x.shape[1])
    if 2 * tokens <= narrow:
        values, vectors = torch.linalg.eigh(_gram(x))
        root = vectors * values.clamp(min=0).sqrt()
        small = root.t() @ _gram(gradient) @ root
    else:
        matrix = gradient.t() @ x
        small = (matrix @ matrix.t() if matrix.shape[0] == narrow else matrix.t() @ matrix).double()
    energies = torch.linalg.eigvalsh(small).flip(0).clamp(min=0)[:k].cpu().numpy()
    return np.cumsum(np.concatenate([energies, np.zeros(max(0, k - len(energies)))]))


def _gram(rows: Tensor) -> Tensor:
    """Return ``rows rows^T`` in fp64, made from a few columns at a time."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, GRAM_COLUMNS, dim=1):
        wide = part.double()
        gram += wide @ wide.t()
    return gram


def unit_choice(units: Sequence[Unit], values: Sequence[Value]) -> Mapping[str, Value]:
    """Return the value (format or rank) of every linear from that of every unit."""
    return {linear.name: value for unit, value in zip(units, values, strict=True) for linear in unit.linears}
