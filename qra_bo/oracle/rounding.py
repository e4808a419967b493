"""Which codes stand for a model's weights: the nearest, as the libraries choose, or those that lose least (GPTQ)."""

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.errors import ModelError, OracleError
from qra_bo.oracle.protocol import Progress
from qra_bo.oracle.quantizers.base import PackedLinear, QuantizerBackend, State
from qra_bo.oracle.quantizers.gptq import Inputs, compensated_codes
from qra_bo.oracle.quantizers.registry import backend_of
from qra_bo.oracle.tensor_store import TensorStore
from qra_bo.space import StorageFormat

ROWS = 2048
"""Inputs that are widened to fp32 at a time."""
Pack = Callable[[str, StorageFormat], State]


class Rounding:
    """Codes of every linear in some formats, chosen against the inputs that it gets on a text.

    All of them are made in one pass, layer by layer in the order of the model: a layer's second moments are alive
    until the next inputs come.

    Args:
        model: Dense when the codes are made.
        linears: Their names.
        formats: For which codes are chosen; those without free codes are left as they are.
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
        self._lock = RLock()
        self._ready = False

    @property
    def forward_tokens(self) -> int:
        """Tokens that go forward once for it."""
        return self._ids.numel()

    def state(self, name: str, fmt: StorageFormat, pack: Pack) -> State:
        """Packed tensors of a linear, on the host, to be asked for once: ``pack``'s, with chosen codes where there are
        any."""
        if fmt.name not in {f.name for f in self.formats}:
            return pack(name, fmt)
        self.prepare(pack, None)
        found = self._states.pop((name, fmt.name), None)
        return pack(name, fmt) if found is None else found

    def chose(self, name: str, fmt: str) -> bool:
        """Whether a linear's codes in a format are other than its library's."""
        return (name, fmt) in self._chosen

    def prepare(self, pack: Pack, progress: Progress | None) -> None:
        """Choose all codes, or take them from the store; once.

        Raises:
            OracleError: If they are still to be chosen and the model is not dense any more.
            ModelError: If inputs of a layer are not finite.
        """
        with self._lock:
            if self._ready:
                return
            missing = [name for name in self.linears if not self._load(name)]
            if missing:
                self._make(missing, pack, progress)
            self._chosen = set(self._states)
            self._ready = True

    def _load(self, name: str) -> bool:
        tensors = None if self.store is None else self.store.load(name)
        if tensors is None:
            return False
        for key, tensor in tensors.items():
            fmt, _, part = key.partition(":")
            self._states.setdefault((name, fmt), {})[part] = tensor
        return True

    def _make(self, linears: Sequence[str], pack: Pack, progress: Progress | None) -> None:
        def choose(name: str, weight: Tensor, inputs: Inputs) -> None:
            for fmt in self.formats:
                state = self._with_codes(pack(name, fmt), fmt, backend_of(fmt), weight, inputs)
                if state is not None:
                    self._states[name, fmt.name] = state
            if self.store is not None:
                self.store.save(name, {f"{fmt.name}:{part}": tensor for fmt in self.formats
                                       for part, tensor in self._states.get((name, fmt.name), {}).items()})

        each_input(self.model, linears, self._ids.to(self.device), choose, progress)

    def _with_codes(self, state: State, fmt: StorageFormat, backend: QuantizerBackend, weight: Tensor,
                inputs: Inputs) -> State | None:
        there = {key: tensor.to(self.device) for key, tensor in state.items()}
        grid = backend.grid(there, fmt, (weight.shape[0], weight.shape[1]))
        if grid is None:
            return None
        chosen = backend.recoded(there, fmt, compensated_codes(weight, grid, inputs))
        return {key: tensor.to("cpu") for key, tensor in chosen.items()}


def each_input(model: Any, linears: Sequence[str], ids: Tensor, use: Callable[[str, Tensor, Inputs], None],
               progress: Progress | None) -> None:
    """Call ``use`` with every linear's name, weight and inputs while ``ids`` (``n x length``) go through the model.

    Linears that share an input share what is made of it.

    Raises:
        OracleError: If a linear is not dense.
        ModelError: If inputs of a layer are not finite.
    """
    if any(isinstance(model.get_submodule(name), PackedLinear) for name in linears):
        raise OracleError("codes are chosen on the dense model, and some of its linears are quantised by now")
    last: list[Any] = [None, None]
    seen: list[str] = []

    def made_of(name: str, inputs: Tensor) -> Inputs:
        moments = second_moments(inputs)
        if not torch.isfinite(moments).all():
            raise ModelError(f"codes can't be chosen: inputs of {name} are not finite in the 16-bit model")
        return Inputs.of(moments)

    def hook_of(name: str) -> Callable[[nn.Linear, tuple[Tensor, ...]], None]:
        def hook(module: nn.Linear, args: tuple[Tensor, ...]) -> None:
            if last[0] is not args[0]:
                last[:] = args[0], made_of(name, args[0])
            use(name, module.weight.detach(), last[1])
            seen.append(name)
            if progress is not None:
                progress("round", len(seen), len(linears))
        return hook

    training = model.training
    handles = [model.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in linears]
    try:
        model.eval()
        with torch.no_grad():
            model.get_decoder()(input_ids=ids, use_cache=False)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


def second_moments(inputs: Tensor) -> Tensor:
    """``X^T X``, ``in x in`` in fp32, of inputs ``... x in``."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    moments = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
    for part in torch.split(rows, ROWS):
        wide = part.float()
        moments += wide.T @ wide
    return moments
