"""Trials of the oracle whose adapters and base start at a decomposition of every weight: LoftQ and LQ-LoRA."""

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.table1.recipe import STARTS
from qra_bo.finetune.adapters.lora import adapter_parameters, attach, rank_choice
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.profiling import unit_choice
from qra_bo.finetune.quantization.bank import LayerBank, OwnBase
from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.space import Allocation, StorageFormat
from qra_bo.trials import TrialSpec

Pair = tuple[Tensor, Tensor]
"""A (``r x in``) and B (``out x r``) in fp32."""
Requantise = Callable[[Tensor], tuple[State, Tensor]]
"""Packed tensors of an ``out x in`` fp32 weight, and what they unpack to (``out x in``)."""
Start = Callable[[Tensor, Requantise, int, float], tuple[State, Pair]]
"""From a weight (``out x in``, fp32), its quantiser, the rank and alpha / r: the packed tensors that replace those of
the weight, and A and B."""


def full_weight(bank: LayerBank, name: str) -> Tensor:
    """Return the original weight of one linear, ``out x in``, on the bank's device in fp32."""
    return bank.dense_weight(name).to(bank.device, torch.float32)


def unpacked(bank: LayerBank, fmt: StorageFormat, state: State, shape: Sequence[int]) -> Tensor:
    """Return the weight of a layer of ``shape`` (out, in) over ``state``, in fp32 on the bank's device."""
    layer = backend_of(fmt).build({k: t.to(bank.device) for k, t in state.items()}, fmt, (shape[0], shape[1]), None,
                                  bank.compute_dtype)
    return layer.unpack().float()


def requantise_in(bank: LayerBank, fmt: StorageFormat) -> Requantise:
    """Return a function that quantises any matrix on the bank's device and unpacks it again."""
    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(fmt).pack(matrix, fmt, bank.device)
        return state, unpacked(bank, fmt, state, matrix.shape)

    return requantise


class Decomposer:
    """Makes the base and the adapter of every quantised linear by a start, in place of ``FinetuneOracle.build``.

    Results are kept on the host until the format or the rank of their linear changes. Linears in 16 bits lose nothing
    and start at random.
    """

    def __init__(self, oracle: FinetuneOracle, name: str) -> None:
        self._oracle, self._bank, self._name = oracle, oracle.bank, name
        self._scale = oracle.settings.alpha_over_rank
        self._start: Start = pkgutil.resolve_name(STARTS.get(name, name))
        self._own: dict[str, tuple[OwnBase, Pair]] = {}

    def build(self, allocation: Allocation, train_seed: int, progress: Progress = quiet,
              codes: str | None = None) -> None:
        """See ``FinetuneOracle.build``; ``codes`` changes nothing."""
        oracle, formats = self._oracle, unit_choice(self._oracle.units, allocation.formats)
        ranks = rank_choice(oracle.units, allocation.ranks)
        own = self.prepare(formats, ranks, progress)
        self._bank.install({**formats, **{name: base for name, (base, _) in own.items()}})
        oracle.peft = attach(oracle.model, ranks, self._scale, train_seed, self._bank.compute_dtype)
        for name, pair in adapter_parameters(oracle.model).items():
            if name in own:  # rows beyond the rank of a narrower linear stay as LoRA's own start
                down, up = own[name][1]
                pair["A"].data[:len(down)], pair["B"].data[:, :len(down)] = down, up

    def prepare(self, formats: Mapping[str, str], ranks: Mapping[str, int],
                progress: Progress) -> Mapping[str, tuple[OwnBase, Pair]]:
        """Return the base of every quantised linear with an adapter, and the adapter's A and B."""
        adapted = {n: r for n, r in ranks.items() if r > 0 and not parse_format(formats[n]).is_base}
        for done, (name, rank) in enumerate(adapted.items(), start=1):
            wanted = OwnBase(formats[name], f"{self._name}-r{rank}", {})
            if name not in self._own or self._own[name][0] != wanted:
                state, (down, up) = self._start(full_weight(self._bank, name),
                                                requantise_in(self._bank, parse_format(wanted.fmt)), rank, self._scale)
                self._own[name] = (replace(wanted, state={k: t.to("cpu") for k, t in state.items()}),
                                   (down.cpu(), up.cpu()))
            progress("initialise", done, len(adapted))
        return {name: self._own[name] for name in adapted}


@contextmanager
def starting_by(oracle: FinetuneOracle, name: str) -> Iterator[None]:
    """Let trials in the block start by a recipe's initialisation of this name, whether it decomposes weights or not."""
    if name not in STARTS and ":" not in name:
        yield
        return
    oracle.build = Decomposer(oracle, name).build  # type: ignore[method-assign]
    try:
        yield
    finally:
        del oracle.build


def evaluate_started(oracle: FinetuneOracle | SyntheticOracle, spec: Mapping[str, Any],
                     progress: Progress) -> dict[str, Any]:
    """Evaluate a trial whose ``codes`` are one of ``STARTS``, where the oracle is; the synthetic oracle models none."""
    trial = TrialSpec.from_json(spec)
    if isinstance(oracle, SyntheticOracle):
        return oracle.evaluate(trial, progress).to_json()
    with starting_by(oracle, str(trial.codes)):
        return oracle.evaluate(trial, progress).to_json()


def measure_started(oracle: FinetuneOracle, allocation: Mapping[str, Sequence[Any]], train_seed: int, init: str,
                    progress: Progress) -> dict[str, Any]:
    """Measure the memory of an allocation with one of ``STARTS``; see ``FinetuneOracle.measure_peak``."""
    with starting_by(oracle, init):
        return oracle.measure_peak(allocation, train_seed, progress)
