"""Every linear layer of a model in every storage format: packed once, swapped in place.

On a CPU the layers themselves are kept and a swap sets an attribute. For CUDA the packed tensors and the dense
originals are kept in host memory, outside the device budget, and only what is installed is on the device.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qra_bo.finetune.models.host_linear import HostLinear
from qra_bo.finetune.quantization.base import PackedLinear, State, packed, state_bytes
from qra_bo.finetune.quantization.registry import backend_of
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.space import DecoderSpec, StorageFormat
from qra_bo.utils.errors import ModelError, OracleError


def allow_mixed_bits(model: Any) -> None:
    """Mark the model for PEFT as holding 4-bit and 8-bit layers; without both marks PEFT takes them for dense ones."""
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = True


@dataclass(frozen=True, slots=True)
class OwnBase:
    """Packed tensors that replace those of a linear's own weight, e.g. LoftQ's of ``W - scale B A``.

    Args:
        fmt: Format name.
        tag: Distinguishes several of one linear and format; with ``fmt`` it decides about equality.
        state: On the host; of the sizes that the linear's own weight would have.
    """

    fmt: str
    tag: str
    state: State = field(compare=False)


class LayerBank:
    """Quantised linears of one model.

    Args:
        model: The bare model (no adapters) with its dense linears, which the bank keeps (for CUDA: copies of them in
            host memory); those that are a ``HostLinear`` come back as such.
        spec: Which linears there are; nothing else of the model is touched.
        formats: What ``build`` prepares; other formats may be installed and are packed at their first use.
        compute_dtype: Type of the matrix products.
        device: Where installed layers are and where weights are packed.
        keep_dense: Keep each layer's unpacked weight beside the packed one: faster on a CPU, the same numbers bit for
            bit, two more bytes a weight and format. Memory is then measured within ``only_packed``.
        rounding: Chooses codes other than the nearest; ``None`` keeps the libraries' codes. It needs ``model`` dense
            when the first layer is packed.

    Raises:
        ModelError: If the model lacks a linear of ``spec`` or has it in another shape.
    """

    def __init__(self, model: Any, spec: DecoderSpec, formats: Sequence[StorageFormat], compute_dtype: torch.dtype,
                 device: torch.device | str, *, keep_dense: bool = False, rounding: Rounding | None = None) -> None:
        self.model, self.spec, self.formats, self.compute_dtype = model, spec, tuple(formats), compute_dtype
        self.device, self.keep_dense, self.rounding = torch.device(device), keep_dense, rounding
        self._states: dict[tuple[str, str], State] = {}
        self._layers: dict[tuple[str, str], nn.Module] = {}
        self._installed: dict[str, str | OwnBase] = {}
        self._on_host: set[str] = set()
        self._placed: dict[str, nn.Module] = {}
        self._originals = {linear.name: self._take(linear.name, linear.out_features, linear.in_features)
                           for linear in spec.linears}
        allow_mixed_bits(model)

    def _take(self, name: str, out_features: int, in_features: int) -> nn.Linear:
        try:
            linear = self.model.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"the model has no module {name!r}, which {self.spec.name} should have") from error
        self._placed[name] = linear
        if isinstance(linear, HostLinear):
            self._on_host.add(name)
            linear = linear.original
        if not isinstance(linear, nn.Linear) or tuple(linear.weight.shape) != (out_features, in_features):
            raise ModelError(f"{name} should be a linear layer of {out_features} x {in_features}; the model has "
                             f"{linear}")
        if linear.weight.device.type == "cpu":
            return linear
        original = nn.Linear(in_features, out_features, bias=False, device="meta")
        original.weight = nn.Parameter(linear.weight.detach().to("cpu"), requires_grad=False)
        original.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to("cpu"), False)
        return original

    @property
    def current(self) -> Mapping[str, str]:
        """Format by linear of what is installed now; dense originals are left out."""
        return {name: fmt.fmt if isinstance(fmt, OwnBase) else fmt for name, fmt in self._installed.items()}

    def build(self, progress: Progress | None = None) -> None:
        """Pack every linear in every format of ``formats`` now, on all of torch's threads."""
        todo = [(linear.name, fmt) for fmt in self.formats for linear in self.spec.linears
                if (linear.name, fmt.name) not in self._states]
        self.choose_codes(progress)
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(self._pack, name, fmt): (name, fmt.name) for name, fmt in todo}
            for done, future in enumerate(as_completed(futures), start=1):
                self._states[futures[future]] = future.result()
                if progress is not None:
                    progress("quantise", done, len(todo))

    def choose_codes(self, progress: Progress | None) -> None:
        """Let ``rounding`` send its text through the dense model, before the first layer is installed."""
        if self.rounding is not None:
            self.rounding.prepare(self.nearest, progress)

    def install(self, model: Any, choice: Mapping[str, str | OwnBase]) -> None:
        """Put each named linear in place in the named format; the others stay as they are.

        Args:
            model: The bank's model.
            choice: By linear name, a format name, or packed tensors of the linear's own; these last until another
                choice is made for it.

        Raises:
            ConfigError: If a format is unknown.
            SpaceError: If a format can't pack a linear of this shape.
            OracleError: If the model is not the bank's, a name is not a linear of it, or adapters are still attached.
        """
        if model is not self.model:
            raise OracleError("a bank serves the model that it was made for")
        self.choose_codes(None)
        changed = {name: wanted for name, wanted in choice.items() if self._installed.get(name) != wanted}
        for name, wanted in changed.items():  # every error is raised before anything is changed
            self._check_place(name)
            if not isinstance(wanted, OwnBase):
                self.state(name, wanted)
        for name, wanted in changed.items():  # one by one: a device need not hold old and new layers together
            self._place(name, self._layer(name, wanted))
            self._installed[name] = wanted

    def restore_dense(self) -> None:
        """Put the original dense linears back."""
        for linear in self.spec.linears:
            name = linear.name
            if name in self._installed or not self._is_usable(self._placed[name]):
                self._check_place(name)
                self._place(name, self._dense(name))
                self._installed.pop(name, None)

    def _is_usable(self, dense: nn.Module) -> bool:
        """Whether a dense layer is where it runs; a device without an index means any of its type."""
        if isinstance(dense, HostLinear):
            return True
        found = next(dense.parameters()).device
        return found.type == self.device.type and self.device.index in (None, found.index)

    def _dense(self, name: str) -> nn.Module:
        original = self._originals[name]
        if name in self._on_host:
            return HostLinear(original)
        return original if self.device.type == "cpu" else deepcopy(original).to(self.device)

    def stored_bytes(self, choice: Mapping[str, str]) -> tuple[int, int]:
        """Return the bytes of codes and of metadata of the named linears, measured on their storages."""
        sizes = [state_bytes(self.state(name, fmt)) for name, fmt in choice.items()]
        return sum(s[0] for s in sizes), sum(s[1] for s in sizes)

    def dense_weight(self, name: str) -> torch.Tensor:
        """Return the original weight of one linear, on the host."""
        return self._originals[name].weight.detach()

    def state(self, name: str, fmt: str) -> State:
        """Return the packed tensors of one linear in one format, on the host."""
        key = (name, fmt)
        if key not in self._states:
            self._states[key] = self._pack(name, parse_format(fmt))
        return self._states[key]

    def installed_state(self, name: str) -> State:
        """Return the packed tensors of a linear as it is installed now, on the host."""
        installed = self._installed[name]
        return installed.state if isinstance(installed, OwnBase) else self.state(name, installed)

    @property
    def has_own(self) -> bool:
        """Whether some linear is installed with packed tensors that quantising its weight does not give."""
        return any(isinstance(fmt, OwnBase) or self.has_chosen(name, fmt) for name, fmt in self._installed.items())

    @contextmanager
    def only_packed(self) -> Iterator[None]:
        """Ignore kept unpacked weights within the block, so that measured memory is that of packed layers."""
        layers = [layer for layer in (*self._layers.values(), *self._placed.values())
                  if isinstance(layer, PackedLinear)]
        kept = {layer: layer.dense for layer in layers if layer.dense is not None}
        for layer in kept:
            layer.dense = None
        try:
            yield
        finally:
            for layer, dense in kept.items():
                layer.dense = dense

    def _pack(self, name: str, fmt: StorageFormat) -> State:
        return self.nearest(name, fmt) if self.rounding is None else self.rounding.state(name, fmt, self.nearest)

    def nearest(self, name: str, fmt: StorageFormat) -> State:
        """Pack a linear's weight with the library's own codes; the tensors are on the host."""
        if name not in self._originals:
            raise OracleError(f"{name!r} is not a linear layer of {self.spec.name}")
        weight = self._originals[name].weight.detach()
        backend = backend_of(fmt)
        backend.check(fmt, weight.shape[0], weight.shape[1])
        if fmt.bits == 16 and weight.dtype in (torch.bfloat16, torch.float16):
            return {"codes": weight}  # no second copy of a base that is on the host anyway
        return {key: t.to("cpu") for key, t in backend.pack(weight, fmt, self.device).items()}

    def nearest_bases(self, choice: Mapping[str, str]) -> dict[str, OwnBase]:
        """Pack with the libraries' codes the linears of ``choice`` (formats by name) that have chosen codes here."""
        return {name: OwnBase(fmt, "rtn", self.nearest(name, parse_format(fmt)))
                for name, fmt in choice.items() if self.has_chosen(name, fmt)}

    def has_chosen(self, name: str, fmt: str) -> bool:
        """Whether a linear has other codes in a format than the library's nearest ones."""
        return self.rounding is not None and self.rounding.chose(name, fmt)

    def _layer(self, name: str, wanted: str | OwnBase) -> nn.Module:
        if isinstance(wanted, OwnBase):
            return self._built(name, wanted.fmt, wanted.state)
        key = (name, wanted)
        if key in self._layers:
            return self._layers[key]
        layer = self._built(name, wanted, self.state(name, wanted))
        if self.device.type == "cpu":
            self._layers[key] = layer
        return layer

    def _built(self, name: str, fmt_name: str, state: State) -> nn.Module:
        original, fmt = self._originals[name], parse_format(fmt_name)
        bias = None if original.bias is None else original.bias.detach().to(self.device)
        layer = backend_of(fmt).build({k: t.to(self.device) for k, t in state.items()}, fmt,
                                      (original.out_features, original.in_features), bias, self.compute_dtype)
        if self.device.type == "cpu" and self.keep_dense and fmt.bits < 16:
            packed(layer).dense = packed(layer).unpack()
        return layer

    def _check_place(self, name: str) -> None:
        if name not in self._placed:
            raise OracleError(f"{name!r} is not a linear layer of {self.spec.name}")
        found = self.model.get_submodule(name)
        if found is not self._placed[name]:
            raise OracleError(f"{name} holds a {type(found).__name__} that the bank did not put there; "
                              "detach adapters before formats change")

    def _place(self, name: str, layer: nn.Module) -> None:
        layer.train(self.model.training)
        self.model.set_submodule(name, layer)
        self._placed[name] = layer
