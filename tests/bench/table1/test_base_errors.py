"""LQ-LoRA's decomposition errors, and what quantising a whole model does before training."""

import math

import numpy as np
import torch

from bench.table1.base_errors import decomposition_errors, joint_sensitivity
from tests.finetune.test_finetune import make, quiet


def test_decomposition_errors_fall_with_rank() -> None:
    oracle = make()
    plain, some, more = (np.array(decomposition_errors(oracle, rank, 2, quiet)["errors"]) for rank in (0, 4, 12))
    assert plain.shape == (2, 3)
    assert (more < some).all()
    assert (some < plain).all()
    assert (np.diff(plain, axis=1) < 0).all()  # 3 bits err more than 4, and these more than 8
    assert plain[0, 1] < 0.02 * sum(float(oracle.bank.dense_weight(m.name).square().sum())
                                    for m in oracle.units[0].linears)


def test_joint_sensitivity_is_the_models_loss_and_divergence() -> None:
    oracle = make()
    found = joint_sensitivity(oracle, [["hqq3", "hqq3"], ["nf4", "hqq3"], ["nf4", "nf4"], ["fp16", "fp16"]], quiet)
    assert found["jsd"][0] > found["jsd"][1] > found["jsd"][2] > 1e-6 > found["jsd"][3] >= -1e-6
    assert all(d < math.log(2.0) for d in found["jsd"])
    assert found["forward_tokens"] == 5 * 4 * 32
    assert dict(oracle.bank.current) == {}  # the dense model is back
    ids = torch.from_numpy(oracle.data.calibration.input_ids[:4])
    goal = torch.from_numpy(oracle.data.calibration.labels[:4])
    oracle.bank.install({m.name: "nf4" for u in oracle.units for m in u.linears})
    with torch.no_grad():
        logits = oracle.model(input_ids=ids).logits[:, :-1]
    targets = goal[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1),
                                             ignore_index=-100)
    assert abs(float(loss) - found["loss"][2]) < 1e-5


def test_divergence_is_symmetric_jensen_shannon() -> None:
    oracle = make()
    blocks = oracle.data.calibration
    jsd = joint_sensitivity(oracle, [["hqq3", "nf4"]], quiet)["jsd"]
    ids, goal = torch.from_numpy(blocks.input_ids), torch.from_numpy(blocks.labels)

    def probabilities() -> torch.Tensor:
        with torch.no_grad():
            kept: torch.Tensor = torch.softmax(oracle.model(input_ids=ids).logits[:, :-1], -1)[goal[:, 1:] != -100]
        return kept

    p = probabilities()
    oracle.bank.install({m.name: f for u, f in zip(oracle.units, ("hqq3", "nf4"), strict=True) for m in u.linears})
    q = probabilities()
    m = (p + q) / 2
    expected = 0.5 * ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean()
    assert abs(float(expected) - jsd[0]) < 1e-5
