"""Choice of codes by GPTQ instead of the libraries' round-to-nearest."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.models.inputs import each_input
from qra_bo.finetune.quantization.base import PackedLinear, State
from qra_bo.finetune.quantization.gptq import Inputs, compensated_codes
from qra_bo.finetune.quantization.registry import backend_of
from qra_bo.oracle.protocol import Progress
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import DeviceError, ModelError, OracleError

ROWS = 2048
"""Inputs that are widened to fp32 at a time."""
CHOOSE = "choose codes"
Pack = Callable[[str, StorageFormat], State]


class Rounding:
    """Codes of every linear in some formats, chosen against the inputs that the linear gets on a text.

    All of them are made in one pass, layer by layer in the order of the model: the second moments of one layer are
    alive until the next inputs come.

    Args:
        model: Dense when the codes are made.
        linears: Their names.
        formats: For which codes are chosen; formats without free codes keep those of their library.
        ids: Token ids of the text, ``n x length``.
        device: Where codes are chosen.
        store: Where they are kept across runs, or ``None``.
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
        """Tokens that go forward once for it."""
        return self._ids.numel()

    def state(self, name: str, fmt: StorageFormat, pack: Pack) -> State:
        """Return packed tensors of a linear, on the host: ``pack``'s, with chosen codes where there are any.

        Each is kept until it is asked for, once.
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
        if missing:
            with nullcontext() if self.store is None else self.store.alone(lambda: self._wait(progress)):
                still = self._missing(missing)  # another process may have made some of them meanwhile
                if still:
                    self._make(still, pack, progress)
        self._chosen = set(self._states)
        self._ready = True

    def _wait(self, progress: Progress | None) -> None:
        if progress is not None and self.store is not None:
            progress(CHOOSE, self.store.count, len(self.linears))

    def _missing(self, names: Sequence[str]) -> list[str]:
        """Read the codes of ``names`` from the store; return the names that it lacks."""
        missing = []
        for name in names:
            tensors = None if self.store is None else self.store.load(name)
            if tensors is None:
                missing.append(name)
            for key, tensor in (tensors or {}).items():
                fmt, _, part = key.partition(":")
                self._states.setdefault((name, fmt), {})[part] = tensor
        return missing

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
                state = self._with_codes(pack(name, fmt), fmt, weight, inputs)
                if state is not None:
                    self._states[name, fmt.name] = state
                    stored.update({f"{fmt.name}:{part}": tensor for part, tensor in state.items()})
            if self.store is not None:
                self.store.save(name, stored)
            done += 1
            if progress is not None:
                progress(CHOOSE, done, len(linears))

        try:
            each_input(self.model, linears, self._ids.to(self.device), factored, choose)
        except torch.OutOfMemoryError as error:  # not the result of any one allocation
            raise DeviceError(f"choosing codes on {self.forward_tokens:,} tokens at once takes more than {self.device} "
                              "holds; lower quantizer.tokens, or use quantizer.rounding=rtn") from error

    def _with_codes(self, state: State, fmt: StorageFormat, weight: Tensor, inputs: Inputs) -> State | None:
        """Return ``state`` with chosen codes, on the host; ``None`` where none is free."""
        backend, there = backend_of(fmt), {key: tensor.to(self.device) for key, tensor in state.items()}
        grid = backend.grid(there, fmt, (weight.shape[0], weight.shape[1]))
        if grid is None:
            return None
        chosen = backend.recoded(there, fmt, compensated_codes(weight, grid, inputs))
        return {key: tensor.to("cpu") for key, tensor in chosen.items()}


def second_moments(inputs: Tensor) -> Tensor:
    """Return ``X^T X``, ``in x in`` in fp32, of inputs ``... x in``."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    moments = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for part in torch.split(rows, ROWS):
        wide = part.float()
        moments += wide.T @ wide
    return moments
