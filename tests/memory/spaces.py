"""Small spaces for tests that need no torch."""

from collections.abc import Sequence

from qra_bo.memory.formats import parse_format
from qra_bo.space import SearchSpace, make_units
from qra_bo.space.decoder import spec_from_numbers

TINY = spec_from_numbers("tiny", "llama", n_layers=4, hidden_size=64, intermediate_size=192, n_heads=4, n_kv_heads=2,
                         head_dim=16, vocab_size=512, tied=True)
LLAMA2_7B = spec_from_numbers("llama2_7b", "llama", n_layers=32, hidden_size=4096, intermediate_size=11008, n_heads=32,
                              n_kv_heads=32, head_dim=128, vocab_size=32000, tied=False)
SMOLLM2 = spec_from_numbers("smollm2_135m", "llama", n_layers=30, hidden_size=576, intermediate_size=1536, n_heads=9,
                            n_kv_heads=3, head_dim=64, vocab_size=49152, tied=True)


def space_of(spec: object = TINY, granularity: str = "layer", formats: Sequence[str] = ("hqq2", "hqq3", "nf4", "int8"),
             ranks: Sequence[int] = (1, 2, 4, 8)) -> SearchSpace:
    return SearchSpace(make_units(spec, granularity), tuple(parse_format(f) for f in formats),  # type: ignore[arg-type]
                       tuple(ranks))
