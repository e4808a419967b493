"""Order of the training sequences: shuffled epochs from a named random stream."""

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def named_rng(name: str, seed: int) -> np.random.Generator:
    """Return the random stream of one purpose, independent of every other name's under the same seed."""
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=tuple(name.encode())))


def batches(n_blocks: int, batch: int, steps: int, seed: int) -> IntArray:
    """Return the rows of every step's batch, ``steps x batch``.

    Each epoch is a fresh shuffle of all rows; a batch may span two epochs. A shorter run sees a prefix of what a
    longer one with the same seed sees.

    Raises:
        ValueError: If a number is not positive.
    """
    if min(n_blocks, batch, steps) < 1:
        raise ValueError(f"n_blocks, batch and steps must be positive; got {n_blocks}, {batch}, {steps}")
    rng = named_rng("batches", seed)
    epochs = -(-steps * batch // n_blocks)
    order = np.concatenate([rng.permutation(n_blocks) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch).astype(np.int64)
