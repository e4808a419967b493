"""Sensitivity profile of the real model: I_q by quantising one unit at a time, I_r from gradients."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.models.activations import layer_inputs, starting_at
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loss import CalibrationText, each_gradient, logits_of
from qra_bo.oracle.protocol import Progress
from qra_bo.space import FloatArray, StorageFormat, Unit

Value = TypeVar("Value")
KEPT_LOG_PROBABILITIES = 512 * 2**20
"""Bytes of the dense model's log-probabilities up to which they are kept, and not computed again for each format."""


class Measured(NamedTuple):
    """I_q, each ``L x F`` in nats: rise of the loss, KL from the dense model, standard error of the rise."""

    rise: FloatArray
    kl: FloatArray
    se: FloatArray


class DenseReference:
    """The dense model's predictions on the calibration text, to which quantised models are compared.

    Args:
        model: The model, for its head.
        hidden: Final hidden states of the dense model, ``b x length x d``.
        labels: ``b x length``.
        chunk: Tokens whose logits are alive at once.
    """

    def __init__(self, model: Any, hidden: Tensor, labels: Tensor, chunk: int) -> None:
        self._model, self._chunk = model, chunk
        targets = labels[:, 1:].reshape(-1)
        self._valid = targets != -100
        self._goal = targets[self._valid]
        self.tokens = len(self._goal)
        self._starts = range(0, self.tokens, chunk)
        self._hidden = self._select(hidden)
        vocab = model.get_output_embeddings().weight.shape[0]
        keep = 4 * vocab * len(self._goal) <= KEPT_LOG_PROBABILITIES
        self._kept = [self._log_p(self._hidden, start) for start in self._starts] if keep else None

    def _select(self, hidden: Tensor) -> Tensor:
        return hidden[:, :-1].reshape(len(self._valid), -1)[self._valid]

    @torch.no_grad()
    def _log_p(self, hidden: Tensor, start: int) -> Tensor:
        return torch.log_softmax(logits_of(self._model, hidden[start:start + self._chunk]).float(), -1)

    @torch.no_grad()
    def chunks(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the targets, ``n x 1``, of every chunk of ``n`` tokens, with the log-probabilities of the dense model
        and of ``b x length x d`` final hidden states, ``n x vocabulary``."""
        selected = self._select(hidden)
        for i, start in enumerate(self._starts):
            log_p = self._log_p(self._hidden, start) if self._kept is None else self._kept[i]
            yield self._goal[start:start + self._chunk].unsqueeze(1), log_p, self._log_p(selected, start)

    @torch.no_grad()
    def compare(self, hidden: Tensor) -> tuple[float, float, float]:
        """Return the mean next-token loss of ``b x length x d`` final hidden states, the mean KL(dense || these), and
        the standard error of the rise of the loss over the dense model's, in nats.

        On text drawn from the dense model, the rise of each token is its KL plus an error of mean 0 that is
        uncorrelated with those of earlier tokens: their squares add up.
        """
        loss = kl = squares = 0.0
        for goal, log_p, log_q in self.chunks(hidden):
            chosen = log_q.gather(1, goal)
            apart = torch.sum(log_p.exp() * (log_p - log_q), dim=1)
            loss -= float(chosen.sum())
            kl += float(apart.sum())
            squares += float((log_p.gather(1, goal).sub(chosen).squeeze(1) - apart).square().sum())
        return loss / self.tokens, kl / self.tokens, math.sqrt(squares) / self.tokens


def measure_quantization_sensitivity(bank: LayerBank, units: Sequence[Unit], formats: Sequence[StorageFormat],
                                     text: CalibrationText, progress: Progress) -> tuple[Measured, float, int]:
    """Measure I_q of ``L`` units in ``F`` formats: rise of the calibration loss, and KL, with one unit quantised.

    The model is without adapters, its other units are in 16 bits. Returns the sensitivities, the dense model's loss,
    and the tokens that went forward (a pass that starts at layer k of n counts as its share of the layers).
    """
    model, ids, labels = bank.model, text.ids.to(bank.device), text.labels.to(bank.device)
    model.eval()
    bank.restore_dense()
    below, final = layer_inputs(model, ids)
    reference = DenseReference(model, final, labels, text.logits_chunk)
    base, _, _ = reference.compare(final)
    found = Measured(*(np.zeros((len(units), len(formats))) for _ in range(3)))
    spent, n_layers = float(ids.numel()), len(below)
    for u, unit in enumerate(units):
        first = min(linear.layer for linear in unit.linears)
        for f, fmt in enumerate(formats):
            if fmt.bits >= 16:
                continue  # the reference itself, whose sensitivity is 0
            bank.install({linear.name: fmt.name for linear in unit.linears})
            with torch.no_grad(), starting_at(model, first, below[first]):
                final = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            loss, found.kl[u, f], found.se[u, f] = reference.compare(final)
            found.rise[u, f] = loss - base
            spent += ids.numel() * (n_layers - first) / n_layers
        bank.restore_dense()
        progress("profile: quantisation sensitivity", u + 1, len(units))
    return found, base, round(spent)


def measure_rank_sensitivity(bank: LayerBank, units: Sequence[Unit], text: CalibrationText, k: int,
                             progress: Progress) -> tuple[FloatArray, int]:
    """Measure I_r: the first-order effect of an update of rank 1..k, from the spectrum of the weight gradient.

    For a step along the leading k singular directions, the loss falls by the step times the sum of squared
    singular values: cumulative sums of them, averaged over batches, summed over a unit's matrices. The model is without
    adapters. Returns ``L x k``, and the tokens that went forward and backward.
    """
    spectra: dict[str, FloatArray] = {}
    names = [linear.name for unit in units for linear in unit.linears]

    def add(name: str, gradient: Tensor, x: Tensor) -> None:
        spectra[name] = spectra.get(name, np.zeros(k)) + leading_energy(gradient.t() @ x, k)

    bank.restore_dense()
    tokens = each_gradient(bank.model, names, text, bank.device, add,
                           lambda done, n: progress("profile: rank sensitivity", done, n))
    sums = np.stack([sum((spectra[m.name] for m in unit.linears), np.zeros(k)) for unit in units])
    return sums / len(text.batches()), tokens


def leading_energy(matrix: Tensor, k: int) -> FloatArray:
    """Return the cumulative sums of the ``k`` largest squared singular values (all of them where there are fewer)."""
    small = matrix @ matrix.t() if matrix.shape[0] <= matrix.shape[1] else matrix.t() @ matrix
    values = torch.linalg.eigvalsh(small.double()).flip(0).clamp(min=0)[:k].cpu().numpy()
    padded = np.concatenate([values, np.zeros(max(0, k - len(values)))])
    return np.cumsum(padded)


def unit_choice(units: Sequence[Unit], values: Sequence[Value]) -> Mapping[str, Value]:
    """Return the value (format or rank) of every linear from that of every unit."""
    return {linear.name: value for unit, value in zip(units, values, strict=True) for linear in unit.linears}
