"""Traced steps against real ones: equal to the byte on small models of every family, backend and type."""

from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from bench.memory.trace import StepTracer
from qra_bo.memory.activations import rounding_bytes
from qra_bo.memory.formats import parse_format
from qra_bo.memory.model import Allowance, MemoryModel, TrainShape
from qra_bo.memory.optimizers import update_bytes
from qra_bo.space import Allocation, SearchSpace, make_units, uniform
from qra_bo.space.decoder import spec_from_model, spec_from_numbers
from tests.memory.steps import config_of, run_step


@pytest.mark.parametrize("compute", [2, 4])
def test_a_step_with_8_bit_moments_is_traced(compute: int) -> None:
    # ranks on both sides of 4,096 elements: 128 x 40 has 8-bit moments, 128 x 4 does not
    shape = TrainShape(1, 8, False, compute, "adamw_8bit", logits_chunk=8)
    config, formats, ranks = config_of("llama", num_hidden_layers=2), ("nf4", "int8"), (40, 4)
    real = run_step(config, shape, formats, ranks)
    traced = StepTracer(real.spec, config).trace(real.space, Allocation(formats, ranks), shape)
    added = -8 * shape.tokens
    assert traced.resident == real.base
    assert (traced.forward + added, traced.backward + added) == real.phases[:2]
    # What the library's update makes and drops within itself the tracker of a real step does not see.
    unseen = int(update_bytes("adamw_8bit", np.array([40 * config.intermediate_size]), "cpu")[0])
    assert real.phases[2] <= traced.step + added <= real.phases[2] + unseen


@pytest.mark.parametrize(("family", "checkpointing", "compute", "changes"), [
    ("llama", False, 2, {"isolated": True}), ("llama", True, 2, {"isolated": True}),
    *((*case, {"grouped": False}) for case in (("llama", False, 2), ("llama", True, 4), ("qwen3", True, 2)))])
def test_masks_and_repeated_heads_of_a_gpu_are_traced(family: str, checkpointing: bool, compute: int,
                                                          changes: dict[str, bool]) -> None:
    config = config_of(family, num_hidden_layers=4)
    spec = spec_from_model(AutoModelForCausalLM.from_config(config))
    space = SearchSpace(make_units(spec, "layer"), (parse_format("nf4"),), (4,))
    shape = TrainShape(2, 512, checkpointing, compute, device="cuda", **changes)
    allocation, tracer = Allocation(("nf4",) * 4, (4,) * 4), StepTracer(spec, config)
    traced = tracer.trace(space, allocation, shape)

    def predicted(shape: TrainShape) -> int:
        parts = MemoryModel(spec, shape, allowance=Allowance(0, 0)).breakdown(space, allocation)
        return sum(parts.values()) - rounding_bytes(spec, shape)

    assert -0.005 <= predicted(shape) / traced.peak - 1 <= 0.05
    if not shape.grouped:
        grouped = replace(shape, grouped=True)
        layers = 1 if checkpointing else spec.n_layers
        least = layers * compute * shape.tokens * (spec.n_heads - spec.n_kv_heads) * spec.head_dim  # of k alone
        assert predicted(shape) - predicted(grouped) >= least
        assert traced.peak - tracer.trace(space, allocation, grouped).peak >= least


def test_layers_of_seventy_billion_parameters_are_traced() -> None:
    spec = spec_from_numbers("llama2_70b", "llama", n_layers=12, hidden_size=8192, intermediate_size=28672, n_heads=64,
                             n_kv_heads=8, head_dim=128, vocab_size=32000, tied=False)
    space = SearchSpace(make_units(spec, "layer"), (parse_format("hqq3"), parse_format("nf4")), (8, 16))
    allocation, shape = Allocation(("hqq3", "nf4") * 6, (8, 16) * 6), TrainShape(1, 512, True)
    traced = StepTracer(spec).trace(space, allocation, shape)
    predicted = int(MemoryModel(spec, shape).table(space).totals(space.encode(allocation)[None, :])[0])
    assert -0.005 <= predicted / traced.peak - 1 <= 0.03
    assert traced.phase == "backward"


def test_nothing_of_an_earlier_batch_is_traced_but_its_gradients() -> None:
    spec = spec_from_numbers("deep", "llama", n_layers=2, hidden_size=256, intermediate_size=512, n_heads=4,
                             n_kv_heads=4, head_dim=64, vocab_size=8192, tied=True)
    space = SearchSpace(make_units(spec, "layer"), (parse_format("nf4"),), (1,))
    tracer, once = StepTracer(spec), TrainShape(1, 256, True, 2, logits_chunk=256)
    single, twice = (tracer.trace(space, uniform(2, "nf4", 1), replace(once, accumulate=n)) for n in (1, 2))
    gradients = 2 * sum(linear.out_features + linear.in_features for linear in spec.linears)
    assert single.forward < twice.forward <= single.forward + gradients
