"""Bytes of packed embeddings and heads: closed forms, and what they do to budgets."""

from dataclasses import replace

import pytest

from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.embeddings import embedding_format, head_bytes, packed_tables_bytes, tile_rows, unpacked_numel
from qra_bo.memory.formats import matrix_bytes, parse_format
from qra_bo.space import uniform
from qra_bo.space.decoder import spec_from_numbers
from qra_bo.utils.errors import SpaceError
from tests.memory.spaces import LLAMA2_7B, SMOLLM2, space_of


@pytest.mark.parametrize(("bits", "width", "name"), [(8, 576, "sym8-g64"), (6, 4096, "sym6-g64"), (8, 96, "sym8-g32"),
                                                     (16, 7, None)])
def test_the_largest_group_that_divides_a_row_is_taken(bits: int, width: int, name: str | None) -> None:
    fmt = embedding_format(bits, width)
    assert (None if fmt is None else fmt.name) == name


def test_a_width_that_no_group_divides_is_refused() -> None:
    with pytest.raises(SpaceError, match=r"groups of 64 or 32.*rows of 100: use embeddings=16"):
        embedding_format(8, 100)


def test_bytes_of_tables_have_closed_forms() -> None:
    numel = 49152 * 576
    assert packed_tables_bytes(SMOLLM2, 16) == 0
    assert packed_tables_bytes(SMOLLM2, 8) == numel + 2 * numel // 64
    assert packed_tables_bytes(SMOLLM2, 6) == 6 * numel // 8 + 2 * numel // 64
    assert packed_tables_bytes(LLAMA2_7B, 8) == 2 * (32000 * 4096 + 2 * 32000 * 64)  # the head has its own
    odd = spec_from_numbers("odd", "llama", n_layers=1, hidden_size=64, intermediate_size=64, n_heads=1, n_kv_heads=1,
                            head_dim=64, vocab_size=301, tied=True)
    padded = 304  # groups fill whole words of two planes, of which one holds 4 in a byte
    assert packed_tables_bytes(odd, 6) == padded * 64 * 6 // 8 + 2 * 301
    assert unpacked_numel(odd, 6) == odd.other_numel - 301 * 64 == 3 * 64


def test_a_chunk_of_logits_hides_a_tile_on_large_vocabularies() -> None:
    for spec, chunk, device in ((SMOLLM2, 128, "cpu"), (LLAMA2_7B, 512, "cuda")):
        dense = head_bytes(spec, 16, chunk, 2, device)
        assert dense == 10 * chunk * spec.vocab_size
        assert head_bytes(spec, 8, chunk, 2, device) == dense
    few = head_bytes(SMOLLM2, 8, 4, 2, "cpu")
    rows = tile_rows(49152, 576, "cpu")
    unpacking = 4 * (1 << 18) + 4 * (1 << 18) // 64
    assert few == 4 * 4 * 49152 + 4 * 4 * 576 + 2 * rows * 576 + unpacking


@pytest.mark.parametrize("bits", [16, 8, 6])
def test_parts_of_a_peak_and_of_a_file(bits: int) -> None:
    space = space_of(SMOLLM2, ranks=(8,))
    model, allocation = MemoryModel(SMOLLM2, TrainShape(4, 128, embeddings=bits)), uniform(30, "nf4", 8)
    parts = model.breakdown(space, allocation)
    table = 49152 * 576
    norms = SMOLLM2.other_numel - table
    assert parts["unquantised"] == 2 * (norms + (table if bits == 16 else 0))
    assert parts["embeddings"] == packed_tables_bytes(SMOLLM2, bits)
    linears = sum(sum(matrix_bytes(parse_format("nf4"), m.out_features, m.in_features)) for m in SMOLLM2.linears)
    adapters = 2 * 8 * sum(m.out_features + m.in_features for m in SMOLLM2.linears)
    assert model.file_bytes(space, allocation) == linears + adapters + parts["unquantised"] + parts["embeddings"]
    assert sum(replace(model, scope="stored").breakdown(space, allocation).values()) == linears + adapters
