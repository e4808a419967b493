from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor

from qra_bo.finetune import precision, profiling
from qra_bo.finetune.models.host_linear import keep_on_host
from qra_bo.finetune.precision import in_float32
from qra_bo.finetune.profiling import measure_quantization_sensitivity
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.embeddings import pack_embeddings
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import quiet
from qra_bo.space import make_units
from tests.finetune.models import tiny_llama
from tests.finetune.test_attention import ATTENTION, Watch
from tests.finetune.test_measure import TEXT, _log_p

FORMATS = tuple(map(parse_format, ("int3-g64", "int8")))


def _bank(packs_embedding: bool, keep_dense: bool) -> LayerBank:
    model, spec = tiny_llama(layers=3, dtype=torch.bfloat16)
    if packs_embedding:
        pack_embeddings(model, 8, torch.bfloat16, torch.device("cpu"))
    return LayerBank(model, spec, FORMATS, torch.bfloat16, "cpu", keep_dense=keep_dense)


@pytest.mark.parametrize("keep_dense", [False, True])
def test_a_profile_in_bfloat16_has_the_divergences_of_its_weights_in_fp32(keep_dense: bool,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "WIDENED_NUMEL", 1000)  # less than a weight has
    monkeypatch.setattr(profiling, "settled", lambda kl: False)
    bank = _bank(False, keep_dense)
    units = make_units(bank.spec, "layer")
    found = measure_quantization_sensitivity(bank, units, FORMATS, TEXT, quiet)
    exact = deepcopy(bank.model).float()
    dense = _log_p(exact)
    for u, unit in enumerate(units):
        for f, fmt in enumerate(FORMATS):
            bank.install({m.name: fmt.name for m in unit.linears})
            for linear in unit.linears:
                layer = bank.model.get_submodule(linear.name)
                exact.get_submodule(linear.name).weight.copy_(layer.weight_matrix())
            changed = _log_p(exact)
            bank.restore_dense()
            for linear in unit.linears:
                exact.get_submodule(linear.name).weight.copy_(bank.dense_weight(linear.name))
            kl = float((dense.exp() * (dense - changed)).sum(-1).mean())
            assert found.kl[u, f] == pytest.approx(kl, rel=0.01)  # in bfloat16 int8 has twice it


def test_the_model_computes_in_its_own_type_afterwards() -> None:
    bank = _bank(True, False)
    first, second = (linear.name for linear in bank.spec.linears[:2])
    ids = torch.from_numpy(np.arange(8)[None])
    bank.install({first: "int8"})
    before = bank.model(input_ids=ids).logits
    precise = torch.get_float32_matmul_precision()
    with torch.no_grad(), in_float32(bank):
        inside = bank.model(input_ids=ids).logits
        bank.install({second: "int8"})
        assert all(bank.model.get_submodule(name).product_dtype is torch.float32 for name in (first, second))
        bank.restore_dense()
    bank.install({first: "int8"})
    after = bank.model(input_ids=ids).logits
    assert [logits.dtype for logits in (before, inside, after)] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert torch.equal(before, after)
    assert not torch.equal(before, inside.bfloat16())
    assert {m.product_dtype for m in bank.model.modules() if isinstance(m, PackedTable)} == {None}
    assert torch.get_float32_matmul_precision() == precise


def test_linears_on_the_host_are_widened() -> None:
    model, spec = tiny_llama(dtype=torch.bfloat16)
    ids = torch.from_numpy(np.arange(8)[None])
    exact = deepcopy(model).float()(input_ids=ids).logits
    keep_on_host(model, [linear.name for linear in spec.linears])
    bank = LayerBank(model, spec, FORMATS, torch.bfloat16, "cpu")
    with torch.no_grad(), in_float32(bank):
        inside = bank.model(input_ids=ids).logits
    assert inside.dtype is torch.float32
    torch.testing.assert_close(inside, exact, rtol=1e-4, atol=1e-4)


X = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()


@pytest.mark.parametrize("layer", [
    lambda x, w: x @ w.T, lambda x, w: torch.matmul(x, w), lambda x, w: torch.addmm(w[0], x[0], w),
    lambda x, w: torch.nn.functional.layer_norm(x, (8,), w[0], w[1]),
    lambda x, w: torch.nn.functional.conv1d(x.transpose(1, 2), w.unsqueeze(2)),
    lambda x, w: torch.nn.functional.linear(x, weight=w, bias=w[0]), lambda x, w: (x * w[0]).type_as(w)])
def test_what_layers_do_with_16_bit_weights_is_done_in_fp32(layer: Callable[[Tensor, Tensor], Tensor]) -> None:
    with precision._Widened():
        found = layer(X, WEIGHT)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, layer(X, WEIGHT.float()))


def test_a_16_bit_tensor_that_is_written_to_stays_one() -> None:
    with precision._Widened():
        target = WEIGHT.clone()
        target.copy_(X[0, :1])
        target[0] = X[0, 0]
        target += X[0, :1]
    assert target.dtype is torch.bfloat16
    assert torch.equal(target, torch.stack([2 * X[0, 0].bfloat16()] * 8))


def test_int8_weights_are_rounded_as_cuda_rounds_them_in_training() -> None:
    bank = _bank(False, False)
    name = bank.spec.linears[0].name
    bank.install({name: "int8"})
    layer = bank.model.get_submodule(name)
    layer.target = torch.device("cuda")  # the way of that device, on the CPU's tensors
    outside = layer.unpack()
    with precision._Widened():
        inside = layer.unpack()
    assert inside.dtype is torch.bfloat16
    assert torch.equal(inside, outside)


def test_attention_in_fp32_has_no_groups() -> None:
    query, key, value = (torch.randn(1, heads, 6, 8, generator=torch.Generator().manual_seed(heads))
                         for heads in (4, 2, 2))
    with Watch() as watch, precision._Widened():
        found = ATTENTION(query, key, value, is_causal=True, enable_gqa=True)
    assert watch.seen == {(4, 4, False)}
    torch.testing.assert_close(found, ATTENTION(query, key, value, is_causal=True, enable_gqa=True))
