"""Formats of 4 bits on weights that were never quantised: errors of random matrices and of a random decoder.

The embedded base was once a file of 4-bit integers with groups of 32, which flatters grids of that kind. Nothing here
says what a real model loses: weights are drawn, and no training follows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.formats.plan import bits_a_weight
from bench.length.summary import difference
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.finetune.quantization.base import backend_of, packed
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.memory.formats import parse_format
from qra_bo.space import DecoderSpec
from qra_bo.space.decoder import spec_from_model

FORMATS = ("nf4", "nf4-nodq", "sym4-g128", "sym4-g64", "sym4-g32", "int4-g128", "int4-g64", "int4-g32", "hqq4-g128",
           "hqq4", "hqq4-g32")
KINDS = ("gaussian", "student-t")
DEGREES = 4
"""Degrees of freedom of the heavy-tailed weights."""
SIDE = 1024
WIDTH, LAYERS, VOCABULARY = 256, 4, 512
SEQUENCES, LENGTH = 16, 128
CPU = torch.device("cpu")
MATRIX, DECODER, DIVERGENCE = ("relative error of a matrix", "relative error of a random decoder's final states, GPTQ",
                               "KL of a random decoder's predictions, GPTQ")
BASELINE = "nf4"


def draw(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return weights, ``out x in`` in fp32, of standard deviation ``1 / sqrt(in)``."""
    normal = torch.randn(shape, generator=generator)
    if kind == "student-t":
        square = torch.randn((DEGREES, *shape), generator=generator).square_().mean(dim=0)
        normal = normal.div_(square.sqrt_()).mul_(((DEGREES - 2) / DEGREES) ** 0.5)
    return normal.div_(shape[1] ** 0.5)


def matrix_errors(kind: str, seed: int, formats: Sequence[str] = FORMATS, side: int = SIDE) -> dict[str, float]:
    """Return ``||Q(W) - W|| / ||W||`` of a ``side x side`` matrix, round-to-nearest, by format."""
    weight, found = draw(kind, (side, side), torch.Generator().manual_seed(seed)), {}
    for name in formats:
        fmt = parse_format(name)
        layer = backend_of(fmt).build(backend_of(fmt).pack(weight, fmt, CPU), fmt, (side, side), None, torch.float32)
        found[name] = float((packed(layer).unpack() - weight).norm() / weight.norm())
    return found


def random_decoder(kind: str, seed: int, width: int = WIDTH, layers: int = LAYERS) -> Any:
    """Return a frozen decoder in fp32 whose linears are drawn by ``draw``."""
    config = LlamaConfig(hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                         num_attention_heads=8, num_key_value_heads=4, vocab_size=VOCABULARY, bos_token_id=None,
                         eos_token_id=None, pad_token_id=None, use_cache=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # transformers draws from torch's global generator; all is replaced
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.copy_(draw(kind, (parameter.shape[0], parameter.shape[1]), generator))
    return model


@torch.no_grad()
def decoder_errors(kind: str, seed: int, formats: Sequence[str] = FORMATS, width: int = WIDTH,
                   layers: int = LAYERS) -> dict[str, dict[str, float]]:
    """Return, by measure and format, how a random decoder with codes by GPTQ differs from the dense one.

    Codes are chosen on random tokens, and differences are measured on others.
    """
    model = random_decoder(kind, seed, width, layers)
    spec = spec_from_model(model, "random")
    tokens = torch.randint(VOCABULARY, (2 * SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(seed))
    chosen = [parse_format(name) for name in formats]
    rounding = Rounding(model, [m.name for m in spec.linears], chosen, tokens[:SEQUENCES], CPU, None)
    bank = LayerBank(model, spec, chosen, torch.float32, CPU, rounding=rounding)
    bank.build()

    def outputs() -> tuple[Tensor, Tensor]:
        states = model.model(input_ids=tokens[SEQUENCES:]).last_hidden_state
        return states, model.lm_head(states).log_softmax(dim=-1)

    states, dense = outputs()
    found: dict[str, dict[str, float]] = {DECODER: {}, DIVERGENCE: {}}
    for name in formats:
        bank.install({m.name: name for m in spec.linears})
        others, log_q = outputs()
        found[DECODER][name] = float((others - states).norm() / states.norm())
        found[DIVERGENCE][name] = float((dense.exp() * (dense - log_q)).sum(dim=-1).mean())
    return found


def measure(seeds: int) -> list[dict[str, Any]]:
    """Return a row for every kind of weights, measure and format, with its paired difference from NF4 over seeds."""
    rows, spec = [], spec_from_model(random_decoder(KINDS[0], 0), "random")
    for kind in KINDS:
        found: dict[str, dict[int, Mapping[str, float]]] = {MATRIX: {}, DECODER: {}, DIVERGENCE: {}}
        for seed in range(seeds):
            found[MATRIX][seed] = matrix_errors(kind, seed)
            for what, values in decoder_errors(kind, seed).items():
                found[what][seed] = values
        rows += [_row(kind, what, name, values, spec) for what, values in found.items() for name in FORMATS]
    return rows


def _row(kind: str, what: str, name: str, values: Mapping[int, Mapping[str, float]],
         spec: DecoderSpec) -> dict[str, Any]:
    of, reference = ({seed: by_format[other] for seed, by_format in values.items()} for other in (name, BASELINE))
    return {"part": "weights never quantised", "task": kind, "measure": what, "bits": 4, "format": name,
            "bits_a_weight": bits_a_weight(name, spec), "values": list(of.values()),
            "mean": sum(of.values()) / len(of), "seeds": len(of), "reference": BASELINE,
            "minus_reference": None if name == BASELINE else difference(of, reference)}
