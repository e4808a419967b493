"""Adapter initialisations: random, or from quantisation errors."""

from collections.abc import Mapping, Sequence
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
from qra_bo.utils.errors import OracleError

Pair = tuple[Tensor, Tensor]
"""A (``r x in``) and B (``out x r``) in fp32."""
KEPT_RANK = 32
"""Least rank up to which factors are kept, so that most searches make them once."""


class Prepared(NamedTuple):
    """A and B of adapted linears that do not start at random, and linears with quantised weights of their own: none
    here, but of starts that decompose a weight (``bench.table1.decompositions``)."""

    pairs: Mapping[str, Pair]
    bases: Mapping[str, OwnBase]


class Initialiser:
    """Initialises the adapters of any allocation; results that allocations share are made once.

    ``kaiming`` leaves A to LoRA's own draw, and B at 0. With ``cloq`` the product scale B A is nearest to W - Q(W) for
    the linear's inputs. Both are rank-nested, and the base is Q(W). Linears in 16 bits lose nothing and start at
    random. Nothing is drawn from torch's generators. The tokens of the one pass of ``cloq`` count with the profile. (It
    takes one more for every allocation that brings in new formats or ranks above 32.)

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

        Raises:
            OracleError: If there is no such initialisation.
        """
        init, scale = init or self.settings.init, self.settings.alpha_over_rank
        adapted = {n: r for n, r in ranks.items() if r > 0 and not parse_format(formats[n]).is_base}
        if init == "kaiming" or not adapted:
            return Prepared({}, {})
        if init != "cloq":
            raise OracleError(f"adapters start by kaiming or cloq; got {init!r}")
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


def full_weight(bank: LayerBank, name: str) -> Tensor:
    """Return the original weight of one linear, ``out x in``, on the bank's device in fp32."""
    return bank.dense_weight(name).to(bank.device, torch.float32)


def unpacked(bank: LayerBank, fmt: StorageFormat, state: State, shape: Sequence[int]) -> Tensor:
    """Return the weight of a layer of ``shape`` (out, in) over ``state``, in fp32 on the bank's device."""
    layer = backend_of(fmt).build({k: t.to(bank.device) for k, t in state.items()}, fmt, (shape[0], shape[1]), None,
                                  bank.compute_dtype)
    return packed(layer).unpack().float()
