"""The work ahead of a run: cost of its parts, and rough times on a CPU."""

import math

from qra_bo.config import RunConfig
from qra_bo.finetune.data.jsonl import read_records
from qra_bo.finetune.data.plays import play_records
from qra_bo.finetune.data.tiny import tiny_records
from qra_bo.report.tables import PlanRow
from qra_bo.study.setting import Setting
from qra_bo.utils.device import cores, resolve_dtype
from qra_bo.utils.errors import DataError

CORE_FLOPS = {"bfloat16": 2e11, "float32": 5e10}
"""Rough floating-point operations a second of one core in training: SmolLM2-135M in bf16 on two cores trained 675
tokens a second = 0.40 TFLOP/s; single precision is assumed four times as slow."""
CHARACTERS_PER_TOKEN = 3.2
"""Of the embedded text under SmolLM2's tokenizer: 3.98 million characters, 1.24 million tokens."""


def plan_rows(setting: Setting) -> list[PlanRow]:
    """Return the parts of a run by cost, and by rough time where a CPU trains."""
    config, each, seconds = setting.config, setting.full_trial_tokens, token_seconds(setting)
    effort, seeds, factor = config.effort, config.confirm.seeds, config.confirm.ranking_factor
    costs = {"profile, calibration, uniform baselines and search": setting.planned_cost,
             "references (2)": 2 * effort.references * each,
             f"confirmation ({seeds} seeds, 2 allocations)": 2 * seeds * each,
             f"the same at {len(effort.rate_factors)} other learning rates":
                 2 * seeds * len(effort.rate_factors) * each,
             f"ranking check ({effort.ranking_top} allocations, {factor} times as long)":
                 effort.ranking_top * factor * each}
    if config.oracle.trains:
        costs |= _final(config)
    return [PlanRow(what, cost, None if seconds is None or not cost else seconds * cost)
            for what, cost in costs.items() if cost or what.startswith("final")]


def _final(config: RunConfig) -> dict[str, float]:
    """Return the name and the cost of the final fine-tune; 0.0 where its tokens are not known yet."""
    final = config.final
    if final.steps is not None:
        return {f"final fine-tune ({final.steps} steps)": final.steps * config.train.batch * config.train.length}
    tokens = training_tokens(config)
    if tokens is None:
        return {f"final fine-tune ({final.epochs:g} epochs; its tokens are known once the data is read)": 0.0}
    return {f"final fine-tune ({final.epochs:g} epochs, tokens estimated from the text)": final.epochs * tokens}


def token_seconds(setting: Setting) -> float | None:
    """Return rough seconds of a training token on a CPU, from its operations and an assumed rate of the cores;
    ``None`` where training costs nothing or a GPU does it."""
    if not setting.config.oracle.trains or setting.memory.shape.device != "cpu":
        return None
    rate = CORE_FLOPS.get(resolve_dtype(setting.config.dtype, "cpu"), CORE_FLOPS["float32"])
    spec = setting.memory.spec  # frozen linears: forward, and backward to inputs alone; the head is computed again too
    return (4 * spec.linear_numel + 6 * spec.vocab_size * spec.hidden_size) / (rate * cores())


def training_tokens(config: RunConfig) -> float | None:
    """Return the rough tokens of the training split from its characters; ``None`` where it would have to be fetched."""
    data, share = config.data, 1.0 if config.data.kind == "plays" else 1 - 2 * config.data.held_out
    try:
        match data.kind:
            case "plays":
                records = play_records()[0]
            case "jsonl":
                records = read_records(data.path, data.max_records)
            case "tiny":
                records = tiny_records(data.max_records or 512, 0)
            case _:
                return None
    except DataError:  # the run reports it in its own order, after problems with the weights
        return None
    characters = sum(len(r.prompt) + len(r.target) for r in records)
    return math.ceil(share * characters / (1.0 if config.model["source"] == "random" else CHARACTERS_PER_TOKEN))
