"""How adapters start: from dice, what quantisation lost, the weights, the activations, or the gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qra_bo.finetune.adapters.factor_store import FactorStore
from qra_bo.finetune.adapters.lora import AdapterSettings
from qra_bo.finetune.adapters.lowrank import Factors, Requantise, leading, low_rank_first, quantised_first
from qra_bo.finetune.profiling.gradients import CalibrationText, gradient_directions
from qra_bo.finetune.profiling.inputs import each_input
from qra_bo.finetune.quantization.bank import LayerBank, OwnBase
from qra_bo.finetune.quantization.base import State, packed
from qra_bo.finetune.quantization.registry import backend_of
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.space import StorageFormat

Start = tuple[Tensor, Tensor]
"""A (``r x in``) and B (``out x r``) in fp32."""
KEPT_RANK = 32
"""Least rank up to which factors and directions are kept, so that most searches make them once."""
MEASURED = ("eva", "gradient")
"""Starts that look at a text, and so differ from dice over 16 bits too."""
GRADIENT_NORM = 0.4
"""Frobenius norm of A with ``gradient``, whose rows are equally long. Measured on the validation split, two seeds each:
at rank 4 rows of 0.2 were the best of 0.08, 0.2, 0.4 and 1, at rank 9 0.13 of 0.13, 0.2 and 0.4, at rank 1 0.4 of 0.08,
0.2 and 0.4."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an allocation's adapters start from.

    Args:
        starts: A and B of every adapted linear that does not start from dice.
        bases: Linears whose quantised weights are not those of the bank.
    """

    starts: Mapping[str, Start]
    bases: Mapping[str, OwnBase]


class Initialiser:
    """Makes the starts of any allocation; what can be shared between allocations is made once.

    ==============  ==========================================================  =================  ===========
    ``init``        scale B A                                                   base               rank-nested
    ==============  ==========================================================  =================  ===========
    kaiming         0 (A from dice)                                             Q(W)               yes
    residual_svd    SVD_r(W - Q(W)), rows of A as long as kaiming's             Q(W)               yes
    eva             0 (A: leading right singular vectors of the inputs)         Q(W)               yes
    gradient        0 (A: leading right singular vectors of W's gradient)       Q(W)               but for length
    loftq           SVD_r(W - Q), ``iterations`` alternations from Q(W)         Q(W - scale B A)   no
    lq_lora         SVD_r(W - Q), alternations from SVD_r(W) while they help    Q(W - scale B A)   no
    pissa           SVD_r(W)                                                    Q(W - scale B A)   no
    ==============  ==========================================================  =================  ===========

    Linears in 16 bits lose nothing and start from dice, but for ``eva`` and ``gradient``. Ranks stay those of the
    allocation: EVA's own redistribution of ranks is what a search does here. Nothing is drawn from torch's generators.
    Where the base changes, the manifest keeps the packed weights. What this takes shows as progress and in the
    evaluation's ``switch_seconds``; the tokens of the one pass that ``eva`` and ``gradient`` take count with the
    profile (ranks above 32 take one more for every power of two).

    Args:
        bank: The model's quantised linears.
        settings: How adapters are built.
        text: Of ``eva``'s and ``gradient``'s pass.
        store: Where decomposed residuals are kept across runs, or ``None``.
    """

    def __init__(self, bank: LayerBank, settings: AdapterSettings, text: CalibrationText,
                 store: FactorStore | None) -> None:
        self.bank, self.settings, self.store = bank, settings, store
        self._text = text
        self._residuals: dict[tuple[str, str, bool], Factors] = {}
        self._own: dict[str, tuple[OwnBase, Start]] = {}
        self._directions: dict[int, dict[str, Tensor]] = {}

    def with_start(self, init: str) -> "Initialiser":
        """The same for another start."""
        return Initialiser(self.bank, replace(self.settings, init=init), self._text, self.store)

    @property
    def forward_tokens(self) -> int:
        """Tokens that go forward once for this start, whatever is evaluated."""
        return self._text.ids.numel() if self.settings.init == "eva" else 0

    @property
    def training_tokens(self) -> int:
        """Tokens that go forward and backward once for this start, whatever is evaluated."""
        return self._text.ids.numel() if self.settings.init == "gradient" else 0

    def prepare(self, formats: Mapping[str, str], ranks: Mapping[str, int], progress: Progress | None,
                nearest: bool = False) -> Prepared:
        """Starts of every linear with an adapter.

        Args:
            formats: Format of every linear.
            ranks: Rank of every linear; 0 or missing: no adapter.
            progress: Told after every linear that took a decomposition.
            nearest: Whether the base has the libraries' codes, whatever the bank's are.
        """
        init = self.settings.init
        todo = [n for n, r in ranks.items() if r > 0 and (parse_format(formats[n]).bits < 16 or init in MEASURED)]
        if init == "kaiming" or not todo:
            return Prepared({}, {})
        if init in MEASURED:
            return Prepared({name: self._measured(name, ranks[name], progress) for name in todo}, {})
        if init == "residual_svd":
            starts = {}
            for done, name in enumerate(todo, start=1):
                factors, made = self._residual(name, formats[name], ranks[name],
                                               nearest and self.bank.has_chosen(name, formats[name]))
                starts[name] = factors.first(ranks[name]).as_adapter(self.settings.alpha_over_rank, "kaiming")
                if made and progress is not None:
                    progress("initialise", done, len(todo))
            return Prepared(starts, {})
        for done, name in enumerate(todo, start=1):
            tag = f"{init}-r{ranks[name]}"
            if name not in self._own or (self._own[name][0].fmt, self._own[name][0].tag) != (formats[name], tag):
                self._own[name] = self._decompose(name, formats[name], ranks[name], tag)
                if progress is not None:
                    progress("initialise", done, len(todo))
        return Prepared({n: self._own[n][1] for n in todo}, {n: self._own[n][0] for n in todo})

    def _residual(self, name: str, fmt: str, rank: int, nearest: bool) -> tuple[Factors, bool]:
        """Factors of ``W - Q(W)`` of at least ``rank``, and whether they were made now; with ``nearest`` of what the
        format's library makes of W, which is for a reference and not kept on disk."""
        key, store = (name, fmt, nearest), None if nearest else self.store
        known = self._residuals.get(key)
        if known is not None and len(known.down) >= rank:
            return known, False
        found = store.load(name, fmt, rank) if store else None
        if found is None:
            weight, form = full_weight(self.bank, name), parse_format(fmt)
            kept = min(*weight.shape, max(KEPT_RANK, rank))
            state = self.bank.nearest(name, form) if nearest else self.bank.state(name, fmt)
            factors = leading(weight - unpacked(self.bank, form, state, weight.shape), kept)
            self._residuals[key] = Factors(factors.down.cpu(), factors.up.cpu())
            if store:
                store.save(name, fmt, self._residuals[key])
        else:
            self._residuals[key] = found
        return self._residuals[key], found is None

    def _decompose(self, name: str, fmt: str, rank: int, tag: str) -> tuple[OwnBase, Start]:
        weight, form = full_weight(self.bank, name), parse_format(fmt)
        requantise = requantise_in(self.bank, form)
        iterations = 1 if self.settings.init == "pissa" else self.settings.iterations
        how = quantised_first if self.settings.init == "loftq" else low_rank_first
        found = how(weight, requantise, rank, iterations)
        base = OwnBase(form.name, tag, {key: t.to("cpu") for key, t in found.state.items()})
        down, up = found.factors.as_adapter(self.settings.alpha_over_rank, "even")
        return base, (down.cpu(), up.cpu())  # kept for the next evaluation: a device is not planned to hold them

    def _measured(self, name: str, rank: int, progress: Progress | None) -> Start:
        kept = max(KEPT_RANK, 1 << (rank - 1).bit_length())  # what is read off must not depend on what was asked before
        if kept not in self._directions:
            names, text = [linear.name for linear in self.bank.spec.linears], self._text
            if self.settings.init == "eva":
                self._directions[kept] = input_directions(self.bank, names, text.ids, kept, progress)
            else:
                self._directions[kept] = gradient_directions(self.bank, names, text, kept, progress)
        down = self._directions[kept][name][:rank]
        length = GRADIENT_NORM / rank ** 0.5 if self.settings.init == "gradient" else 1.0
        return down * length, torch.zeros(self.bank.dense_weight(name).shape[0], len(down))


def full_weight(bank: LayerBank, name: str) -> Tensor:
    """The original weight of one linear, ``out x in``, on the bank's device in fp32."""
    return bank.dense_weight(name).to(bank.device, torch.float32)


def unpacked(bank: LayerBank, fmt: StorageFormat, state: State, shape: Sequence[int]) -> Tensor:
    """What a layer of ``shape`` (out, in) over ``state`` multiplies with, in fp32 on the bank's device."""
    layer = backend_of(fmt).build({k: t.to(bank.device) for k, t in state.items()}, fmt, (shape[0], shape[1]), None,
                                  bank.compute_dtype)
    return packed(layer).unpack().float()


def requantise_in(bank: LayerBank, fmt: StorageFormat) -> Requantise:
    """Quantisation of any matrix on the bank's device, and back."""
    def requantise(matrix: Tensor) -> tuple[State, Tensor]:
        state = backend_of(fmt).pack(matrix, fmt, bank.device)
        return state, unpacked(bank, fmt, state, matrix.shape)

    return requantise


def input_directions(bank: LayerBank, names: Sequence[str], ids: Tensor, rank: int,
                     progress: Progress | None) -> dict[str, Tensor]:
    """Leading right singular vectors, ``k x in``, of the dense model's inputs to every linear (EVA, arXiv 2410.07170).

    One pass over ``ids`` (``n x length``); an input that several linears share is decomposed once. ``k`` is ``rank``,
    or the width of an input that has fewer.
    """
    found: dict[str, Tensor] = {}

    def directions(_name: str, inputs: Tensor) -> Tensor:
        width = inputs.shape[-1]
        return leading(inputs.reshape(-1, width), min(rank, width)).down.cpu()

    def keep(name: str, down: Tensor) -> None:
        found[name] = down
        if progress is not None:
            progress("initialise", len(found), len(names))

    bank.restore_dense()
    each_input(bank.model, names, ids.to(bank.device), directions, keep)
    return found
