"""Packed tables: every row, product and gradient is that of the matrix which their codes and scales stand for."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from qra_bo.finetune.quantization.base import backend_of
from qra_bo.finetune.quantization.embeddings import pack_embeddings, packed_tables
from qra_bo.finetune.quantization.tables import PackedEmbedding, PackedHead, PackedTable
from qra_bo.finetune.training.loss import token_losses
from qra_bo.memory import embeddings
from qra_bo.memory.embeddings import embedding_format
from qra_bo.utils.errors import ModelError, SpaceError
from tests.conformance.quantizer import integer_codes
from tests.finetune.models import tiny_llama
from tests.memory.steps import config_of

CPU = torch.device("cpu")
SHAPES = ((301, 64), (97, 192), (50, 96), (1, 32))
"""Odd numbers of rows, whose groups fill no last word, and a width that only groups of 32 divide."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a table of a few thousand weights have many tiles, the last of them short."""
    monkeypatch.setattr(embeddings, "_TILE_NUMEL", {"cpu": 3000, "cuda": 3000})


def make_table(shape: tuple[int, int], bits: int, dtype: torch.dtype) -> tuple[PackedTable, Tensor]:
    """A table of random weights, and the matrix by its definition: (code - middle) * scale."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits), dtype=torch.float32)
    fmt = embedding_format(bits, shape[1])
    state = backend_of(fmt).pack(weight, fmt, CPU)
    scale = state["scale"].double().repeat_interleave(fmt.block, dim=1)
    matrix = ((integer_codes(state, fmt, shape).double() - 2 ** (bits - 1)) * scale).to(dtype)
    return PackedTable(state, fmt, shape, dtype), matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_lookups_and_tiles_equal_the_definition(shape: tuple[int, int], bits: int, dtype: torch.dtype) -> None:
    table, matrix = make_table(shape, bits, dtype)
    ids = torch.randint(shape[0], (3, 17), generator=torch.Generator().manual_seed(1))
    assert torch.equal(table.rows(ids), matrix[ids])
    tiles = list(table.tiles())
    assert [first for first, _ in tiles[1:]] == [last for _, last in tiles[:-1]]
    assert torch.equal(torch.cat([table.tile(*tile) for tile in tiles]), matrix)
    assert torch.equal(table.unpack(), matrix)
    assert len(tiles) == -(-shape[0] // min(shape[0], 3000 // shape[1]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [8, 6])
def test_head_has_values_and_gradients_of_a_linear_layer(bits: int, bias: bool) -> None:
    table, matrix = make_table((301, 64), bits, torch.float32)
    offset = torch.randn(301, generator=torch.Generator().manual_seed(2)) if bias else None
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    logits = PackedHead(table, offset)(x)
    expected = nn.functional.linear(x, matrix, offset)
    torch.testing.assert_close(logits, expected)
    sent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))
    gradients = [torch.autograd.grad(out, x, sent)[0] for out in (logits, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)  # sums of 301 products in another order


@pytest.mark.parametrize("bits", [8, 6])
def test_kept_dense_tables_change_no_bit(bits: int) -> None:
    table, _ = make_table((301, 64), bits, torch.bfloat16)
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(5)).bfloat16().requires_grad_()

    def results() -> list[Tensor]:
        head = PackedHead(table)
        logits = head(x)
        return [logits, torch.autograd.grad(logits, x, torch.ones_like(logits))[0], table.rows(torch.arange(9))]

    without = results()
    table.dense = table.unpack()
    assert all(torch.equal(one, other) for one, other in zip(without, results(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_casting_a_model_keeps_packed_tensors(dtype: torch.dtype) -> None:
    table, _ = make_table((50, 96), 6, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in table.packed_state().items()}
    after = table.to(dtype).packed_state()
    assert before.keys() == after.keys() == {"codes", "lower_codes", "scale"}
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def pair(family: str, bits: int, dtype: torch.dtype, **changes: Any) -> tuple[Any, Any]:
    """A model with packed tables, and a dense one with the weights that these stand for."""
    models = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(0)
            models.append(AutoModelForCausalLM.from_config(config_of(family, vocab_size=301, **changes)).to(dtype))
        models[-1].requires_grad_(False)
    packed, dense = models
    pack_embeddings(packed, bits, dtype, CPU)
    for name, table in packed_tables(packed).items():
        dense.get_submodule(name).weight.copy_(table.unpack())
    return packed, dense


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "bits"), [("llama", 8), ("llama", 6), ("gemma3_text", 8), ("gpt_neox", 8)])
def test_chunked_loss_and_gradient_equal_a_dense_heads(family: str, bits: int, tied: bool) -> None:
    packed, dense = pair(family, bits, torch.float32, tie_word_embeddings=tied)
    assert len(packed_tables(packed)) == (1 if tied else 2)
    packed.tie_weights()  # as evaluation harnesses do: nothing is left to tie
    assert isinstance(packed.get_output_embeddings(), PackedHead)
    ids = torch.arange(2, 26).reshape(2, 12) * 11
    found = []
    for model in (packed, dense):
        embedded = []
        hook = model.get_input_embeddings().register_forward_hook(
            lambda _m, _a, out, kept=embedded: kept.append(out.requires_grad_()) or out)
        total, _ = token_losses(model, ids, ids, chunk=5)
        hook.remove()
        found.append((total, torch.autograd.grad(total, embedded[0])[0], model(input_ids=ids).logits))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(packed.get_input_embeddings()(ids), dense.get_input_embeddings()(ids))


def test_sixteen_bits_change_nothing() -> None:
    model, _ = tiny_llama()
    before = model.get_input_embeddings()
    pack_embeddings(model, 16, torch.float32, CPU)
    assert model.get_input_embeddings() is before
    assert packed_tables(model) == {}


class Doubled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 2


def test_embeddings_that_cannot_be_packed_are_refused() -> None:
    model, _ = tiny_llama()
    odd = Doubled(97, 64)
    odd.weight.data.copy_(model.lm_head.weight)
    model.set_input_embeddings(odd)
    with pytest.raises(ModelError, match=r"Doubled.*embeddings=16"):
        pack_embeddings(model, 8, torch.float32, CPU)
    model.set_input_embeddings(nn.Embedding(97, 40))
    with pytest.raises(SpaceError, match=r"groups of 64 or 32.*rows of 40: use embeddings=16"):
        pack_embeddings(model, 8, torch.float32, CPU)
    model, _ = tiny_llama()
    model.lm_head = nn.Sequential(nn.Linear(64, 97))
    model.lm_head.weight = model.lm_head[0].weight
    with pytest.raises(ModelError, match=r"linear layer.*Sequential"):
        pack_embeddings(model, 8, torch.float32, CPU)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_gemmas_factor_and_padding_are_kept(family: str) -> None:
    packed, dense = pair(family, 8, torch.bfloat16)
    embedding, own = packed.get_input_embeddings(), dense.get_input_embeddings()
    assert isinstance(embedding, PackedEmbedding)
    assert float(embedding.multiplier) == pytest.approx(128**0.5, rel=1e-3)
    assert embedding.padding_idx == own.padding_idx == 0
    assert torch.equal(embedding(torch.arange(301)), own(torch.arange(301)))
