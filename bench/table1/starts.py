"""Trials of the oracle whose adapters and base start at a decomposition of every weight: LoftQ and LQ-LoRA."""

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from bench.table1.recipe import STARTS
from qra_bo.finetune.adapters.inits import Initialiser, Pair, Prepared, full_weight, unpacked
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.quantization.bank import LayerBank, OwnBase
from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.space import StorageFormat
from qra_bo.trials import TrialSpec

Requantise = Callable[[Tensor], tuple[State, Tensor]]
"""Packed tensors of an ``out x in`` fp32 weight, and what they unpack to (``out x in``)."""
Start = Callable[[Tensor, Requantise, int, float], tuple[State, Pair]]
"""From a weight (``out x in``, fp32), its quantiser, the rank and alpha / r: the packed tensors that replace those of
the weight, and A and B."""


def requantise_in(bank: LayerBank, fmt: StorageFormat) -> Requantise:
    """Return a function that quantises any matrix on the bank's device and unpacks it again."""
    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(fmt).pack(matrix, fmt, bank.device)
        return state, unpacked(bank, fmt, state, matrix.shape)

    return requantise


class Decomposer:
    """Stands for an oracle's ``Initialiser``: ``start`` makes the base and the adapter of every quantised linear.

    Results are kept on the host until the format or the rank of their linear changes. Linears in 16 bits lose nothing
    and start at random.
    """

    forward_tokens = 0

    def __init__(self, oracle: FinetuneOracle, name: str) -> None:
        self._bank, self._name = oracle.bank, name
        self._scale = oracle.settings.adapter.alpha_over_rank
        self._start: Start = pkgutil.resolve_name(STARTS.get(name, name))
        self._own: dict[str, tuple[OwnBase, Pair]] = {}

    def prepare(self, formats: Mapping[str, str], ranks: Mapping[str, int], progress: Progress | None,
                nearest: bool = False, init: str | None = None) -> Prepared:
        """See ``Initialiser.prepare``; ``nearest`` and ``init`` change nothing."""
        adapted = {n: r for n, r in ranks.items() if r > 0 and not parse_format(formats[n]).is_base}
        for done, (name, rank) in enumerate(adapted.items(), start=1):
            wanted = OwnBase(formats[name], f"{self._name}-r{rank}", {})
            if name not in self._own or self._own[name][0] != wanted:
                state, (down, up) = self._start(full_weight(self._bank, name),
                                                requantise_in(self._bank, parse_format(wanted.fmt)), rank, self._scale)
                self._own[name] = (replace(wanted, state={k: t.to("cpu") for k, t in state.items()}),
                                   (down.cpu(), up.cpu()))
            if progress is not None:
                progress("initialise", done, len(adapted))
        return Prepared({n: self._own[n][1] for n in adapted}, {n: self._own[n][0] for n in adapted})


@contextmanager
def starting_by(oracle: FinetuneOracle, name: str) -> Iterator[None]:
    """Let trials in the block start by a recipe's initialisation of this name, whether it decomposes weights or not."""
    own = oracle.inits
    if name in STARTS or ":" in name:
        oracle.inits = cast(Initialiser, Decomposer(oracle, name))
    try:
        yield
    finally:
        oracle.inits = own


def evaluate_started(oracle: FinetuneOracle | SyntheticOracle, spec: Mapping[str, Any],
                     progress: Progress) -> dict[str, Any]:
    """Evaluate a trial whose ``init`` is one of ``STARTS``, where the oracle is; the synthetic oracle models none."""
    trial = TrialSpec.from_json(spec)
    if isinstance(oracle, SyntheticOracle):
        return oracle.evaluate(trial, progress).to_json()
    with starting_by(oracle, str(trial.init)):
        return oracle.evaluate(trial, progress).to_json()


def measure_started(oracle: FinetuneOracle, allocation: Mapping[str, Sequence[Any]], train_seed: int, init: str,
                    progress: Progress) -> dict[str, Any]:
    """Measure the memory of an allocation with one of ``STARTS``; see ``FinetuneOracle.measure_peak``."""
    with starting_by(oracle, init):
        return oracle.measure_peak(allocation, train_seed, progress, init)
