"""Path-based quantisation sensitivity (Aumann-Shapley, arXiv 2607.12266) of SmolLM2-135M, on the text of a table.

    python -m bench.path_sensitivity --task gsm8k --data FILE.jsonl

For each format, a path goes from the 16-bit weights to those with all units in it, W(t) = W + t dW. The sensitivity of
a unit is the integral over t of <gradient of KL(16-bit || W(t)), its part of dW>, by Gauss-Legendre points; over units
they sum to the KL at the path's end. Written to bench/data/TASK/path.json; ``python -m bench.path_scores`` reads it.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.collect.task import DATA, TASKS, task_config
from qra_bo.finetune.adapters.inits import full_weight, unpacked
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.training.loss import hidden_states, logits_of
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.pipeline.build import make_executor

FILE = "path.json"


def attributions(oracle: FinetuneOracle, points: int, progress: Progress) -> dict[str, Any]:
    """Measure the path-based sensitivity of ``L`` units in ``F`` formats on the oracle's calibration text.

    Returns:
        ``sensitivity``, ``L x F`` in nats, and ``kl`` of all units in each format, ``F``.
    """
    model, bank, units = oracle.model, oracle.bank, oracle.units
    bank.restore_dense()
    model.eval().requires_grad_(False)
    texts = [(ids.to(oracle.device), labels[:, 1:].reshape(-1).to(oracle.device) != -100)
             for ids, labels in oracle.text.batches()]

    def log_p(ids: Tensor, taken: Tensor) -> Tensor:
        hidden = hidden_states(model, ids)[:, :-1]
        return torch.log_softmax(logits_of(model, hidden.reshape(len(taken), -1)[taken]).float(), -1)

    with torch.no_grad():
        goals = [log_p(*text) for text in texts]
    tokens, share = sum(len(goal) for goal in goals), torch.zeros(len(units), requires_grad=True)
    change: dict[str, Tensor] = {}

    def hook_of(name: str, unit: int) -> Any:
        def hook(_module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not change:
                return output
            return output + share[unit].to(output.dtype) * torch.nn.functional.linear(args[0], change[name])

        return hook

    handles = [model.get_submodule(linear.name).register_forward_hook(hook_of(linear.name, u))
               for u, unit in enumerate(units) for linear in unit.linears]

    def divergence(t: float, f: int) -> float:
        share.data.fill_(t)
        total = 0.0
        for text, goal in zip(texts, goals, strict=True):
            kl = (goal.exp() * (goal - log_p(*text))).sum() / tokens
            total += float(kl.detach())
            if kl.requires_grad:
                kl.backward()  # type: ignore[no-untyped-call]
            progress("path", f, len(oracle.formats))
        return total

    at, weights = np.polynomial.legendre.leggauss(points)
    found, ends = np.zeros((len(units), len(oracle.formats))), []
    try:
        for f, fmt in enumerate(oracle.formats):
            for unit in units:
                for linear in unit.linears:
                    dense = full_weight(bank, linear.name)
                    packed = unpacked(bank, fmt, bank.state(linear.name, fmt.name), dense.shape)
                    change[linear.name] = (packed - dense).to(bank.compute_dtype)
                progress("path", f, len(oracle.formats))
            for t, weight in zip((at + 1) / 2, weights / 2, strict=True):
                share.grad = None
                divergence(float(t), f)
                assert share.grad is not None
                found[:, f] += weight * share.grad.numpy()
            with torch.no_grad():
                ends.append(divergence(1.0, f))
    finally:
        for handle in handles:
            handle.remove()
    return {"units": [u.name for u in units], "formats": [f.name for f in oracle.formats],
            "sensitivity": found.tolist(), "kl": ends, "points": points}


def measure(task: str, path: str | None, points: int) -> None:
    """Write ``FILE`` of a table, measured at ``points`` of every path."""
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as scratch:
        executor = make_executor(task_config(task, path), Path(scratch))
        try:
            found = executor.call("bench.path_sensitivity:attributions", {"points": points}, quiet)
        finally:
            executor.close()
    (DATA / task / FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.path_sensitivity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--data", help="file of a task that needs one")
    parser.add_argument("--points", type=int, default=3, help="of every path")
    options = parser.parse_args(arguments)
    measure(options.task, options.data, options.points)


if __name__ == "__main__":
    main()
