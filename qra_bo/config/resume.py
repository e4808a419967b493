"""Which keys of the configuration may change between a run and its continuation; a test has every key classed here.

A name that ends in a dot stands for all keys of a group that differ with its option.
"""

from collections.abc import Mapping
from typing import Any

HARMLESS = frozenset({
    "task", "out", "resume", "display", "allocation", "max_hours", "search.force", "logger.", "executor.",
    "effort.name", "effort.max_full_trials", "effort.uniform_baselines", "effort.calibration_baselines",
    "effort.references", "effort.compare", "effort.sequential", "effort.stop", "effort.ranking_top",
    "effort.rate_factors",
    "memory.format", "memory.verify",
    "eval.tasks", "eval.limit", "export.targets", "export.gguf", "export.check",
    "worker.deadline_seconds", "worker.checkpoint_seconds", "worker.spill_above"})
"""They bound a run, show it, or use its results: no finished trial would come out otherwise."""
DECIDING = frozenset({
    "model.", "oracle.", "data.", "method.", "quantizer.formats.", "budget", "bits", "ranks", "max_average_bits",
    "granularity", "embeddings", "serve", "seed", "device", "gpu", "dtype", "memory.scope", "memory.headroom",
    "memory.calibrate", "sensitivity.path", "surrogate.rates", "quantizer.rounding",
    "quantizer.tokens", "search.length", "adapter.init",
    "adapter.iterations", "adapter.alpha_over_rank", "adapter.lr", "adapter.lr_rule", "train.name", "train.batch",
    "train.accumulate", "train.length", "train.packing", "train.warmup", "train.lr_floor", "train.weight_decay",
    "train.betas", "train.eps", "train.clip", "train.optimizer", "train.checkpointing", "train.logits_chunk",
    "fidelity.high", "fidelity.low", "eval.sequences", "calibrate.lr_scales", "confirm.seeds", "confirm.ranking_factor",
    "final.steps", "final.epochs", "final.max_steps", "final.validate_every", "final.keep", "final.patience"})
"""They decide trials, the comparison or what is delivered: a run goes on with none of them changed."""
UNSAID = frozenset({"out", "resume"})
"""Harmless keys that name the run and ask for its continuation."""
NOT_OF_THE_RESULT = frozenset({name.split(".")[0] for name in HARMLESS} - {name.split(".")[0] for name in DECIDING})
"""Top-level keys all of whose values are harmless."""


def is_classed(key: str, names: frozenset[str]) -> bool:
    """Return whether ``key``, dotted, or a group that holds it is among ``names``."""
    parts = key.split(".")
    return key in names or any(".".join(parts[:i]) + "." in names for i in range(1, len(parts)))


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their dotted keys."""
    if not isinstance(data, Mapping):
        return {prefix: data}
    return {name: leaf for key, value in data.items()
            for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else key).items()}


def of_the_result(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the nested values of a configuration without those that are harmless."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = of_the_result(value, f"{prefix}{key}.")
            kept |= {key: inner} if inner or not value else {}
        elif not is_classed(f"{prefix}{key}", HARMLESS):
            kept[key] = value
    return kept


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, harmless: bool) -> list[tuple[str, Any, Any]]:
    """Return key and both values where two configurations differ, of the harmless keys or of all others; a value that
    one of them lacks is ``"(absent)"``."""
    old, new = flatten(before), flatten(now)
    return [(key, old.get(key, "(absent)"), new.get(key, "(absent)")) for key in sorted(old.keys() | new.keys())
            if is_classed(key, HARMLESS) == harmless and old.get(key, "(absent)") != new.get(key, "(absent)")]
