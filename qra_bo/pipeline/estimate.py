"""Time of a run: estimated before it starts, from operations and the device, and corrected by its first trial."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from qra_bo.memory.cards import CARDS, Card, card_named
from qra_bo.memory.speed import step_seconds
from qra_bo.report.tables import PlanRow, print_line
from qra_bo.report.text import rough
from qra_bo.space import Allocation, SearchSpace, uniform
from qra_bo.study import Setting, cost_of
from qra_bo.study.state import FORWARD_SHARE
from qra_bo.trials import Trial, TrialState
from qra_bo.utils.device import cores, multiplies_bf16, resolve_dtype

CORE_FLOPS = {"bfloat16": 2e11, "float32": 1.2e11}
"""Rough floating-point operations a second of one core in training, of SmolLM2-135M in steps of 4 x 128 tokens: in bf16
an AMD EPYC's (675 tokens a second on two cores), in fp32 an Intel Xeon's (2.6 s a step on one core)."""
SLOW_BF16_FLOPS = 6e10
"""The same in bf16 on a CPU that multiplies faster in fp32: 5 s a step on one core of that Xeon."""
CODE_SECONDS = 1.5e-7
"""Rough seconds of one core to pack a weight in one format and choose its code by GPTQ (SmolLM2-135M)."""
PROFILE = "profile"
"""Name of the plan's part that is over before the first trial."""
ALONE = "final"
"""Beginning of the name of the part after the last trial, which one worker trains."""


def card_of(setting: Setting) -> Card | None:
    """Return the card that a run trains on, by its name or as it is at hand; ``None`` for a CPU or a simulation, and
    where the table of cards lacks it."""
    if not setting.config.oracle.trains or setting.memory.shape.device == "cpu":
        return None
    if setting.config.gpu is not None:
        return CARDS[setting.config.gpu]
    import torch  # a plan for a CPU does without it
    index = int(setting.config.device.partition(":")[2] or 0)
    return card_named(torch.cuda.get_device_name(index)) if index < torch.cuda.device_count() else None


def token_seconds(setting: Setting, card: Card | None = None) -> float | None:
    """Return rough seconds of a training token, from the model's operations and the device's assumed rate; ``None`` for
    a simulation, and on a GPU without its ``card``."""
    if not setting.config.oracle.trains:
        return None
    spec = setting.memory.spec
    if setting.memory.shape.device == "cpu":  # frozen linears: forward, and backward to inputs alone; the head thrice
        dtype = resolve_dtype(setting.config.dtype, "cpu")
        slow = dtype == "bfloat16" and not multiplies_bf16()
        rate = SLOW_BF16_FLOPS if slow else CORE_FLOPS.get(dtype, CORE_FLOPS["float32"])
        return (4 * spec.linear_numel + 6 * spec.vocab_size * spec.hidden_size) / (rate * cores())
    if card is None:
        return None
    space = setting.space
    chosen = typical(space) if setting.given is None else setting.given.allocations[0]
    return step_seconds(setting.memory, space, chosen, card) / setting.memory.shape.tokens


def profile_cost(setting: Setting) -> float:
    """Return the cost of a profile on all calibration text, in training tokens: sensitivities, and choosing codes."""
    config, space = setting.config, setting.space
    trained, forward = setting.tokens_before
    size, n_layers = config.data.calibration * config.train.length, setting.memory.spec.n_layers
    above = sum(1 - min(linear.layer for linear in unit.linears) / n_layers for unit in space.units)
    passes = 1 + above * sum(fmt.bits < 16 for fmt in space.formats)
    return trained + size + FORWARD_SHARE * (forward + size * passes)


def profile_seconds(setting: Setting, cost: float, each: float | None) -> float | None:
    """Return rough seconds of a profile of ``cost`` training tokens, ``each`` seconds a token; ``None`` where that is
    not known. On a GPU choosing codes counts for nothing beside the passes, which is not measured."""
    if each is None:
        return None
    if setting.memory.shape.device != "cpu":
        return each * cost
    chosen = setting.memory.spec.linear_numel * sum(fmt.bits < 16 for fmt in setting.space.formats)
    return each * cost + CODE_SECONDS * chosen / cores() * (setting.config.quantizer.rounding != "rtn")


def typical(space: SearchSpace) -> Allocation:
    """Return the uniform allocation nearest to 4 bits, at the middle of the ranks."""
    fmt = min(space.formats, key=lambda f: abs(f.bits - 4))
    return uniform(space.n_units, fmt.name, space.ranks.values[len(space.ranks) // 2])


def basis(setting: Setting, card: Card | None) -> str:
    """Say what the times of a plan are."""
    if setting.memory.shape.device == "cpu":
        return "times are rough guesses from the number of operations"
    if card is None:
        return "times are known after the first trial"
    return f"times are estimates for a {card.title} from the number of operations, not measured on a GPU"


def shares(part: str, workers: int) -> int:
    """Return by how many of the ``workers`` a part of the plan is divided."""
    return 1 if part.startswith(ALONE) else workers


class FirstTrial:
    """Listener that prints the times of a plan again once a trial has been timed.

    Args:
        rows: The parts of the plan.
        console: Where to print.
    """

    def __init__(self, rows: Sequence[PlanRow], console: Console) -> None:
        self._rows, self._console, self._waiting = [row for row in rows if row.what != PROFILE], console, True

    def __call__(self, event: Mapping[str, Any]) -> None:
        if not self._waiting or event["event"] != "trial":
            return
        trial = Trial.from_json(event)
        tokens, seconds = cost_of(trial).tokens, trial.result.seconds - trial.result.switch_seconds
        if trial.result.state is not TrialState.OK or tokens <= 0 or seconds <= 0:
            return
        self._waiting, each = False, seconds / tokens
        ahead = [each * row.cost / shares(row.what, event.get("workers", 1)) for row in self._rows]
        parts = [f"{row.what}: about {rough(s)}" for row, s in zip(self._rows, ahead, strict=True) if row.cost]
        guess = sum(row.seconds or 0.0 for row in self._rows)
        factor = sum(s for row, s in zip(self._rows, ahead, strict=True) if row.seconds) / guess if guess else None
        compared = "" if factor is None else f", {factor:.1f} times the estimate"
        print_line(self._console, f"Times by the first trial ({tokens / seconds:,.0f} tokens a second{compared}): "
                                  f"{'; '.join(parts)}; in all about {rough(sum(ahead))}")
