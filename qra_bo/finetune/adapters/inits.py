"""Adapter initialisations: random, from quantisation errors, or by a function from outside the package."""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from qra_bo.finetune.adapters.lora import AdapterSettings
from qra_bo.finetune.adapters.lowrank import Factors, nearest_for_inputs
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.quantization.bank import LayerBank, OwnBase
from qra_bo.finetune.quantization.base import State, backend_of, packed
from qra_bo.finetune.quantization.moments import Inputs, each_moments
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.finetune.training.loss import CalibrationText
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.space import StorageFormat

Pair = tuple[Tensor, Tensor]
"""A (``r x in``) and B (``out x r``) in fp32."""
KEPT_RANK = 32
"""Least rank up to which factors are kept, so that most searches make them once."""
Requantise = Callable[[Tensor], tuple[State, Tensor]]
"""Packed tensors of an ``out x in`` fp32 weight, and what they unpack to (``out x in``)."""
Start = Callable[[Tensor, Requantise, int, float], tuple[State, Pair]]
"""An initialisation from outside: from a weight (``out x in``, fp32), its quantiser, the rank and alpha / r, the packed
tensors that replace those of the weight, and A and B."""


class Prepared(NamedTuple):
    """A and B of adapted linears that do not start at random, and linears with quantised weights of their own."""

    pairs: Mapping[str, Pair]
    bases: Mapping[str, OwnBase]


class Initialiser:
    """Initialises the adapters of any allocation; results that allocations share are made once.

    ===================  ========================================================  ================  ===========
    ``init``             scale B A                                                 base              rank-nested
    ===================  ========================================================  ================  ===========
    kaiming              0 (A random)                                              Q(W)              yes
    cloq                 nearest to W - Q(W) for the linear's inputs               Q(W)              yes
    "module:function"    as a ``Start`` gives them                                 as it gives it    no
    ===================  ========================================================  ================  ===========

    Linears in 16 bits lose nothing and start at random. Nothing is drawn from torch's generators. The tokens of the one
    pass of ``cloq`` count with the profile. (It takes one more for every allocation that brings in new formats or ranks
    above 32.)

    Args:
        bank: The model's quantised linears.
        settings: How adapters are built.
        text: Calibration text of ``cloq``, which takes the longer one that codes were chosen on, if there is one.
        store: Store of the factors across runs, or ``None``.
    """

    def __init__(self, bank: LayerBank, settings: AdapterSettings, text: CalibrationText,
                 store: TensorStore | None) -> None:
        self.bank, self.settings, self._store = bank, settings, store
        self._weighing: CalibrationText | Rounding = text if bank.rounding is None else bank.rounding
        self._factors: dict[tuple[str, str, bool], Factors] = {}
        self._own: dict[str, tuple[OwnBase, Pair]] = {}

    @property
    def forward_tokens(self) -> int:
        """Tokens that go forward once for the configured initialisation."""
        return self._weighing.ids.numel() if self.settings.init == "cloq" else 0

    def prepare(self, formats: Mapping[str, str], ranks: Mapping[str, int], progress: Progress | None,
                nearest: bool = False, init: str | None = None) -> Prepared:
        """Initialise every linear with an adapter.

        Args:
            formats: Format of every linear.
            ranks: Rank of every linear; 0 or missing: no adapter.
            progress: Called after every linear that took a decomposition.
            nearest: Whether the base has the libraries' codes.
            init: Initialisation; ``None``: the configured one.
        """
        init, scale = init or self.settings.init, self.settings.alpha_over_rank
        adapted = {n: r for n, r in ranks.items() if r > 0 and not parse_format(formats[n]).is_base}
        if init == "kaiming" or not adapted:
            return Prepared({}, {})
        if init != "cloq":
            for done, (name, rank) in enumerate(adapted.items(), start=1):
                made = self._decompose(name, OwnBase(formats[name], f"{init}-r{rank}", {}), init, rank)
                if made and progress is not None:
                    progress("initialise", done, len(adapted))
            return Prepared({n: self._own[n][1] for n in adapted}, {n: self._own[n][0] for n in adapted})
        missing = {formats[n] for n, r in adapted.items() if self._known(n, formats[n], r, nearest) is None}
        if missing:
            self._weigh(sorted(missing), max(KEPT_RANK, *adapted.values()), nearest, progress)
        return Prepared({n: self._factors[self._key(n, formats[n], nearest)].first(r).as_adapter(scale)
                         for n, r in adapted.items()}, {})

    def _weigh(self, formats: Sequence[str], rank: int, nearest: bool, progress: Progress | None) -> None:
        """Make the factors of ``cloq``, of ``rank`` where a linear is as wide, in one pass over the text: of every
        quantised linear of the model in ``formats``."""
        every, done, text = [linear.name for linear in self.bank.spec.linears], 0, self._weighing

        def approximate(sharing: list[str], moments: Tensor) -> None:
            nonlocal done
            root = Inputs.of(moments).root()
            for name in sharing:
                for fmt in formats:
                    error = self._error(name, fmt, nearest)
                    factors = nearest_for_inputs(error, root, min(*error.shape, rank))
                    self._keep(name, fmt, nearest, Factors(factors.down.cpu(), factors.up.cpu()))
            done += len(sharing)
            if progress is not None:
                progress("initialise", done, len(every))

        self.bank.restore_dense()
        each_moments(self.bank.model, every, text.ids, self.bank.device, approximate, text.is_text)

    def _key(self, name: str, fmt: str, nearest: bool) -> tuple[str, str, bool]:
        """Return the identity of a linear's codes; the last part says that they are the library's and not the chosen
        ones."""
        return name, fmt, nearest and self.bank.has_chosen(name, fmt)

    def _error(self, name: str, fmt: str, nearest: bool) -> Tensor:
        """Return ``W - Q(W)`` of one linear, ``out x in``."""
        weight, form = full_weight(self.bank, name), parse_format(fmt)
        others = self._key(name, fmt, nearest)[-1]
        state = self.bank.nearest(name, form) if others else self.bank.state(name, fmt)
        return weight - unpacked(self.bank, form, state, weight.shape)

    def _on_disk(self, key: tuple[str, str, bool]) -> TensorStore | None:
        """Return the store, whose key covers the text of chosen codes and no other."""
        return None if self.bank.rounding is None or key[-1] else self._store

    def _known(self, name: str, fmt: str, rank: int, nearest: bool) -> Factors | None:
        """Return factors of at least ``rank`` that were made, or are on disk."""
        key = self._key(name, fmt, nearest)
        found = self._factors.get(key)
        if (found is None or len(found.down) < rank) and (store := self._on_disk(key)) is not None:
            stored = store.load(f"{name}.{fmt}")
            found = None if stored is None else Factors(**stored)
        if found is None or len(found.down) < rank:
            return None
        self._factors[key] = found
        return found

    def _keep(self, name: str, fmt: str, nearest: bool, factors: Factors) -> None:
        key = self._key(name, fmt, nearest)
        self._factors[key] = factors
        if (store := self._on_disk(key)) is not None:
            store.save(f"{name}.{fmt}", {"down": factors.down, "up": factors.up})

    def _decompose(self, name: str, wanted: OwnBase, init: str, rank: int) -> bool:
        """Let a function from outside initialise a linear, unless the last allocation had the same; return whether it
        did. Results are kept on the host: a device has no room for them."""
        if name in self._own and self._own[name][0] == wanted:
            return False
        start: Start = pkgutil.resolve_name(init)
        state, (down, up) = start(full_weight(self.bank, name), requantise_in(self.bank, parse_format(wanted.fmt)),
                                  rank, self.settings.alpha_over_rank)
        self._own[name] = replace(wanted, state={k: t.to("cpu") for k, t in state.items()}), (down.cpu(), up.cpu())
        return True


def full_weight(bank: LayerBank, name: str) -> Tensor:
    """Return the original weight of one linear, ``out x in``, on the bank's device in fp32."""
    return bank.dense_weight(name).to(bank.device, torch.float32)


def unpacked(bank: LayerBank, fmt: StorageFormat, state: State, shape: Sequence[int]) -> Tensor:
    """Return the weight of a layer of ``shape`` (out, in) over ``state``, in fp32 on the bank's device."""
    layer = backend_of(fmt).build({k: t.to(bank.device) for k, t in state.items()}, fmt, (shape[0], shape[1]), None,
                                  bank.compute_dtype)
    return packed(layer).unpack().float()


def requantise_in(bank: LayerBank, fmt: StorageFormat) -> Requantise:
    """Return a function that quantises any matrix on the bank's device and unpacks it again."""
    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(fmt).pack(matrix, fmt, bank.device)
        return state, unpacked(bank, fmt, state, matrix.shape)

    return requantise
