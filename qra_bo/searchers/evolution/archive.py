"""Rows that a searcher has asked for or learned of, with their losses."""

from collections.abc import Iterable

import numpy as np

from qra_bo.searchers.base import SearchProblem
from qra_bo.space import FloatArray, IntArray
from qra_bo.trials import Fidelity, Trial


class Archive:
    """Losses of index rows by fidelity.

    Only losses that the search may compare are kept: on the validation split, at the calibrated learning rate, of
    allocations on the ladders. Other trials (16-bit references, calibration, confirmation) are left out.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._losses: dict[Fidelity, dict[bytes, float]] = {f: {} for f in Fidelity}
        self._seen: set[tuple[bytes, Fidelity]] = set()
        self._asked: set[tuple[bytes, Fidelity]] = set()

    @property
    def waiting(self) -> int:
        """Number of rows that were asked for and are pending."""
        return len(self._asked)

    @property
    def seen(self) -> IntArray:
        """Every row that was asked for or observed at high fidelity, ``n x 2 L``."""
        return self._rows(sorted(key for key, fidelity in self._seen if fidelity is Fidelity.HIGH))

    def claim(self, row: IntArray, fidelity: Fidelity) -> bool:
        """Mark ``row`` as asked for; false if it was asked for or observed before, at this fidelity or a higher one."""
        key = row.tobytes()
        if (key, fidelity) in self._seen or (key, Fidelity.HIGH) in self._seen:
            return False
        self._seen.add((key, fidelity))
        self._asked.add((key, fidelity))
        return True

    def tell(self, trials: Iterable[Trial]) -> None:
        """Learn of trials; those that failed have no loss and are not asked for again."""
        space = self._problem.space
        for trial in trials:
            if trial.spec.split != "validation" or not space.contains(trial.allocation):
                continue
            key = space.encode(trial.allocation).tobytes()
            self._seen.add((key, trial.fidelity))
            self._asked.discard((key, trial.fidelity))
            if trial.loss is not None and np.isfinite(trial.loss):
                self._losses[trial.fidelity][key] = trial.loss

    def known(self, fidelity: Fidelity) -> tuple[IntArray, FloatArray]:
        """Return rows with a loss at ``fidelity`` (``n x 2 L``) and these losses (``n``), in the order of arrival."""
        losses = self._losses[fidelity]
        return self._rows(losses), np.array(list(losses.values()), dtype=np.float64)

    def pairs(self) -> tuple[IntArray, FloatArray, FloatArray]:
        """Return rows with a loss at both fidelities (``n x 2 L``), their low and their high losses (``n`` each)."""
        low, high = self._losses[Fidelity.LOW], self._losses[Fidelity.HIGH]
        both = [key for key in low if key in high]
        return self._rows(both), np.array([low[k] for k in both]), np.array([high[k] for k in both])

    def unpromoted(self) -> tuple[IntArray, FloatArray]:
        """Return rows with a low loss and no high one asked for (``n x 2 L``), and these low losses (``n``)."""
        low = {k: v for k, v in self._losses[Fidelity.LOW].items() if (k, Fidelity.HIGH) not in self._seen}
        return self._rows(low), np.array(list(low.values()), dtype=np.float64)

    def _rows(self, keys: Iterable[bytes]) -> IntArray:
        rows = [np.frombuffer(key, dtype=np.int64) for key in keys]
        return np.array(rows, dtype=np.int64).reshape(-1, 2 * self._problem.space.n_units)
