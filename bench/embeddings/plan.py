"""Plan of the study of embeddings: NF4 with rank 8, with embedding and head in 16, 8 and 6 bits.

On each text the learning rate is calibrated with 16 bits, by three rates on the validation split, and serves all
widths: one that would want another rate is at a disadvantage. Every width is then trained on unseen seeds and evaluated
on the test split; the differences to 16 bits are paired by seed. Validation loss before training is measured first.
"""

from collections.abc import Sequence
from dataclasses import replace

from bench.length.plan import SEARCH_SEED, UNSEEN_SEEDS, Block, Choice, Settled, settle
from bench.length.trials import Found, PlannedTrial
from qra_bo.memory.embeddings import WIDTHS
from qra_bo.space import Allocation, uniform

FORMAT, RANK, STEPS = "nf4", 8, 24
UNTRAINED = 0.0
"""Factor on the learning rate with which one step changes nothing: the loss before training."""


def setting(text: str, bits: int) -> str:
    """Return the name of a setting: its text and the bits of its embedding."""
    return f"{text}-embedding-{bits}"


def choice(layers: int) -> Choice:
    """Return the one allocation of the study."""
    return Choice(f"{FORMAT}, rank {RANK}", uniform(layers, FORMAT, RANK), "reference", FORMAT)


def calibration(text: str, layers: int, found: Found) -> Settled:
    """Return the rates tried with 16 bits, the best of them once all are finished, and those still missing."""
    return settle(Block(setting(text, 16), "", STEPS, 0, (choice(layers),)), found)


def before(text: str, bits: int, allocation: Allocation) -> PlannedTrial:
    """Return the trial that measures the loss before training."""
    return PlannedTrial(setting(text, bits), allocation, 1, SEARCH_SEED, "validation", UNTRAINED)


def trained(text: str, bits: int, allocation: Allocation, rate: float, seed: int) -> PlannedTrial:
    """Return one trial on an unseen seed."""
    return replace(before(text, bits, allocation), steps=STEPS, train_seed=seed, split="test", lr_scale=rate)


def following(texts: Sequence[str], seeds: int, layers: int, found: Found) -> tuple[PlannedTrial, str] | None:
    """Return the first trial that is missing, with its title; ``None`` when all are done.

    Both texts come in 16 and 8 bits before either in 6, and a first seed of both widths before the others; a change of
    width starts another worker.
    """
    name, allocation = choice(layers).name, choice(layers).allocation
    for widths in (WIDTHS[:2], WIDTHS[2:]):
        for text in texts:
            settled = calibration(text, layers, found)
            if settled.wanted:
                return settled.wanted[0]
            rate = settled.rates[FORMAT]
            for group in (UNSEEN_SEEDS[:1], UNSEEN_SEEDS[1:seeds]):
                for bits in widths:
                    trials = [before(text, bits, allocation),
                              *(trained(text, bits, allocation, rate, seed) for seed in group)]
                    missing = next((trial for trial in trials if trial.key not in found), None)
                    if missing is not None:
                        return missing, name
    return None
