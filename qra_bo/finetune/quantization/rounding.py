"""Choice of codes by GPTQ (arXiv 2210.17323) instead of the libraries' round-to-nearest.

The loss of a layer depends on the error of its outputs, ``tr(E M E^T)`` for errors ``E`` (``out x in``) of the weights
and second moments ``M`` of inputs (``in x in``). Codes are chosen column by column, and the columns that are still free
compensate the error of a rounded one. Scales stay those of the library: only the codes differ.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.models.activations import each_input
from qra_bo.finetune.quantization.base import Grid, PackedLinear, State, backend_of
from qra_bo.oracle.protocol import Progress
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import DeviceError, ModelError, OracleError

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean (the paper's)."""
BLOCK = 128
"""Columns after which their errors are applied to all later ones at once (the paper's)."""
ROWS = 2048
"""Inputs that are widened to fp32 at a time."""
CHOOSE = "choose codes"
Pack = Callable[[str, StorageFormat], State]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Factored second moments of inputs: columns by decreasing moment, and the upper Cholesky factor of the inverse
    moments in that order, ``in x in``. The most important columns are rounded while most others are free."""

    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> "Inputs":
        """Factor ``X^T X`` (``in x in``) of inputs ``X`` (``tokens x in``).

        In fp64 on the host: a GPU that is too small for its model has no room for it.
        """
        damped = moments.to("cpu", torch.float64, copy=True)
        diagonal = damped.diagonal()
        mean = float(diagonal.mean())
        diagonal += DAMPING * mean if mean > 0 else 1.0  # inputs that are always 0
        order = torch.argsort(diagonal, descending=True, stable=True)
        lower = torch.linalg.cholesky(damped[order][:, order])
        factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
        return cls(order.to(moments.device), factor.to(moments.device, torch.float32))


def compensated_codes(weight: Tensor, grid: Grid, inputs: Inputs) -> Tensor:
    """Return the codes, ``out x in`` (uint8), of ``weight`` (``out x in``) among the values of ``grid``."""
    rest, sorted_grid = weight.float()[:, inputs.order], grid.columns(inputs.order)
    factor, n = inputs.factor, weight.shape[1]
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        part, within = rest[:, first:last].clone(), factor[first:last, first:last]
        errors = torch.empty_like(part)
        for j in range(last - first):
            column = sorted_grid.columns(first + j)
            chosen = column.nearest(part[:, j])
            codes[:, first + j] = chosen.to(torch.uint8)
            errors[:, j] = (part[:, j] - column.values(chosen)) / within[j, j]
            part[:, j:] -= errors[:, j, None] * within[j, None, j:]
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes[:, torch.argsort(inputs.order)].contiguous()


class Rounding:
    """Codes of every linear in some formats, chosen against the inputs that the linear gets on a text.

    One pass makes all of them, in the order of the model; the second moments of one layer are alive at a time.

    Args:
        model: The model, dense when the codes are made.
        linears: Names of the linears.
        formats: Formats for which codes are chosen; those without free codes keep the library's.
        ids: Token ids of the text, ``n x length``.
        device: Device on which codes are chosen.
        store: Store of codes across runs, or ``None``.
    """

    def __init__(self, model: Any, linears: Sequence[str], formats: Sequence[StorageFormat], ids: Tensor,
                 device: torch.device, store: TensorStore | None) -> None:
        self.model, self.linears, self.formats, self.device, self.store = model, tuple(linears), formats, device, store
        self._ids = ids
        self._states: dict[tuple[str, str], State] = {}
        self._chosen: set[tuple[str, str]] = set()
        self._ready = False

    @property
    def forward_tokens(self) -> int:
        """Tokens that go forward once."""
        return self._ids.numel()

    def state(self, name: str, fmt: StorageFormat, pack: Pack) -> State:
        """Return the packed tensors of a linear, on the host, with chosen codes where there are any; kept for one call.
        """
        if fmt.name not in {f.name for f in self.formats}:
            return pack(name, fmt)
        self.prepare(pack, None)
        found = self._states.pop((name, fmt.name), None)
        return pack(name, fmt) if found is None else found

    def chose(self, name: str, fmt: str) -> bool:
        """Whether a linear's codes in a format are other than its library's."""
        return (name, fmt) in self._chosen

    def prepare(self, pack: Pack, progress: Progress | None) -> None:
        """Choose all codes, or read them from the store; once. Of several processes one chooses, the others wait.

        Raises:
            OracleError: If they are still to be chosen and the model is not dense any more.
            ModelError: If inputs of a layer are not finite.
            DeviceError: If the device has not the memory.
        """
        if self._ready:
            return
        missing = self._missing(self.linears)

        def waiting() -> None:
            if progress is not None and self.store is not None:
                progress(CHOOSE, self.store.count, len(self.linears))

        if missing:
            with nullcontext() if self.store is None else self.store.alone(waiting):
                still = self._missing(missing)  # another process may have made some of them meanwhile
                if still:
                    self._make(still, pack, progress)
        self._chosen = set(self._states)
        self._ready = True

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Read the codes of ``names`` from the store; return the names that it lacks."""
        missing = []
        for name in names:
            tensors = None if self.store is None else self.store.load(name)
            if tensors is None:
                missing.append(name)
            self._hold(name, tensors or {})
        return missing

    def _hold(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Take a linear's codes as the store returns them: mapped from its files, and not in memory of this process."""
        for key, tensor in tensors.items():
            fmt, _, part = key.partition(":")
            self._states.setdefault((name, fmt), {})[part] = tensor

    def _make(self, linears: Sequence[str], pack: Pack, progress: Progress | None) -> None:
        modules = {name: self.model.get_submodule(name) for name in linears}
        if any(isinstance(module, PackedLinear) for module in modules.values()):
            raise OracleError("codes are chosen on the dense model, and some of its linears are already quantised")
        done = 0

        def factored(name: str, inputs: Tensor) -> Inputs:
            moments = second_moments(inputs)
            if not torch.isfinite(moments).all():
                raise ModelError(f"codes can't be chosen: inputs of {name} are not finite in the 16-bit model; use "
                                 "another dtype, or quantizer.rounding=rtn")
            return Inputs.of(moments)

        def choose(name: str, inputs: Inputs) -> None:
            nonlocal done
            weight, stored = modules[name].weight.detach().to(self.device), {}
            for fmt in self.formats:
                backend = backend_of(fmt)
                state = {key: tensor.to(self.device) for key, tensor in pack(name, fmt).items()}
                grid = backend.grid(state, fmt, (weight.shape[0], weight.shape[1]))
                if grid is not None:  # else no code is free
                    chosen = backend.recoded(state, fmt, compensated_codes(weight, grid, inputs))
                    self._states[name, fmt.name] = {key: tensor.to("cpu") for key, tensor in chosen.items()}
                    stored.update({f"{fmt.name}:{k}": t for k, t in self._states[name, fmt.name].items()})
            if self.store is not None:
                self._hold(name, self.store.mapped(name, stored))
            done += 1
            if progress is not None:
                progress(CHOOSE, done, len(linears))

        try:
            each_input(self.model, linears, self._ids.to(self.device), factored, choose)
        except torch.OutOfMemoryError as error:  # not the result of any one allocation
            raise DeviceError(f"choosing codes on {self.forward_tokens:,} tokens at once takes more than {self.device} "
                              "holds; lower quantizer.tokens, or use quantizer.rounding=rtn") from error


def second_moments(inputs: Tensor) -> Tensor:
    """Return ``X^T X``, ``in x in`` in fp32, of inputs ``... x in``."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    moments = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for part in torch.split(rows, ROWS):
        wide = part.float()
        moments += wide.T @ wide
    return moments
