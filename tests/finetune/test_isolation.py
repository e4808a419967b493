"""Records of one sequence that don't attend to one another: equal to each record alone."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from qra_bo.finetune.data.packing import pack
from qra_bo.finetune.data.records import NO_LOSS, Record, TokenBlocks
from qra_bo.finetune.models.load import use_fast_attention
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.embeddings import pack_embeddings
from qra_bo.finetune.training.loop import TrainSettings, held_out
from qra_bo.finetune.training.loss import token_losses
from qra_bo.memory.formats import parse_format
from qra_bo.space.decoder import spec_from_model
from tests.data.test_records import TOKENIZER
from tests.memory.steps import config_of

CPU = torch.device("cpu")
RECORDS = [Record(f"{i}: say {'la ' * (i % 5)}", f"{'la ' * (i % 5)}{i}") for i in range(20)]
BLOCKS = pack(TOKENIZER, RECORDS, 96, 0, isolate=True)
TENSORS = tuple(map(torch.from_numpy, (BLOCKS.input_ids, BLOCKS.labels, BLOCKS.positions)))
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi3", "gpt_neox")


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    extra: dict[str, Any] = dict(eos_token_id=1, bos_token_id=1) if family == "phi3" else {}
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family, **extra)).to(dtype)
    use_fast_attention(model, CPU, dtype)
    return model


def loss_and_gradient(model: Any, ids: Tensor, labels: Tensor, positions: Tensor | None) -> tuple[float, Tensor]:
    weight = model.get_input_embeddings().weight
    total, _ = token_losses(model, ids, labels, 64, positions)
    (gradient,) = torch.autograd.grad(total, weight)
    return float(total.detach()), gradient


def records_of(ids: Tensor, labels: Tensor, positions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and labels, ``1 x n``, of every record with a loss."""
    for row in range(len(ids)):
        starts = [*torch.nonzero(positions[row] == 0).flatten().tolist(), ids.shape[1]]
        for first, end in itertools.pairwise(starts):
            if (labels[row, first:end] != NO_LOSS).any():
                yield ids[row:row + 1, first:end], labels[row:row + 1, first:end]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_equals_its_records_alone(family: str) -> None:
    model = model_of(family)
    whole, gradient = loss_and_gradient(model, *TENSORS)
    alone, summed, n = 0.0, torch.zeros_like(gradient), 0
    for piece in records_of(*TENSORS):
        loss, part = loss_and_gradient(model, *piece, None)
        alone, summed, n = alone + loss, summed + part, n + 1
    assert n == len(RECORDS) > len(BLOCKS)
    assert whole == pytest.approx(alone, rel=1e-5)
    assert float((gradient - summed).abs().max()) <= 1e-4 * float(summed.abs().max())
    joined, _ = loss_and_gradient(model, *TENSORS[:2], None)
    assert abs(joined - alone) > 1e-4 * alone


@pytest.mark.parametrize("file", [torch.float32, torch.bfloat16])
def test_fp32_isolates_with_packed_embeddings_and_16_bits(file: torch.dtype) -> None:
    model = model_of("llama")
    spec = spec_from_model(model, "tiny")
    pack_embeddings(model, 8, torch.float32, CPU)
    for linear in spec.linears:
        weight = model.get_submodule(linear.name).weight
        weight.data = weight.data.to(file)
    bank = LayerBank(model, spec, (parse_format("fp16"),), torch.float32, "cpu")
    bank.install({linear.name: "fp16" for linear in spec.linears})
    with torch.no_grad():
        whole, _ = token_losses(model, *TENSORS[:2], 64, TENSORS[2])
        alone = sum(float(token_losses(model, *piece, 64)[0]) for piece in records_of(*TENSORS))
    assert float(whole) == pytest.approx(alone, rel=1e-5)


def test_a_kernel_with_its_own_type_isolates_too() -> None:
    model = model_of("llama", torch.bfloat16)
    changed = BLOCKS.input_ids.copy()
    changed[:, :8] = 7  # the first record of every row
    settings = TrainSettings(batch=2, logits_chunk=32)
    later = BLOCKS.labels.copy()
    for row, positions in enumerate(BLOCKS.positions):
        later[row, :(positions == 0).nonzero()[0][1]] = NO_LOSS
    isolated, joined = ([held_out(model, TokenBlocks(ids, later, positions), settings, CPU).loss
                         for ids in (BLOCKS.input_ids, changed)] for positions in (BLOCKS.positions, None))
    assert isolated[0] == isolated[1]
    assert joined[0] != joined[1]


def test_positions_begin_anew_in_every_record() -> None:
    joined = pack(TOKENIZER, RECORDS, 96, 0)
    assert BLOCKS.is_text.sum() == joined.is_text.sum() == BLOCKS.facts.used_tokens
    assert (BLOCKS.input_ids[~BLOCKS.is_text] == TOKENIZER.pad_token_id).all()
    np.testing.assert_array_equal(BLOCKS.take(3).is_text, BLOCKS.is_text[:3])
    assert joined.positions is None
    assert (BLOCKS.input_ids == joined.input_ids).all()
    ends = BLOCKS.input_ids == TOKENIZER.eos_token_id
    assert (BLOCKS.positions[:, 1:][ends[:, :-1]] == 0).all()
    assert (BLOCKS.positions == 0).sum() == len(RECORDS) + (BLOCKS.input_ids == TOKENIZER.pad_token_id).any(1).sum()
    head = BLOCKS.take(2).positions
    assert len(head) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_on_the_left_changes_no_logits(dtype: torch.dtype) -> None:
    model = model_of("llama", dtype)
    ids = torch.arange(1, 9).unsqueeze(0)
    padded = torch.cat([torch.full((1, 4), 20), ids], dim=1)
    mask = (torch.arange(12) >= 4).long().unsqueeze(0)
    with torch.no_grad():  # RoPE depends on distances alone: a shift of all positions changes nothing
        alone = model(input_ids=ids).logits
        beside = model(input_ids=padded, attention_mask=mask).logits[:, 4:]
        unmasked = model(input_ids=padded).logits[:, 4:]
    apart, without = (float((logits - alone).abs().max()) for logits in (beside, unmasked))
    assert apart < 0.1 * without


def test_window_of_attention_holds_with_every_kernel() -> None:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        config = config_of("mistral", sliding_window=4, num_hidden_layers=1)
        model = AutoModelForCausalLM.from_config(config).bfloat16().eval()
    use_fast_attention(model, CPU, torch.bfloat16)
    ids = torch.arange(1, 13).unsqueeze(0)
    other = ids.clone()
    other[0, 0] = 20  # beyond the window of the last token
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits[0, -1], model(input_ids=other).logits[0, -1])
