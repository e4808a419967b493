"""Adapter initialisations: random, from quantisation errors, weights, activations, or gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qra_bo.finetune.adapters.lora import AdapterSettings
from qra_bo.finetune.adapters.lowrank import (
    Factors,
    Requantise,
    leading,
    low_rank_first,
    nearest_for_inputs,
    quantised_first,
)
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.models.activations import each_input
from qra_bo.finetune.quantization.bank import LayerBank, OwnBase
from qra_bo.finetune.quantization.base import State, backend_of, packed
from qra_bo.finetune.quantization.gptq import Inputs
from qra_bo.finetune.quantization.rounding import Rounding, second_moments
from qra_bo.finetune.training.loss import CalibrationText, each_gradient
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.space import StorageFormat

SKETCH_ROWS = 128
"""Rows of a gradient's sketch for up to half as many directions; two for every direction beyond."""
Pair = tuple[Tensor, Tensor]
"""A (``r x in``) and B (``out x r``) in fp32."""
KEPT_RANK = 32
"""Least rank up to which factors and directions are kept, so that most searches make them once."""
GRADIENT_NORM = 0.4
"""Frobenius norm of A with ``gradient``, whose rows are equally long; the best on the validation split (two seeds) at
ranks 1, 4 and 9."""


def input_directions(bank: LayerBank, names: Sequence[str], text: CalibrationText, rank: int,
                     progress: Progress | None) -> dict[str, Tensor]:
    """Return the leading right singular vectors, ``k x in``, of the dense model's inputs to every linear.

    EVA (arXiv 2410.07170). One pass over the text; an input that several linears share is decomposed once. ``k`` is
    ``rank``, or the width of an input that has fewer.
    """
    found: dict[str, Tensor] = {}

    def decompose(sharing: list[str], inputs: Tensor) -> None:
        width = inputs.shape[-1]
        found.update(dict.fromkeys(sharing, leading(inputs.reshape(-1, width), min(rank, width)).down.cpu()))
        if progress is not None:
            progress("initialise", len(found), len(names))

    bank.restore_dense()
    each_input(bank.model, names, text.ids.to(bank.device), decompose, text.is_text)
    return found


def gradient_directions(bank: LayerBank, names: Sequence[str], text: CalibrationText, rank: int,
                        progress: Progress | None) -> dict[str, Tensor]:
    """Return about the leading right singular vectors, ``k x in``, of the dense weights' summed gradients.

    An adapter with B = 0 learns fastest along these at first. LoRA-GA (arXiv 2407.05000) starts both factors from the
    gradient's singular vectors and subtracts their product from the weights; here B is 0 and the base stays as it is.
    A sketch of each gradient's rows is kept, ``S G`` with a Gaussian ``S`` (Halko, Martinsson and Tropp, 2011), or the
    gradient itself where it has no more rows. The directions of one rank are the first of a larger one, up to half of
    ``SKETCH_ROWS``. ``k`` is ``rank``, or less where a linear is narrower.
    """
    sketches: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor, x: Tensor) -> None:
        shape = gradient.shape[1], max(SKETCH_ROWS, 2 * rank)
        # Drawn by the linear's name alone; the identity where that is no larger.
        rng = np.random.default_rng([*name.encode()])
        draws = np.eye(shape[0]) if shape[0] <= shape[1] else rng.standard_normal(shape)
        mixer = torch.from_numpy(draws.astype(np.float32)).to(gradient.device)
        part = ((gradient @ mixer).t() @ x).cpu()  # the memory plan of a device has no room for all of them
        sketches[name] = sketches[name] + part if name in sketches else part

    bank.restore_dense()
    each_gradient(bank.model, names, text, bank.device, add,
                  lambda done, n: None if progress is None else progress("initialise", done, n))
    return {name: leading(sketch, min(rank, *sketch.shape)).down for name, sketch in sketches.items()}


DIRECTIONS = {"eva": input_directions, "gradient": gradient_directions}
"""Initialisations measured on a text, which differ from the random one over 16 bits too."""
DECOMPOSITIONS = {"loftq": quantised_first, "lq_lora": low_rank_first, "pissa": low_rank_first}
"""Initialisations that change the base to ``Q(W - scale B A)``."""


class Prepared(NamedTuple):
    """A and B of adapted linears that do not start at random, and linears with quantised weights of their own."""

    pairs: Mapping[str, Pair]
    bases: Mapping[str, OwnBase]


class Initialiser:
    """Initialises the adapters of any allocation; results that allocations share are made once.

    ==============  ==========================================================  =================  ===========
    ``init``        scale B A                                                   base               rank-nested
    ==============  ==========================================================  =================  ===========
    kaiming         0 (A random)                                                Q(W)               yes
    residual_svd    SVD_r(W - Q(W)), rows of A as long as kaiming's             Q(W)               yes
    cloq            the same, nearest for the linear's inputs                   Q(W)               yes
    eva             0 (A: leading right singular vectors of the inputs)         Q(W)               yes
    gradient        0 (A: leading right singular vectors of W's gradient)       Q(W)               but for length
    loftq           SVD_r(W - Q), ``iterations`` alternations from Q(W)         Q(W - scale B A)   no
    lq_lora         SVD_r(W - Q), alternations from SVD_r(W) while they help    Q(W - scale B A)   no
    pissa           SVD_r(W)                                                    Q(W - scale B A)   no
    ==============  ==========================================================  =================  ===========

    Linears in 16 bits lose nothing and start at random, but for ``eva`` and ``gradient``. Ranks stay those of the
    allocation: the search does what EVA's own redistribution of ranks does. Nothing is drawn from torch's generators.
    The tokens of the one pass of ``cloq``, ``eva`` and ``gradient`` count with the profile. (Ranks above 32 take one
    more for every power of two, and ``cloq`` one for every allocation that brings in new formats.)

    Args:
        bank: The model's quantised linears.
        settings: How adapters are built.
        text: Calibration text of ``eva`` and ``gradient``; ``cloq`` takes the longer one that codes were chosen on, if
            there is one.
        store: Store of decomposed residuals across runs, or ``None``.
    """

    def __init__(self, bank: LayerBank, settings: AdapterSettings, text: CalibrationText,
                 store: TensorStore | None) -> None:
        self.bank, self.settings, self.store, self._text = bank, settings, store, text
        self._residuals: dict[tuple[str, str, bool], Factors] = {}
        self._own: dict[str, tuple[OwnBase, Pair]] = {}
        self._directions: dict[int, dict[str, Tensor]] = {}

    def with_init(self, init: str) -> "Initialiser":
        """Return an initialiser of the same model with another initialisation."""
        return Initialiser(self.bank, replace(self.settings, init=init), self._text, self.store)

    @property
    def forward_tokens(self) -> int:
        """Tokens that go forward once for this initialisation."""
        return {"eva": self._text.ids, "cloq": self._weighing.ids}.get(self.settings.init, torch.empty(0)).numel()

    @property
    def training_tokens(self) -> int:
        """Tokens that go forward and backward once for this initialisation."""
        return self._text.ids.numel() if self.settings.init == "gradient" else 0

    def prepare(self, formats: Mapping[str, str], ranks: Mapping[str, int], progress: Progress | None,
                nearest: bool = False) -> Prepared:
        """Initialise every linear with an adapter.

        Args:
            formats: Format of every linear.
            ranks: Rank of every linear; 0 or missing: no adapter.
            progress: Called after every linear that took a decomposition.
            nearest: Whether the base has the libraries' codes.
        """
        init, pairs, bases = self.settings.init, {}, {}
        if init == "kaiming":
            return Prepared({}, {})
        todo = [n for n, r in ranks.items() if r > 0 and (init in DIRECTIONS or parse_format(formats[n]).bits < 16)]
        if init == "cloq":
            self._weigh(todo, formats, ranks, nearest, progress)
        for done, name in enumerate(todo, start=1):
            made, rank = False, ranks[name]
            if init in DIRECTIONS:
                pairs[name] = self._measured(name, rank, progress)
            elif init in ("residual_svd", "cloq"):
                factors, made = self._residual(name, formats[name], rank, self._nearest(name, formats[name], nearest))
                pairs[name] = factors.first(rank).as_adapter(self.settings.alpha_over_rank, "kaiming")
            else:
                wanted = OwnBase(formats[name], f"{init}-r{rank}", {})
                made = name not in self._own or self._own[name][0] != wanted
                if made:
                    self._own[name] = self._decompose(name, wanted, rank)
                bases[name], pairs[name] = self._own[name]
            if made and progress is not None:
                progress("initialise", done, len(todo))
        return Prepared(pairs, bases)

    def _nearest(self, name: str, fmt: str, nearest: bool) -> bool:
        """Whether a linear's codes are to be the library's, and differ from those that were chosen."""
        return nearest and self.bank.has_chosen(name, fmt)

    def _residual(self, name: str, fmt: str, rank: int, nearest: bool) -> tuple[Factors, bool]:
        """Return factors of ``W - Q(W)`` of at least ``rank``, and whether they were made now.

        With ``nearest`` Q has the library's own codes: that is for a reference, and not kept on disk.
        """
        found = self._known(name, fmt, rank, nearest)
        if found is not None:
            return found, False
        error = self._error(name, fmt, nearest)
        return self._keep(name, fmt, nearest, leading(error, min(*error.shape, max(KEPT_RANK, rank)))), True

    def _weigh(self, names: Sequence[str], formats: Mapping[str, str], ranks: Mapping[str, int], nearest: bool,
               progress: Progress | None) -> None:
        """Make the factors of ``cloq`` that are missing in one pass over the text: of every quantised linear of the
        model, in all formats of the allocation in which one of its own is missing."""
        missing = {formats[n] for n in names
                   if self._known(n, formats[n], ranks[n], self._nearest(n, formats[n], nearest)) is None}
        if not missing:
            return
        every, done, most = [linear.name for linear in self.bank.spec.linears], 0, max(ranks.values())

        def approximate(sharing: list[str], inputs: Tensor) -> None:
            nonlocal done
            root = Inputs.of(second_moments(inputs)).root()
            for name in sharing:
                for fmt in sorted(missing):
                    other_codes = self._nearest(name, fmt, nearest)
                    error = self._error(name, fmt, other_codes)
                    self._keep(name, fmt, other_codes,
                               nearest_for_inputs(error, root, min(*error.shape, max(KEPT_RANK, most))))
            done += len(sharing)
            if progress is not None:
                progress("initialise", done, len(every))

        self.bank.restore_dense()
        text = self._weighing
        each_input(self.bank.model, every, text.ids.to(self.bank.device), approximate, text.is_text)

    @property
    def _weighing(self) -> CalibrationText | Rounding:
        """What holds the text that weighs quantisation errors: codes are chosen on the same."""
        return self._text if self.bank.rounding is None else self.bank.rounding

    def _error(self, name: str, fmt: str, nearest: bool) -> Tensor:
        """Return ``W - Q(W)`` of one linear, ``out x in``."""
        weight, form = full_weight(self.bank, name), parse_format(fmt)
        state = self.bank.nearest(name, form) if nearest else self.bank.state(name, fmt)
        return weight - unpacked(self.bank, form, state, weight.shape)

    def _known(self, name: str, fmt: str, rank: int, nearest: bool) -> Factors | None:
        """Return factors of at least ``rank`` that were made, or are on disk."""
        found = self._residuals.get((name, fmt, nearest))
        if (found is None or len(found.down) < rank) and (store := self._store(nearest)) is not None:
            stored = store.load(self._stored_name(name, fmt))
            found = None if stored is None else Factors(**stored)
        if found is None or len(found.down) < rank:
            return None
        self._residuals[name, fmt, nearest] = found
        return found

    def _keep(self, name: str, fmt: str, nearest: bool, factors: Factors) -> Factors:
        found = Factors(factors.down.cpu(), factors.up.cpu())
        if (store := self._store(nearest)) is not None:
            store.save(self._stored_name(name, fmt), {"down": found.down, "up": found.up})
        self._residuals[name, fmt, nearest] = found
        return found

    def _store(self, nearest: bool) -> TensorStore | None:
        """Return the store of factors, which knows the text of the chosen codes and no other."""
        known = self.settings.init == "residual_svd" or self.bank.rounding is not None
        return self.store if known and not nearest else None

    def _stored_name(self, name: str, fmt: str) -> str:
        return f"{name}.{fmt}" if self.settings.init == "residual_svd" else f"{name}.{fmt}.{self.settings.init}"

    def _decompose(self, name: str, wanted: OwnBase, rank: int) -> tuple[OwnBase, Pair]:
        requantise = requantise_in(self.bank, parse_format(wanted.fmt))
        iterations = 1 if self.settings.init == "pissa" else self.settings.iterations
        found = DECOMPOSITIONS[self.settings.init](full_weight(self.bank, name), requantise, rank, iterations)
        base = replace(wanted, state={key: t.to("cpu") for key, t in found.state.items()})
        down, up = found.factors.as_adapter(self.settings.alpha_over_rank, "even")
        return base, (down.cpu(), up.cpu())  # kept for the next trial, for which a device has no room

    def _measured(self, name: str, rank: int, progress: Progress | None) -> Pair:
        kept = max(KEPT_RANK, 1 << (rank - 1).bit_length())  # the result must not depend on earlier requests
        if kept not in self._directions:
            names = [linear.name for linear in self.bank.spec.linears]
            self._directions[kept] = DIRECTIONS[self.settings.init](self.bank, names, self._text, kept, progress)
        down = self._directions[kept][name][:rank]
        length = GRADIENT_NORM / rank ** 0.5 if self.settings.init == "gradient" else 1.0
        return down * length, torch.zeros(self.bank.dense_weight(name).shape[0], len(down))


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
