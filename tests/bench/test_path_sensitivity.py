"""Path-based sensitivity: sums over units against the divergence at the path's end, and finite differences."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from bench.path_scores import ranked
from bench.path_sensitivity import attributions
from tests.finetune.test_inits import make, quiet


def test_sensitivities_sum_to_the_divergence_of_all_units() -> None:
    found = attributions(make("kaiming"), 4, quiet)
    np.testing.assert_allclose(np.sum(found["sensitivity"], axis=0), found["kl"], rtol=0.02)
    assert (np.array(found["sensitivity"]) > 0).all()
    assert found["kl"][0] > found["kl"][1]  # 3 bits before 4


def test_sensitivity_is_the_slope_in_a_units_share() -> None:
    oracle = make("kaiming")
    found = attributions(oracle, 1, quiet)  # the slope halfway
    ids = torch.cat([ids for ids, _ in oracle.text.batches()])
    taken = torch.cat([labels[:, 1:] for _, labels in oracle.text.batches()]) != -100
    names = [[linear.name for linear in unit.linears] for unit in oracle.units]
    dense = {name: oracle.bank.dense_weight(name).clone() for unit in names for name in unit}
    oracle.bank.install({name: "ref3" for unit in names for name in unit})
    packed = {name: oracle.model.get_submodule(name).unpack() for unit in names for name in unit}
    oracle.bank.restore_dense()

    def log_p(shares: tuple[float, float]) -> torch.Tensor:
        for unit, share in zip(names, shares, strict=True):
            for name in unit:
                oracle.model.get_submodule(name).weight.data.copy_(dense[name] + share * (packed[name] - dense[name]))
        with torch.no_grad():
            return torch.log_softmax(oracle.model(input_ids=ids).logits[:, :-1][taken].double(), -1)

    goal = log_p((0.0, 0.0))
    high, low = ((goal.exp() * (goal - log_p((0.5 + step, 0.5)))).sum() / len(goal) for step in (0.02, -0.02))
    log_p((0.0, 0.0))
    assert found["sensitivity"][0][0] == pytest.approx(float(high - low) / 0.04, rel=0.02)


def test_rank_correlation_and_regret_of_predictions() -> None:
    losses = np.array([[3.0, 3.2, 3.1, 3.5], [3.0, 3.2, 3.1, 3.5]])
    predicted = np.array([[1.0, 3.0, 2.0, 4.0], [3.0, 2.0, 1.0, 4.0]])
    spearman, regret = ranked(predicted, losses)
    assert spearman.tolist() == pytest.approx([1.0, spearmanr(predicted[1], losses[1]).statistic])
    assert regret.tolist() == pytest.approx([0.0, 0.1])
