"""Random allocations of tiny random decoders as finished runs, for the exporters' conformance tests.

A case follows from its number alone: the family (llama, qwen2 with its biases), tied or untied embeddings and their
bits, grouped heads, compute type, and for every linear a storage format and a rank of 0 to 32. ``build`` writes what a
run leaves, without a training: LoRA A and B are random.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import cycle
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from qra_bo.export.comparison import Reference, Row
from qra_bo.export.registry import TARGETS
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.adapters.lora import adapter_parameters, attach
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.manifest import write_manifest
from qra_bo.finetune.models.load import cast_parameters, load_base, without_bars
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.embeddings import pack_embeddings
from qra_bo.memory.formats import FORMATS, check_shape
from qra_bo.space.decoder import spec_from_model, stack_of
from qra_bo.utils.errors import SpaceError
from tests.export.fixtures import best_json

LAYERS, WIDTH, INNER, HEADS, HEAD, VOCABULARY, TOKENS = 2, 128, 256, 4, 32, 320, 12
RANKS = (0, 1, 2, 3, 5, 8, 12, 16, 32)
TYPES = ("float32", "bfloat16")
FAMILIES: dict[str, tuple[Any, Any]] = {"llama": (LlamaConfig, LlamaForCausalLM),
                                        "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@dataclass(frozen=True)
class Case:
    """One allocation of one decoder.

    Args:
        number: Seed of everything random.
        formats: Storage formats by linear, in module order; one that can't store the linear's shape is replaced.
        ranks: Of each linear.
        embeddings: Bits of embedding and head.
    """

    number: int
    family: str
    tied: bool
    kv_heads: int
    compute: str
    formats: tuple[str, ...]
    ranks: tuple[int, ...]
    embeddings: int = 16


def make_case(number: int, pool: Sequence[str] = tuple(FORMATS)) -> Case:
    """Return the case of a number; half of all have formats of ``pool`` alone, the others of all formats."""
    rng = np.random.default_rng([number, 29])
    names = tuple(pool) if rng.random() < 0.5 else tuple(FORMATS)
    few = rng.choice(names, size=int(rng.integers(1, 5)))  # few in one run, as after a search
    linears = 7 * LAYERS
    ranks = rng.choice(RANKS, size=linears)
    ranks[rng.integers(linears)] = rng.choice(RANKS[1:])  # a run without any adapter delivers none
    case = Case(number, str(rng.choice(list(FAMILIES))), bool(rng.integers(2)), int(rng.choice([1, 2, 4])),
                str(rng.choice(TYPES)), tuple(str(f) for f in rng.choice(few, size=linears)), tuple(map(int, ranks)))
    if case.compute != "float32":  # unpacked tables have the type of products, which the comparison in fp32 would see
        return case
    return replace(case, embeddings=int(rng.choice([16, 8, 6])))


@cache
def base_folder(family: str, tied: bool, kv_heads: int) -> Path:
    """Return a folder with a random decoder of that kind, saved by transformers."""
    config, kind = FAMILIES[family]
    folder = Path(mkdtemp(prefix="decoder-"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(kv_heads)
        model = kind(config(hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
                            num_attention_heads=HEADS, num_key_value_heads=kv_heads, head_dim=HEAD,
                            vocab_size=VOCABULARY, tie_word_embeddings=tied, max_position_embeddings=256,
                            initializer_range=0.08, bos_token_id=None, eos_token_id=257, pad_token_id=256))
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):  # transformers starts them at zero
                torch.nn.init.normal_(parameter, std=0.1)
    with without_bars():
        model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def build(case: Case, folder: Path) -> FinishedRun:
    """Write the folder of a finished run of that case."""
    source = base_folder(case.family, case.tied, case.kv_heads)
    node = {"name": case.family, "source": "path", "path": str(source), "gguf_file": None, "revision": None,
            "trust_remote_code": False}
    return build_on(node, case, folder)


def build_on(node: dict[str, Any], case: Case, folder: Path) -> FinishedRun:
    """Write the folder of a finished run on the base of a node of ``conf/model``; formats and ranks of the case are
    repeated over its linears, of a mixture over its stacks."""
    model, _ = load_base(node)
    dtype = getattr(torch, case.compute)
    spec = spec_from_model(model, case.family)
    cast_parameters(model, dtype, [linear.name for linear in spec.linears])
    pack_embeddings(model, case.embeddings, dtype, torch.device("cpu"))
    bank = LayerBank(model, spec, (), dtype, "cpu")
    stacks = dict.fromkeys(stack_of(linear.name) for linear in spec.linears)  # experts of one are alike
    wanted = dict(zip(stacks, zip(cycle(case.formats), cycle(case.ranks), strict=False), strict=False))
    formats = {linear.name: fmt if stores(fmt, linear.out_features, linear.in_features) else "fp16"
               for linear in spec.linears for fmt, _ in [wanted[stack_of(linear.name)]]}
    ranks = {linear.name: wanted[stack_of(linear.name)][1] for linear in spec.linears}
    bank.install(formats)
    scale = (0.5, 1.0, 2.0)[case.number % 3]
    wrapped = attach(model, ranks, scale, case.number, dtype)
    draw = torch.Generator().manual_seed(case.number)
    for pair in adapter_parameters(model).values():
        pair["B"].data = (0.05 * torch.randn(pair["B"].shape, generator=draw)).to(dtype)
    wrapped.save_pretrained(str(folder / "adapter"), safe_serialization=True, save_embedding_layers=False)
    write_manifest(folder, bank, ranks, scale, node)
    best = best_json(units=list(formats), bits=[FORMATS[f].bits for f in formats.values()], ranks=list(ranks.values()),
                     formats=[asdict(FORMATS[f]) for f in formats.values()], alpha_over_rank=scale)
    (folder / "best.json").write_text(json.dumps(best))
    return FinishedRun.read(folder)


def rows_of(run: FinishedRun, target: str, ids: Tensor) -> list[Row]:
    """Load an export by the program it is for; return its comparisons with the run's own logits of some tokens."""
    loader = TARGETS[target].loader
    rows = list(loader.rows(target, run, Reference(run, ids)))
    assert rows
    return rows


def stores(name: str, out_features: int, in_features: int) -> bool:
    """Return whether a format can pack a matrix of this shape."""
    try:
        check_shape(FORMATS[name], out_features, in_features)
    except SpaceError:
        return False
    return True


def check_refusal(message: str, target: str, names: set[str], holds: Callable[[str], bool]) -> None:
    """Check that a run with the formats ``names`` was refused rightly, on one line that says what to search instead."""
    assert not all(holds(name) for name in names), message
    assert "\n" not in message
    assert target in message
    assert "serve=" in message
    assert any(name in message for name in names), message
