"""What fits common cards with embedding and head in 16, 8 and 6 bits, by the memory model: no weights, no training."""

from collections.abc import Iterator
from typing import Any

from qra_bo.config import load_config, make_space, make_spec
from qra_bo.memory.budget import uniform_bytes
from qra_bo.memory.embeddings import WIDTHS
from qra_bo.memory.formats import parse_format
from qra_bo.memory.verdict import largest_rank
from qra_bo.pipeline.build import make_memory

MODELS: dict[str, tuple[str, ...]] = {
    "llama3_1_8b": ("+model=llama3_1_8b",), "qwen2_5_7b": ("+model=qwen2_5_7b",),
    "text decoder of Gemma 3 4B": ("+model=gemma3_4b_instruct",)}
"""Overrides by the name in the table."""
CARDS_GB = (8, 10, 12)
SETTINGS = ("task=memory", "train=gpu", "train.batch=1", "train.length=2048", "bits=[2,3,4,5,6,8]")
QLORA = ("nf4", 16)


def fits() -> Iterator[dict[str, Any]]:
    """Yield a row for every model, width and card: bytes of QLoRA with this width, and the uniform choice of the most
    bits that fits, at its largest rank of the ladder."""
    for model, shapes in MODELS.items():
        for bits in WIDTHS:
            config = load_config([*shapes, *SETTINGS, f"embeddings={bits}"])
            spec = make_spec(config)
            memory, space = make_memory(config, spec, "cuda"), make_space(config, spec)
            need = uniform_bytes(memory, space, parse_format(QLORA[0]), QLORA[1])
            for gb in CARDS_GB:
                ranks = {fmt: largest_rank(memory, space, fmt, gb * 10**9) for fmt in space.formats}
                best = next((fmt for fmt in reversed(space.formats) if ranks[fmt]), None)
                yield {"part": "what fits", "model": model, "embeddings": bits, "card_gb": gb,
                       "embedding_bytes": memory.embedding_bytes, "qlora_bytes": need, "qlora_fits": need <= gb * 10**9,
                       "best_uniform": None if best is None else f"{best.name}, rank {ranks[best]}",
                       "largest_rank": {fmt.name: rank for fmt, rank in ranks.items()}}
