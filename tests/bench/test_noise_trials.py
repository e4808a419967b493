"""Losses by part of the held-out text, against a trial of the same training."""

import pytest

from bench.noise_trials import BY, losses_by_part
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec
from tests.finetune.test_inits import make, quiet


def test_parts_sum_to_the_loss_of_a_trial() -> None:
    oracle = make("kaiming")
    allocation = uniform(2, "nf4", 4)
    trial = oracle.evaluate(TrialSpec(allocation, 3, 3, 7, lr_scale=1.5), quiet)
    sequences = oracle.settings.eval_blocks
    parts = losses_by_part(oracle, allocation.to_json(), 3, 7, 1.5, sequences, quiet)
    assert len(parts["counts"]) == -(-sequences // BY)
    assert sum(parts["sums"]) / sum(parts["counts"]) == pytest.approx(trial.loss, abs=1e-6)
    assert len(oracle.data.validation.input_ids) >= sequences
