from copy import deepcopy

import numpy as np
import pytest
import torch

from qra_bo.finetune import precision, profiling
from qra_bo.finetune.precision import in_float32
from qra_bo.finetune.profiling import measure_quantization_sensitivity
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import packed
from qra_bo.finetune.quantization.embeddings import pack_embeddings
from qra_bo.finetune.quantization.tables import PackedTable
from qra_bo.memory.formats import parse_format
from qra_bo.space import make_units
from tests.finetune.models import tiny_llama
from tests.finetune.test_measure import TEXT, _log_p, _quiet

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
    found = measure_quantization_sensitivity(bank, units, FORMATS, TEXT, _quiet)
    exact = deepcopy(bank.model).float()
    dense = _log_p(exact)
    for u, unit in enumerate(units):
        for f, fmt in enumerate(FORMATS):
            bank.install({m.name: fmt.name for m in unit.linears})
            for linear in unit.linears:
                layer = packed(bank.model.get_submodule(linear.name))
                exact.get_submodule(linear.name).weight.copy_(layer.weight_matrix())
            changed = _log_p(exact)
            bank.restore_dense()
            for linear in unit.linears:
                exact.get_submodule(linear.name).weight.copy_(bank.dense_weight(linear.name))
            kl = float((dense.exp() * (dense - changed)).sum(-1).mean())
            assert found.measured.kl[u, f] == pytest.approx(kl, rel=0.01)  # in bfloat16 int8 has twice it


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
        assert all(packed(bank.model.get_submodule(name)).product_dtype is torch.float32 for name in (first, second))
        bank.restore_dense()
    bank.install({first: "int8"})
    after = bank.model(input_ids=ids).logits
    assert [logits.dtype for logits in (before, inside, after)] == [torch.bfloat16, torch.float32, torch.bfloat16]
    assert torch.equal(before, after)
    assert not torch.equal(before, inside.bfloat16())
    assert {m.product_dtype for m in bank.model.modules() if isinstance(m, PackedTable)} == {None}
    assert torch.get_float32_matmul_precision() == precise


def test_layer_norms_take_fp32_activations() -> None:
    norm = torch.nn.LayerNorm(8).to(torch.bfloat16)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), precision._Widened():
        assert torch.allclose(norm(x), torch.nn.functional.layer_norm(x, (8,)), atol=1e-6)
