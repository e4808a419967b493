"""Sensitivities to quantisation from gradients: those of all units and formats in a few passes.

To second order, the divergence that a change ``dh`` of a unit's output causes is half of ``dh^T F dh``, where ``F`` is
the Fisher information: the expectation, over labels that the model itself draws, of ``g g^T`` for the gradient ``g`` of
their log-probability. A pass backward for every draw gives ``g`` at the output of every layer; a run of the layer alone
on its recorded input, with one unit in one format, gives ``dh``. Products of ``g`` and ``dh`` are added over windows of
a few tokens and squared there, every token in as many windows: those of tokens further apart add 3 to 9 % to the
expectation (SmolLM2-135M, plays), and most of the variance.

Layers are passed from the last to the first, so that the graph of one layer is there at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qra_bo.finetune import profiling
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.data.records import named_rng
from qra_bo.finetune.models.activations import decoder_layers, run_layer
from qra_bo.finetune.precision import in_float32
from qra_bo.finetune.profiling import Measurement
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.training.loss import CalibrationText, input_gradient, logits_of, scale_and_cap
from qra_bo.oracle.protocol import Progress
from qra_bo.sensitivity.profile import DRAWS, gradient_passes
from qra_bo.space import FloatArray, StorageFormat, Unit

CHECKED = 3
"""Units whose divergence is measured directly too, in every format: of the least, the median and the largest one."""
FACTOR = 2.0
"""Largest ratio between the two for which a format's divergences are taken from gradients. On SmolLM2-135M (plays, 4
sequences) the ratios of all 30 units lie between 0.6 and 1.4 in t2, t3, nf4 and int8."""
WINDOW = 8
"""Tokens whose products are added before they are squared."""
VERSION = 2
"""Goes up with every change of the numbers that are estimated here."""


@torch.no_grad()
def measure_by_gradients(bank: LayerBank, units: Sequence[Unit], formats: Sequence[StorageFormat],
                         text: CalibrationText, progress: Progress, kept: TensorStore | None = None) -> Measurement:
    """Estimate what ``measure_quantization_sensitivity`` measures, with its arguments, errors and sequences.

    A format whose divergence differs from a direct pass's by more than ``FACTOR`` at one of ``CHECKED`` units is
    measured directly. A backward pass counts as two in the tokens that went forward.
    """
    parts = text.parts(max(2 if bank.streams else 1, text.batch // 2))
    bank.model.eval()
    bank.restore_dense()
    quantised = np.array([not fmt.is_base for fmt in formats], dtype=bool)
    rejected, found, tokens, spent = np.zeros(len(formats), dtype=bool), list[FloatArray](), 0, 0.0
    with profiling.on_device(bank.device, text), in_float32(bank):
        for number, (ids, labels) in enumerate(parts):
            first = sum(map(len, found))
            name = f"{first}-{first + len(ids)}"

            def report(done: int, n: int, number: int = number) -> None:
                progress(profiling.QUANTIZATION, number * n + done, len(parts) * n)

            sums = partial(_sums, bank, units, formats, ids, labels, text.logits_chunk, first, report)
            found.append(profiling.kept_array(kept, f"gradients-{name}", sums))
            spent += ids.numel() * gradient_passes(bank.spec.n_layers, len(units), int(quantised.sum()))
            tokens += int((labels[:, 1:] != -100).sum())
            if number == 0 and quantised.any():
                kl = found[0][..., :DRAWS].mean(axis=-1).sum(axis=0)
                order = kl[:, quantised.argmax()].argsort()
                checked = sorted({int(order[i * (len(units) - 1) // (CHECKED - 1)]) for i in range(CHECKED)})
                _, direct, forward = profiling.differences(
                    bank, [units[u] for u in checked], formats, ids, labels, text.logits_chunk, kept, f"checked-{name}",
                    lambda done: progress("profile: check of gradients", done, CHECKED))
                rejected, spent = quantised & _apart(kl[checked], direct[..., 1].sum(axis=0)), spent + forward
            if profiling.settled(np.concatenate(found)[..., :DRAWS].mean(axis=-1)[:, :, quantised]):
                break
    sequences = np.concatenate(found)
    draws = sequences[..., :DRAWS]
    kl = draws.mean(axis=-1).sum(axis=0) / tokens
    rise = sequences[..., DRAWS].sum(axis=0) / tokens + kl
    measured = rise, kl, np.sqrt(2 * kl / tokens)  # the variance of the first order is twice the divergence
    names = tuple(fmt.name for fmt, far in zip(formats, rejected, strict=True) if far)
    if names:
        instead = profiling.measure_quantization_sensitivity(
            bank, units, [f for f in formats if f.name in names], text, progress, kept)
        spent += instead.forward_tokens
        for mine, theirs in zip(measured, instead[:3], strict=True):
            mine[:, rejected] = theirs
    used = quantised & ~rejected
    error = np.sqrt(draws.var(axis=-1, ddof=1).sum(axis=0) / DRAWS)[:, used].mean() / (tokens * kl[:, used].mean()) \
        if used.any() else 0.0
    return Measurement(*measured, float(sequences[:, 0, 0, -1].sum()) / tokens, round(spent), len(sequences),
                       float(error), names)


def _apart(estimate: FloatArray, direct: FloatArray) -> npt.NDArray[np.bool_]:
    """Return in which formats two measurements, both ``n x F``, differ by more than ``FACTOR``, or are no numbers."""
    return np.asarray(~((estimate <= FACTOR * direct) & (direct <= FACTOR * estimate)).all(axis=0))


def _sums(bank: LayerBank, units: Sequence[Unit], formats: Sequence[StorageFormat], ids: Tensor, labels: Tensor,
          chunk: int, first: int, passed: Callable[[int, int], None]) -> FloatArray:
    """Return sums over the tokens of ``b`` sequences for every unit and format, ``b x L x F x (DRAWS + 2)``, in nats:
    the divergence by each draw of labels, the rise of the loss to first order, and the dense model's loss.

    ``first`` is the number of the first sequence. ``passed`` is called with the layers that are done, of how many.
    """
    model, ids, labels = bank.model, ids.to(bank.device), labels.to(bank.device)
    n_layers, sums = len(decoder_layers(model)), np.zeros((len(ids), len(units), len(formats), DRAWS + 2))
    inputs, hidden = list[Tensor](), torch.empty(0, device=bank.device)
    for layer in range(n_layers):
        inputs.append(hidden.to("cpu"))
        hidden, final = run_layer(model, ids, layer, hidden)
    gradients, losses = _at_the_head(model, final, labels, chunk, named_rng("drawn labels", first))
    sums[..., -1] = losses.double().cpu().numpy()[:, None, None]
    for layer in reversed(range(n_layers)):
        with torch.enable_grad():
            hidden = inputs.pop().to(bank.device).requires_grad_()
            output, final = run_layer(model, ids, layer, hidden)
        if layer == n_layers - 1:
            gradients = _back(final, output, gradients)
        below, output = _back(output, hidden, gradients) if layer else gradients, output.detach()
        for u in (u for u, unit in enumerate(units) if unit.linears[0].layer == layer):
            for f, fmt in enumerate(formats):
                if fmt.is_base:
                    continue
                bank.install({linear.name: fmt.name for linear in units[u].linears})
                change = run_layer(model, ids, layer, hidden)[0] - output
                by_token = (gradients.float() * change.float()).sum(-1)
                windows = nn.functional.pad(by_token[:DRAWS], (WINDOW - 1, WINDOW - 1)).unfold(-1, WINDOW, 1).sum(-1)
                sums[:, u, f, :DRAWS] = windows.square().sum(-1).t().cpu().numpy() / (2 * WINDOW)
                sums[:, u, f, DRAWS] = -by_token[DRAWS].sum(-1).cpu().numpy()
            bank.restore_dense()
        gradients = below
        passed(n_layers - layer, n_layers)
    return sums


def _back(output: Tensor, entry: Tensor, gradients: Tensor) -> Tensor:
    """Return ``k`` gradients with respect to ``entry`` from ``k`` with respect to ``output``; the graph stays."""
    return torch.stack([torch.autograd.grad(output, entry, g, retain_graph=True)[0] for g in gradients])


def _at_the_head(model: Any, final: Tensor, labels: Tensor, chunk: int,
                 rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return gradients of summed log-probabilities with respect to the final hidden states, ``(DRAWS + 1) x b x length
    x d``, of labels that the model draws and of the text's own, and the loss of each sequence, ``b``."""
    head, (factor, cap) = model.get_output_embeddings(), scale_and_cap(model)
    rows, goal = final[:, :-1].reshape(-1, final.shape[-1]), labels[:, 1:].reshape(-1)
    found = final.new_zeros(DRAWS + 1, *final.shape)
    inner, losses = rows.new_zeros(DRAWS + 1, *rows.shape), rows.new_zeros(len(rows), dtype=torch.float32)
    for start in range(0, len(rows), chunk):
        span = slice(start, start + chunk)
        logits, own = logits_of(model, rows[span]).float(), goal[span].clamp(min=0).unsqueeze(1)
        valid = (goal[span] != -100).unsqueeze(1)
        log_p = torch.log_softmax(logits, -1)
        losses[span] = -(log_p.gather(1, own) * valid).squeeze(1)
        slope = valid * (factor if not cap else factor * (1 - (logits / cap).square_()))
        del logits
        p = log_p.exp_()
        below = p.cumsum(-1)
        uniform = torch.from_numpy(rng.random((len(p), DRAWS), dtype=np.float32)).to(p.device)
        drawn = torch.searchsorted(below, uniform * below[:, -1:]).clamp_(max=p.shape[1] - 1)
        del below
        for d, picked in enumerate((*torch.split(drawn, 1, dim=1), own)):
            change = p.neg().scatter_add_(1, picked, torch.ones_like(picked, dtype=p.dtype)).mul_(slope)
            inner[d, span] = input_gradient(head, change).to(inner.dtype)
    found[:, :, :-1] = inner.view(DRAWS + 1, len(final), -1, final.shape[-1])
    return found, losses.view(len(final), -1).sum(-1)
