"""Accuracy of surrogates near the budget with few trials: our model, the paper's GP, the paper's network.

The losses are real ones of a table: ``n`` allocations near a budget are drawn, and each is predicted from the others.
Our model and the GP are left one out in closed form, with hyperparameters fitted to all; the network of Eq. 7, which
also sees the early loss, is trained for every fold of ten.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.emulator.emulator import usable
from bench.emulator.table import ReferenceBudget, Table
from bench.emulators import bands
from qra_bo.searchers.base import SearchProblem
from qra_bo.searchers.evolution.selection import Promotion
from qra_bo.searchers.structured import LEAST_CHECKED, StructuredSearch
from qra_bo.searchers.trust_region import embed, unit_importance
from qra_bo.sensitivity.importance import fidelity_importance, plasticity_importance
from qra_bo.space import Allocation, FloatArray, IntArray
from qra_bo.trials import Fidelity, Trial, TrialResult, TrialSpec, TrialState
from surrogates.diagnostics import Diagnostics, HeldOut, gaussian_nll, spearman
from surrogates.fidelity import FidelityModel
from surrogates.gp import fit_gp

COUNTS = (10, 20, 40, 80)
DRAWS, FOLDS = 5, 10
Row = dict[str, Any]


def evaluation(problem: SearchProblem, allocation: Allocation, loss: float, number: int) -> Trial:
    """A finished high-fidelity evaluation as a searcher is told of it."""
    steps = problem.high_steps
    measured = TrialResult(TrialState.OK, loss, None, ((steps, loss),), steps, 1, 1, None, 0.0)
    return Trial(number, allocation, problem.space.bits(allocation), "global", Fidelity.HIGH,
                      TrialSpec(allocation, steps, steps, 0, 1.0), 0, measured, 0)


def told_of(problem: SearchProblem, allocations: Sequence[Allocation], losses: FloatArray) -> list[Trial]:
    """``evaluation`` of ``n`` allocations and their losses, numbered in order."""
    return [evaluation(problem, a, float(loss), i) for i, (a, loss) in enumerate(zip(allocations, losses, strict=True))]


def of_ours(problem: SearchProblem, rows: IntArray, losses: FloatArray) -> Diagnostics:
    """The structured surrogate of the default search."""
    searcher = StructuredSearch(problem)
    searcher.tell(told_of(problem, [problem.space.decode(row) for row in rows], losses))
    check = searcher.surrogate_check() or {}
    keys = ("n", "spearman", "spearman_good", "nll", "coverage_50", "coverage_90")
    return Diagnostics(*(float("nan") if check.get(key) is None else check[key] for key in keys))


def of_gp(problem: SearchProblem, rows: IntArray, losses: FloatArray) -> Diagnostics:
    """The published Stage 2's GP on psi(C), left one out in closed form."""
    x = torch.from_numpy(embed(rows, problem.space, unit_importance(problem.profile)))
    model = fit_gp(x, torch.from_numpy(losses)[:, None])
    with torch.no_grad():
        model.train()
        prior = model(x)
        covariance = model.likelihood(prior).covariance_matrix
        model.eval()
        error, sd = left_one_out(covariance, model.train_targets - prior.mean)
    scale = float(np.std(losses, ddof=1))
    truth = torch.from_numpy(losses)
    mean, sd = truth - error * scale, sd * scale
    score = (truth - mean) / sd
    return HeldOut(truth, mean, sd, score, gaussian_nll(score, sd)).diagnostics()


def left_one_out(covariance: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Error and deviation of a Gaussian process's prediction of every observation from the others, each ``n``.

    Args:
        covariance: Of the observations, noise included, ``n x n``.
        residual: Observations less their prior mean, ``n``.
    """
    inverse = torch.linalg.inv(covariance)
    variance = 1.0 / inverse.diagonal()
    return (inverse @ residual) * variance, variance.sqrt()


def of_network(problem: SearchProblem, rows: IntArray, losses: FloatArray, early: FloatArray) -> Row:
    """Eq. 7's network, in folds; it gives no intervals."""
    top = problem.space.ranks.values[-1]
    features = torch.from_numpy(Promotion(problem, fidelity_importance(problem.profile),
                                          plasticity_importance(problem.profile, top), None).features(rows, early))
    target, predicted = torch.from_numpy(losses), torch.zeros(len(losses), dtype=torch.float64)
    fold = torch.arange(len(losses)) % FOLDS
    for k in range(FOLDS):
        test = fold == k
        if bool(test.any()):
            predicted[test] = FidelityModel(features[~test], target[~test], seed=k).predict(features[test])
    good = target <= target.median()
    return {"spearman": spearman(predicted, target), "spearman_good": spearman(predicted[good], target[good])}


def quality_rows(table: Table, problem_of: Sequence[tuple[ReferenceBudget, SearchProblem]],
                 counts: Sequence[int] = COUNTS, draws: int = DRAWS) -> list[Row]:
    """One row for every budget, surrogate and number of evaluations: means over draws of that many. Both budgets
    together have enough for large numbers; a surrogate's model knows no budget."""
    data = usable(table)
    inside = bands(table, data)
    near = [(budget.text, inside[f"near {budget.text}"], problem) for budget, problem in problem_of]
    if len(near) > 1:
        near.append(("either", np.any([band for _, band, _ in near], axis=0), near[0][2]))
    rows: list[Row] = []
    for text, close, problem in near:
        band = close & np.array([problem.space.contains(a) for a in data.allocations])
        chosen = np.flatnonzero(band & np.isfinite(data.targets[:, -2]))
        encoded = np.stack([problem.space.encode(data.allocations[i]) for i in chosen])
        losses, early = data.targets[chosen, -1], data.targets[chosen, -2]
        for count in counts:
            base = {"task": table.facts.task, "budget": text, "evaluations": count, "available": len(chosen)}
            if count > len(chosen) or count < LEAST_CHECKED:
                rows.append({**base, "surrogate": "any", "spearman": None,
                             "why": f"the table has {len(chosen)} allocations near this budget"})
                continue
            rng = problem.rng(f"quality {count}")
            found: dict[str, list[Row]] = {"qra_bo": [], "GP of the paper": [], "network of Eq. 7": []}
            for _ in range(draws):
                pick = rng.permutation(len(chosen))[:count]
                found["qra_bo"].append(_fields(of_ours(problem, encoded[pick], losses[pick])))
                found["GP of the paper"].append(_fields(of_gp(problem, encoded[pick], losses[pick])))
                found["network of Eq. 7"].append(of_network(problem, encoded[pick], losses[pick], early[pick]))
            rows += [{**base, "surrogate": name, "draws": draws, **_mean(parts)} for name, parts in found.items()]
    return rows


def _fields(d: Diagnostics) -> Row:
    return {"spearman": d.spearman, "spearman_good": d.spearman_good, "nll": d.nll, "coverage_50": d.coverage_50,
            "coverage_90": d.coverage_90}


def _mean(parts: Sequence[Row]) -> Row:
    def mean(key: str) -> float | None:
        values = [p[key] for p in parts if np.isfinite(p[key])]
        return float(np.mean(values)) if values else None

    return {key: mean(key) for key in parts[0]}
