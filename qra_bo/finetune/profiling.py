"""Sensitivity profile of the real model: I_q by quantising one unit at a time, I_r from gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.models.activations import decoder_layers, run_layer, starting_at
from qra_bo.finetune.precision import in_float32
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.threads import one_thread
from qra_bo.finetune.training.loss import CalibrationText, each_gradient, hidden_states, logits_of
from qra_bo.oracle.protocol import Progress
from qra_bo.space import FloatArray, StorageFormat, Unit
from qra_bo.utils.errors import explaining_lack_of_memory

KEPT_LOG_PROBABILITIES = 512 * 2**20
"""Bytes of the dense model's log-probabilities up to which a CPU keeps them instead of computing them again for each
format; a device keeps none, because its memory plan has no room for them."""
TILE_NUMEL = 1 << 18
"""Log-probabilities that are alive at once on a CPU: they fit into its cache."""
GRAM_COLUMNS = 1024
"""Columns that are widened at a time."""
RELIABLE = 0.9
"""Reliability of the units' ranks at which no further sequence is measured. SmolLM2-135M reaches it on the plays with 2
sequences of 128 tokens (0.94 at 3 bits, 0.97 at 8): bits chosen by them lose 1 % of what 4 sequences would gain."""
VERSION = 2
"""Goes up with every change of the numbers that are measured here: profiles on disk are kept by it."""
QUANTIZATION = "profile: quantisation sensitivity"


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
        self._sequences = len(labels)
        sequence = torch.arange(self._sequences, device=labels.device).unsqueeze(1).expand(-1, labels.shape[1] - 1)
        self._sequence = sequence.reshape(-1)[self._valid]
        self.tokens = len(self._goal)
        vocab = model.get_output_embeddings().out_features
        self._rows = max(1, TILE_NUMEL // vocab) if hidden.device.type == "cpu" else chunk
        self._hidden = self._select(hidden).to("cpu")
        self._kept: dict[int, Tensor] = {}
        self._kept.update((start, self._log_p(start)) for start in range(0, self.tokens, chunk) if keep)

    def _select(self, hidden: Tensor) -> Tensor:
        return hidden[:, :-1].reshape(len(self._valid), -1)[self._valid]

    def _logits(self, hidden: Tensor, start: int) -> Tensor:
        return logits_of(self._model, hidden[start:start + self._chunk].to(self._device))

    @torch.no_grad()
    def _log_p(self, start: int) -> Tensor:
        kept = self._kept.get(start)
        return torch.log_softmax(self._logits(self._hidden, start).float(), -1) if kept is None else kept

    @torch.no_grad()
    def loss(self) -> float:
        """Return the dense model's next-token loss, summed over the tokens, in nats."""
        return -sum(float(self._log_p(start).gather(1, self._goal[start:start + self._chunk]).sum())
                    for start in range(0, self.tokens, self._chunk))

    @torch.no_grad()
    def tiles(self, hidden: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the targets, ``n x 1``, of a few tokens at a time, with the log-probabilities of the dense model and of
        ``b x length x d`` final hidden states, ``n x vocabulary``."""
        selected = self._select(hidden)
        for start in range(0, self.tokens, self._chunk):
            log_p = self._log_p(start)
            logits, goal = self._logits(selected, start), self._goal[start:start + self._chunk]
            for parts in zip(*(torch.split(whole, self._rows) for whole in (goal, log_p, logits)), strict=True):
                yield parts[0], parts[1], torch.log_softmax(parts[2].float(), -1)

    @torch.no_grad()
    def compare(self, hidden: Tensor) -> FloatArray:
        """Compare ``b x length x d`` final hidden states to those of the dense model: return sums over the tokens of
        each sequence, ``b x 3`` in nats: next-token loss, KL(dense || model), and squared error of each token's rise.

        On text drawn from the dense model, the rise of each token's loss is its KL plus an error of mean 0 that is
        uncorrelated with those of earlier tokens: their squares add up.
        """
        sums, first = torch.zeros(3, self._sequences, dtype=torch.float64, device=hidden.device), 0
        for goal, log_p, log_q in self.tiles(hidden):
            chosen = log_q.gather(1, goal).squeeze(1)
            apart = torch.sum(log_p.exp().mul_(log_p - log_q), dim=1)
            off = (log_p.gather(1, goal).squeeze(1) - chosen - apart).square()
            tokens = torch.stack([-chosen, apart, off]).double()
            sums.index_add_(1, self._sequence[first:first + len(goal)], tokens)
            first += len(goal)
        return sums.t().cpu().numpy()


def on_device(device: torch.device, text: CalibrationText) -> AbstractContextManager[None]:
    """Explain a lack of memory within a block: it is not the result of any one allocation."""
    return explaining_lack_of_memory(
        f"measuring sensitivities on {text.batch} sequences of {text.ids.shape[1]} tokens at once takes more memory "
        f"than {device} has; lower train.batch or train.length")


class Measurement(NamedTuple):
    """Sensitivities to quantisation, each ``L x F`` in nats: rise of the loss, KL from the dense model, standard error
    of the rise. The dense model's loss (nats a token), the tokens that went forward, and the number of sequences.

    Of those from gradients, the relative standard error of divergences from the draws of labels, and the formats that
    were measured directly all the same.
    """

    rise: FloatArray
    kl: FloatArray
    se: FloatArray
    base_loss: float
    forward_tokens: int
    sequences: int
    drawn_error: float = 0.0
    direct: tuple[str, ...] = ()


def kept_array(store: TensorStore | None, name: str, make: Callable[[], FloatArray]) -> FloatArray:
    """Return the array that ``store`` holds under ``name``; else make it, and save it there."""
    found = None if store is None else store.load(name)
    if found is not None:
        return found["values"].numpy()
    made = make()
    if store is not None:
        store.save(name, {"values": torch.from_numpy(made)})
    return made


@torch.no_grad()
def measure_quantization_sensitivity(bank: LayerBank, units: Sequence[Unit], formats: Sequence[StorageFormat],
                                     text: CalibrationText, progress: Progress,
                                     kept: TensorStore | None = None) -> Measurement:
    """Measure I_q of ``L`` units in ``F`` formats: rise of the calibration loss, and KL, with one unit quantised.

    The model is without adapters, its other units are in 16 bits, and activations in fp32 (``in_float32``). Half of
    ``text.batch`` sequences go forward at a time, and at least two where a pass copies the weights to the device first.
    They begin at the first layer of the unit; the dense model's input to that layer is kept in host memory. No more
    sequences are measured once the order of the units is ``settled``. A pass through k of n layers counts as its share
    of the layers in the tokens that went forward. What ``kept`` holds of all units counts as if measured.

    Raises:
        DeviceError: If memory runs out.
    """
    model, parts = bank.model, text.parts(max(2 if bank.streams else 1, text.batch // 2))
    model.eval()
    bank.restore_dense()
    found, base, spent, tokens = list[FloatArray](), 0.0, 0.0, 0
    quantised = np.array([not fmt.is_base for fmt in formats], dtype=bool)  # the base is the reference itself
    with on_device(bank.device, text), in_float32(bank):
        for part, (ids, labels) in enumerate(parts):
            first = sum(map(len, found))
            name = f"quantisation-{first}-{first + len(ids)}"  # another run may take more sequences a pass

            def report(done: int, part: int = part) -> None:
                progress(QUANTIZATION, part * len(units) + done, len(parts) * len(units))

            reference, sums, passed = differences(bank, units, formats, ids, labels, text.logits_chunk, kept, name,
                                                  report)
            found.append(sums)
            base, tokens, spent = base + reference.loss(), tokens + reference.tokens, spent + passed
            if settled(np.concatenate(found)[:, :, quantised, 1]):
                break
    progress(QUANTIZATION, len(parts) * len(units), len(parts) * len(units))
    sequences = np.concatenate(found)
    loss, kl, squares = np.moveaxis(sequences.sum(axis=0) / tokens, -1, 0)
    rise = np.where(quantised, loss - base / tokens, 0.0)
    return Measurement(rise, kl, np.sqrt(squares / tokens), base / tokens, round(spent), len(sequences))


def differences(bank: LayerBank, units: Sequence[Unit], formats: Sequence[StorageFormat], ids: Tensor, labels: Tensor,
                 chunk: int, kept: TensorStore | None, name: str, report: Callable[[int], None]) \
        -> tuple[DenseReference, FloatArray, float]:
    """Compare the model with one unit quantised to the dense one on ``b`` sequences, for every unit and format.

    Returns the dense predictions, the sums of ``compare``, ``b x L x F x 3`` (0 at 16 bits), and the tokens that
    went forward. ``kept`` holds the sums of every unit under ``name`` and its index; ``report`` is called with the
    number of units that are done.
    """
    model, ids, labels = bank.model, ids.to(bank.device), labels.to(bank.device)
    n_layers, size = len(decoder_layers(model)), ids.numel()
    log_p_bytes = 4 * model.get_output_embeddings().out_features * int((labels[:, 1:] != -100).sum())
    keep = bank.device.type == "cpu" and log_p_bytes <= KEPT_LOG_PROBABILITIES
    reference = DenseReference(model, hidden_states(model, ids), labels, chunk, keep=keep)
    below, at = torch.empty(0), 0
    starts = [min(linear.layer for linear in unit.linears) for unit in units]
    quantised = [f for f, fmt in enumerate(formats) if not fmt.is_base]

    def sums_of(u: int) -> FloatArray:
        nonlocal below, at
        first, found = starts[u], np.zeros((len(ids), len(formats), 3))
        for layer in range(at, first):
            below, at = run_layer(model, ids, layer, below.to(bank.device))[0].to("cpu"), first
        for f in quantised:
            bank.install({linear.name: formats[f].name for linear in units[u].linears})
            with starting_at(model, first, below.to(bank.device)):
                final = hidden_states(model, ids)
            found[:, f] = reference.compare(final)
        bank.restore_dense()
        return found

    sums = np.zeros((len(ids), len(units), len(formats), 3))
    for done, u in enumerate(sorted(range(len(units)), key=starts.__getitem__), start=1):
        sums[:, u] = kept_array(kept, f"{name}-{u}", partial(sums_of, u))
        report(done)
    layers = n_layers + max(starts) + len(quantised) * sum(n_layers - first for first in starts)
    return reference, sums, size * layers / n_layers


def settled(kl: FloatArray) -> bool:
    """Whether more sequences would hardly change the order of the units by their divergence, in any format.

    The sequences are divided into two halves. Where the halves' ranks of the units correlate with r (Spearman), those
    of all together have the reliability 2 r / (1 + r) (Spearman-Brown formula), at the least ``RELIABLE``.

    Args:
        kl: Summed over the tokens of each sequence, ``n x L x F``.
    """
    if len(kl) < 2:
        return False
    halves = [half.sum(axis=0).argsort(axis=0).argsort(axis=0) for half in (kl[::2], kl[1::2])]
    for one, other in zip(*(half.T for half in halves), strict=True):
        r = float(np.corrcoef(one, other)[0, 1]) if len(one) > 1 else 1.0
        if 2 * r < RELIABLE * (1 + r):
            return False
    return True


def measure_rank_sensitivity(bank: LayerBank, units: Sequence[Unit], text: CalibrationText, k: int,
                             progress: Progress, kept: TensorStore | None = None) -> tuple[FloatArray, int]:
    """Measure I_r: the first-order effect of an update of rank 1..k, from the spectrum of the weight gradient.

    For a step along the leading k singular directions, the loss falls by the step times the sum of squared
    singular values: cumulative sums of them, averaged over batches, summed over a unit's matrices. The model is without
    adapters. Returns ``L x k``, and the tokens that went forward and backward. Batches that ``kept`` holds are not
    measured again, and count as much.

    Raises:
        DeviceError: If memory runs out.
        ModelError: If a gradient is not finite.
    """
    names, batches = [linear.name for unit in units for linear in unit.adapted], text.parts(text.batch)

    def energies(ids: Tensor, labels: Tensor) -> FloatArray:
        found: dict[str, FloatArray] = {}

        def add(name: str, gradient: Tensor, x: Tensor) -> None:
            found[name] = leading_energy(gradient, x, k)

        each_gradient(bank.model, names, ids.to(bank.device), labels.to(bank.device), text.logits_chunk, add)
        # An expert that no token of the batch reaches has no gradient.
        return np.stack([sum((found[m.name] for m in unit.adapted if m.name in found), np.zeros(k)) for unit in units])

    bank.restore_dense()
    sums = np.zeros((len(units), k))
    with on_device(bank.device, text):
        for done, batch in enumerate(batches, start=1):
            sums += kept_array(kept, f"rank-{done}", partial(energies, *batch))
            progress("profile: rank sensitivity", done, len(batches))
    return sums / len(batches), text.ids.numel()


def leading_energy(gradient: Tensor, x: Tensor, k: int) -> FloatArray:
    """Return the cumulative sums of the ``k`` largest squared singular values of ``gradient^T x``.

    They are the eigenvalues of a Gram matrix: of the product, or, where tokens are few, of ``X^T (G G^T) X`` with
    ``x x^T = X X^T``, which has a row and a column for every token only. Values that there are not count as 0. The
    CPU computes in fp64, CUDA in fp32: most cards are 32 to 64 times slower in fp64, and only the largest values count.

    Args:
        gradient: Of a linear's output, ``t x out``.
        x: Its input, ``t x in``.
        k: How many sums.
    """
    tokens, narrow = len(x), min(gradient.shape[1], x.shape[1])
    if 2 * tokens <= narrow:
        gram = _gram(x)
        with one_thread():
            values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp(min=0).sqrt()
        small = root.t() @ _gram(gradient) @ root
    else:
        matrix = gradient.t() @ x
        small = (matrix @ matrix.t() if matrix.shape[0] == narrow else matrix.t() @ matrix).to(_exact(x.device))
    with one_thread():
        values = torch.linalg.eigvalsh(small)
    energies = values.flip(0).clamp(min=0)[:k].cpu().numpy()
    return np.cumsum(np.concatenate([energies, np.zeros(max(0, k - len(energies)))]))


def _gram(rows: Tensor) -> Tensor:
    """Return ``rows rows^T``, made from a few columns at a time."""
    exact = _exact(rows.device)
    gram = torch.zeros(len(rows), len(rows), dtype=exact, device=rows.device)
    for part in torch.split(rows, GRAM_COLUMNS, dim=1):
        wide = part.to(exact)
        gram += wide @ wide.t()
    return gram


def _exact(device: torch.device) -> torch.dtype:
    return torch.float64 if device.type == "cpu" else torch.float32


def unit_choice(units: Sequence[Unit], formats: Sequence[str]) -> Mapping[str, str]:
    """Return the format of every linear from that of every unit."""
    return {linear.name: fmt for unit, fmt in zip(units, formats, strict=True) for linear in unit.linears}
