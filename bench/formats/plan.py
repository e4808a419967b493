"""Plan of the study of formats: which uniform choices are trained, in which order, and in which setting.

A block holds the formats of one bit-width on one text after one number of steps, all with rank 8. Learning rates are
calibrated with equal effort: three rates on the validation split for each family of formats (HQQ, symmetric, with
zeros, bitsandbytes) in each block. Every format is then trained on unseen seeds and evaluated on the test split.

Before its block, each format's validation loss without any training is measured. Of the low widths, 24 steps come
before 240, and there one seed of all texts and widths before the next; the widths above 4 bits follow in the same way.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

from bench.length.plan import SEARCH_SEED, Block, Choice, wanted
from bench.length.trials import Found, PlannedTrial
from qra_bo.memory.formats import metadata_bytes, parse_format, weight_bytes
from qra_bo.space import DecoderSpec, uniform

RANK = 8
WIDTHS = {
    3: ("hqq3", "hqq3-g128", "sym3-g64", "sym3-g32", "int3-g64", "int3-g32"),
    2: ("hqq2", "hqq2-g128", "sym2-g64", "sym2-g32", "int2-g64", "int2-g32"),
    5: ("hqq5-g128", "hqq5", "sym5-g64", "sym5-g32"),
    8: ("int8", "hqq8-g128", "hqq8", "sym8-g64", "sym8-g32", "int8-g64", "int8-g32"),
    6: ("hqq6-g128", "hqq6", "sym6-g64", "sym6-g32")}
"""Formats by bit-width, the default at the time of the study first. HQQ's groups of 32 take more bytes than any other
format of their width, and integer formats with groups of 128 can't hold the embedded model's linears of 576 inputs."""
STAGES = {"low": (3, 2), "high": (5, 8, 6)}
"""Widths that are planned and packed together."""
UNTRAINED = 0.0
"""Factor on the learning rate with which one step changes nothing: the loss before training."""


def family_of(name: str) -> str:
    """Return the family of a format: its backend, or the kind of grid."""
    fmt = parse_format(name)
    return name[:3] if fmt.backend == "integer" else fmt.backend


def bits_a_weight(name: str, spec: DecoderSpec) -> float:
    """Return stored bits of codes and metadata for each weight of the model's linears."""
    fmt = parse_format(name)
    stored = sum(size(fmt, m.out_features, m.in_features)
                 for m in spec.linears for size in (weight_bytes, metadata_bytes))
    return 8 * stored / spec.linear_numel


def reference_of(name: str, spec: DecoderSpec) -> str | None:
    """Return the format of HQQ or bitsandbytes that is nearest in bytes to an integer format of its width, the larger
    of two equally near; ``None`` for a format that is itself one of them."""
    bits = parse_format(name).bits
    others = [other for other in WIDTHS[bits] if parse_format(other).backend != "integer"]
    if name in others:
        return None
    own = bits_a_weight(name, spec)
    return min(others, key=lambda other: (round(abs(bits_a_weight(other, spec) - own), 6), -bits_a_weight(other, spec)))


def setting_of(trial: PlannedTrial) -> str:
    """Return the setting of a trial: its text and the stage whose formats are packed together."""
    bits = parse_format(trial.allocation.formats[0]).bits
    return f"{trial.task}-{next(stage for stage, widths in STAGES.items() if bits in widths)}"


def overrides_of(stage: str) -> list[str]:
    """Return the overrides that make the formats of a stage the ladder of a configuration."""
    widths = sorted(STAGES[stage])
    return [f"bits=[{','.join(map(str, widths))}]", "dtype=float32",  # half of bf16's time on CPUs without tiles
            *(f"quantizer.formats.{bits}=[{','.join(WIDTHS[bits])}]" for bits in widths)]


def make_block(task: str, steps: int, bits: int, seeds: int, layers: int, only: Collection[str] = ()) -> Block:
    """Return the block of one width, of its formats in ``only``; empty: of all."""
    return Block(task, f"{bits} bits", steps, seeds, tuple(
        Choice(name, uniform(layers, name, RANK), "reference", f"{bits} bits, {family_of(name)}")
        for name in WIDTHS[bits] if not only or name in only))


def make_plan(tasks: Sequence[str], steps: Collection[int], seeds: int, layers: int,
              only: Collection[str] = ()) -> tuple[Block, ...]:
    """Return all blocks in order; those of more seeds repeat the trials of those of fewer."""
    return tuple(make_block(task, length, bits, count, layers, only)
                 for widths in STAGES.values() for length in sorted(steps) for count in range(1, seeds + 1)
                 for task in tasks for bits in widths)


def untrained(block: Block, choice: Choice) -> PlannedTrial:
    """Return the trial that measures the loss of a choice before training."""
    return replace(block.trial(choice, SEARCH_SEED, "validation", UNTRAINED), steps=1)


def following(plan: Sequence[Block], found: Found) -> tuple[PlannedTrial, str] | None:
    """Return the first trial that is missing, with its title; ``None`` when all are done."""
    for block in plan:
        for choice in block.choices:
            before = untrained(block, choice)
            if before.key not in found:
                return before, f"{choice.name}, before training"
        planned = wanted([block], found, (block.task,))
        if planned is not None:
            return planned
    return None
