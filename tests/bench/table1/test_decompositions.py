"""LoftQ's and LQ-LoRA's decompositions, and trials that start from them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.table1.decompositions import balanced, low_rank_first, quantised_first
from bench.table1.lowrank import leading
from bench.table1.recipe import STARTS
from bench.table1.starts import Requantise, evaluate_started
from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation
from qra_bo.trials import TrialSpec
from tests.conformance.quantizer import make_linear
from tests.finetune.test_finetune import make, quiet

REQUEST = TrialSpec(Allocation(("hqq3", "nf4"), (3, 1)), 3, 3, 5, 5e-3)


def requantise_in(fmt: str, device: str = "cpu") -> Requantise:
    form = parse_format(fmt)

    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(form).pack(matrix, form, torch.device(device))
        shape = (matrix.shape[0], matrix.shape[1])
        return state, backend_of(form).build(state, form, shape, None, torch.float32).unpack()

    return requantise


def test_both_factors_have_the_roots_of_the_singular_values() -> None:
    factors = leading(torch.randn(20, 12, generator=torch.Generator().manual_seed(1)), 5)
    down, up = balanced(factors, 2.0)
    torch.testing.assert_close(2.0 * up @ down, factors.product())
    torch.testing.assert_close(torch.linalg.vector_norm(down, dim=1), torch.linalg.vector_norm(up, dim=0))
    assert all(torch.isfinite(part).all() for part in balanced(leading(torch.zeros(6, 4), 3), 2.0))


@pytest.mark.parametrize("fmt", ["nf4", "int8", "hqq2", "hqq3", "hqq5"])
def test_alternating_comes_closer_than_one_quantisation(fmt: str) -> None:
    weight, requantise = make_linear(96, 128).weight, requantise_in(fmt)
    _, dense = requantise(weight)
    plain = float((weight - dense).norm() / weight.norm())
    for how in (quantised_first, low_rank_first):
        found = how(weight, requantise, 8, 5)
        reached = min(found.errors)
        assert reached < plain
        dense = backend_of(parse_format(fmt)).build(found.state, parse_format(fmt), (96, 128), None,
                                                    torch.float32).unpack()
        error = float((weight - dense - found.factors.product()).norm() / weight.norm())
        assert error == pytest.approx(found.errors[-1] if how is quantised_first else reached, rel=1e-5)
    falling = low_rank_first(weight, requantise, 8, 20).errors[:-1]
    assert falling == tuple(sorted(falling, reverse=True))


def test_one_alternation_of_loftq_is_the_residuals_decomposition() -> None:
    weight, requantise = make_linear(64, 128).weight, requantise_in("hqq3")
    found = quantised_first(weight, requantise, 4, 1)
    _, dense = requantise(weight)
    assert torch.equal(found.factors.product(), leading(weight - dense, 4).product())


@pytest.mark.gpu
def test_loftq_equals_pefts_on_cuda() -> None:
    from peft.utils.loftq_utils import loftq_init

    if not torch.cuda.is_available():
        pytest.skip("PEFT's LoftQ needs CUDA")
    weight = make_linear(128, 256).weight.cuda()
    ours = quantised_first(weight, requantise_in("nf4-nodq", "cuda"), 8, 3)
    dense, down, up = loftq_init(weight, 4, 8, 3)
    theirs = float((weight - dense - up @ down).norm() / weight.norm())
    assert ours.errors[-1] == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("start", STARTS)
def test_a_trial_does_not_depend_on_earlier_trials(start: str) -> None:
    oracle, trial = make(), replace(REQUEST, codes=start)
    first, again = (evaluate_started(oracle, trial.to_json(), quiet)["loss"] for _ in range(2))
    assert first == again != oracle.evaluate(REQUEST, quiet).loss
