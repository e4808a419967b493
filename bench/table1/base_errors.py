"""Two measures of a quantised base before training, by which methods of the comparison choose bits."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.table1.decompositions import low_rank_first
from bench.table1.lowrank import leading
from bench.table1.starts import full_weight, requantise_in, unpacked
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.profiling import DenseReference, unit_choice
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.oracle.synthetic import FLOOR, TOTAL_TASK, SyntheticOracle
from qra_bo.space import Allocation


def decomposition_errors(oracle: FinetuneOracle | SyntheticOracle, rank: int, iterations: int,
                         progress: Progress) -> dict[str, Any]:
    """Measure LQ-LoRA's objective: ``sum ||W - Q - L||_F^2`` over the linears of every unit in every format.

    The paper's variant without Fisher weights. With ``rank`` 0 it is the error of plain quantisation. The synthetic
    oracle answers with the planted sensitivity that adapters of ``rank`` leave. No token is spent.

    Args:
        oracle: Holds the model.
        rank: Rank of L.
        iterations: Most alternations; the order of formats and units seldom depends on more than the first.
        progress: Called after every unit.

    Returns:
        ``units`` and ``formats`` by name, and ``errors``, ``L x F``.
    """
    if isinstance(oracle, SyntheticOracle):
        units, formats = oracle.landscape.space.units, oracle.landscape.space.formats
        kept = oracle.landscape.kept(np.array([[float(rank)]]))
        errors = oracle.landscape.quantization_sensitivity * kept
        progress("decompose", len(units), len(units))
    else:
        units, formats, bank = oracle.units, oracle.formats, oracle.bank
        errors = np.zeros((len(units), len(formats)))
        for u, unit in enumerate(units):
            for linear in unit.linears:
                weight = full_weight(bank, linear.name)
                size = float(torch.linalg.vector_norm(weight)) ** 2
                first = leading(weight, rank) if rank else None
                for f, fmt in enumerate(formats):
                    if first is None:
                        plain = unpacked(bank, fmt, bank.state(linear.name, fmt.name), weight.shape)
                        errors[u, f] += float(torch.linalg.vector_norm(weight - plain)) ** 2
                    else:
                        found = low_rank_first(weight, requantise_in(bank, fmt), rank, iterations, first)
                        errors[u, f] += min(found.errors) ** 2 * size
            progress("decompose", u + 1, len(units))
    return {"units": [u.name for u in units], "formats": [f.name for f in formats], "errors": errors.tolist()}


def joint_sensitivity(oracle: FinetuneOracle | SyntheticOracle, choices: Sequence[Sequence[str]],
                      progress: Progress) -> dict[str, Any]:
    """Measure the calibration loss, and the divergence from the dense model, with all units quantised at once.

    The synthetic oracle answers with the planted loss before training, and its rise as the divergence.

    Args:
        oracle: Holds the model; it is dense again afterwards.
        choices: ``n`` times the format of every unit.
        progress: Called after every choice.

    Returns:
        ``loss`` and ``jsd`` (Jensen-Shannon, nats per token) of every choice, and ``forward_tokens``, the dense pass
        included.
    """
    losses, divergences = [], []
    if isinstance(oracle, SyntheticOracle):
        space, tokens = oracle.landscape.space, oracle.calibration_tokens
        for done, names in enumerate(choices, start=1):
            allocation = Allocation(tuple(names), (0,) * len(names))
            known = [space.formats[space.format_index[f]] if f in space.format_index else parse_format(f)
                     for f in names]
            losses.append(oracle.landscape.trained(allocation, known)[0])
            divergences.append(losses[-1] - FLOOR - TOTAL_TASK)
            progress("joint sensitivity", done, len(choices))
        return {"loss": losses, "jsd": divergences, "forward_tokens": (1 + len(choices)) * tokens}
    model, bank = oracle.model, oracle.bank
    model.eval()
    ids, labels = (torch.from_numpy(array).to(oracle.device)
                   for array in (oracle.data.calibration.input_ids, oracle.data.calibration.labels))

    def final_states() -> Tensor:
        with torch.no_grad():
            hidden: Tensor = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    bank.restore_dense()
    reference = DenseReference(model, final_states(), labels, oracle.settings.train.logits_chunk, keep=True)
    for done, names in enumerate(choices, start=1):
        bank.install(unit_choice(oracle.units, names))
        hidden = final_states()
        losses.append(float(reference.compare(hidden)[:, 0].sum()) / reference.tokens)
        divergences.append(jensen_shannon(reference, hidden))
        progress("joint sensitivity", done, len(choices))
    bank.restore_dense()
    return {"loss": losses, "jsd": divergences, "forward_tokens": ids.numel() * (1 + len(choices))}


@torch.no_grad()
def jensen_shannon(reference: DenseReference, hidden: Tensor) -> float:
    """Mean Jensen-Shannon divergence from the dense model of ``b x length x d`` final hidden states, in nats."""
    total = 0.0
    for _, log_p, log_q in reference.tiles(hidden):
        middle = torch.logaddexp(log_p, log_q) - math.log(2.0)
        total += 0.5 * float(torch.sum(log_p.exp() * (log_p - middle)) + torch.sum(log_q.exp() * (log_q - middle)))
    return total / reference.tokens
