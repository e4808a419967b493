"""Every linear layer of a model in every storage format: packed once, swapped in place.

On a CPU the layers themselves are kept and a swap sets an attribute. For CUDA the packed tensors and the dense
originals are kept in host memory, outside the device budget, and only what is installed lives on the device. Beyond
``spill_above`` bytes packed tensors go to safetensors files in ``folder`` and are memory-mapped from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from qra_bo.finetune.models.host_linear import HostLinear
from qra_bo.finetune.quantization.base import CODES, LOWER_CODES, State, on_device, packed, storage_bytes
from qra_bo.finetune.quantization.registry import backend_of
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.space import DecoderSpec, StorageFormat
from qra_bo.utils.errors import ModelError, OracleError


def allow_mixed_bits(model: Any) -> None:
    """Tell PEFT that the model may hold 4-bit and 8-bit layers; without both marks it takes them for dense ones."""
    model.is_loaded_in_4bit = model.is_loaded_in_8bit = True


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@dataclass(frozen=True, slots=True)
class OwnBase:
    """Packed tensors that stand in for those of a linear's own weight, e.g. LoftQ's of ``W - scale B A``.

    Args:
        fmt: Format name.
        tag: Tells several of one linear and format apart; with ``fmt`` it decides about equality.
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
        formats: What ``build`` prepares; other formats may be installed and are packed when first asked for.
        compute_dtype: Type of the matrix products.
        device: Where installed layers live and where weights are packed.
        keep_dense: Keep each layer's unpacked weight beside the packed one: faster on a CPU, the same numbers bit for
            bit, two more bytes a weight and format. Memory is then measured within ``only_packed``.
        spill_above: Bytes of packed tensors to keep in memory; ``None`` keeps all.
        folder: Where packed tensors beyond that go; needed with ``spill_above``.
        rounding: What chooses codes other than the nearest, or ``None``. It wants ``model`` dense when the first layer
            is packed.

    Raises:
        ModelError: If the model lacks a linear of ``spec`` or has it in another shape.
    """

    def __init__(self, model: Any, spec: DecoderSpec, formats: Sequence[StorageFormat], compute_dtype: torch.dtype,
                 device: torch.device | str, *, keep_dense: bool = False, spill_above: int | None = None,
                 folder: Path | None = None, rounding: Rounding | None = None) -> None:
        if spill_above is not None and folder is None:
            raise OracleError("spill_above needs the folder that packed tensors go to")
        self.model, self.spec, self.formats, self.compute_dtype = model, spec, tuple(formats), compute_dtype
        self.device, self.keep_dense, self.rounding = torch.device(device), keep_dense, rounding
        self._spill_above, self._folder = spill_above, folder
        self._states: dict[tuple[str, str], State] = {}
        self._sizes: dict[tuple[str, str], tuple[int, int]] = {}
        self._layers: dict[tuple[str, str], nn.Module] = {}
        self._in_memory = 0
        self._current: dict[str, str] = {}
        self._on_host: set[str] = set()
        self._own: dict[str, OwnBase] = {}
        self._own_layers: dict[str, nn.Module] = {}
        self._placed: dict[str, nn.Module] = {}
        self._originals = {linear.name: self._take(linear.name, linear.out_features, linear.in_features)
                           for linear in spec.linears}
        self._dense_storages = {m.weight.untyped_storage().data_ptr() for m in self._originals.values()}
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
        return MappingProxyType(self._current)

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory for packed tensors (mapped files and tensors shared with originals do not count) and
        for unpacked weights that are kept."""
        kept = [packed(layer).dense for layer in self._kept_layers()]
        own = sum(storage_bytes(base.state) for base in self._own.values())
        return self._in_memory + own + sum(d.nbytes for d in kept if d is not None)

    @property
    def packings(self) -> int:
        """How many (linear, format) pairs were packed since the bank was made."""
        return len(self._sizes)

    def build(self, progress: Progress | None = None) -> None:
        """Pack every linear in every format of ``formats`` now, on all of torch's threads."""
        todo = [(linear.name, fmt) for fmt in self.formats for linear in self.spec.linears
                if (linear.name, fmt.name) not in self._sizes]
        self.choose_codes(progress)
        workers = torch.get_num_threads() if self.device.type == "cpu" else 1
        with ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(self._pack, name, fmt): (name, fmt) for name, fmt in todo}
            for done, future in enumerate(as_completed(futures), start=1):
                self._keep(*futures[future], future.result())
                if progress is not None:
                    progress("quantise", done, len(todo))

    def choose_codes(self, progress: Progress | None) -> None:
        """Do what ``rounding`` has to do before the first layer is installed: its text goes through the dense model."""
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
        changed = {name: wanted for name, wanted in choice.items()
                   if (self._own[name] if name in self._own else self._current.get(name)) != wanted}
        for name, wanted in changed.items():  # whatever can go wrong does so before anything is changed
            self._check_place(name)
            if not isinstance(wanted, OwnBase):
                self._size(name, parse_format(wanted))
        for name, wanted in changed.items():  # one by one: a device need not hold what goes beside all that comes
            layer = self._own_layer(name, wanted) if isinstance(wanted, OwnBase) else self._layer(name,
                                                                                                  parse_format(wanted))
            self._place(name, layer)
            self._drop_own(name)
            if isinstance(wanted, OwnBase):
                self._own[name] = wanted
                if self.device.type == "cpu":
                    self._own_layers[name] = layer
            self._current[name] = parse_format(wanted.fmt if isinstance(wanted, OwnBase) else wanted).name

    def restore_dense(self) -> None:
        """Put the original dense linears back."""
        for linear in self.spec.linears:
            name = linear.name
            if name in self._current or not self._is_usable(self._placed[name]):
                self._check_place(name)
                self._place(name, self._dense(name))
                self._current.pop(name, None)
                self._drop_own(name)

    def _is_usable(self, dense: nn.Module) -> bool:
        return isinstance(dense, HostLinear) or on_device(next(dense.parameters()), self.device)

    def _dense(self, name: str) -> nn.Module:
        original = self._originals[name]
        if name in self._on_host:
            return HostLinear(original)
        return original if self.device.type == "cpu" else deepcopy(original).to(self.device)

    def stored_bytes(self, choice: Mapping[str, str]) -> tuple[int, int]:
        """Bytes of codes and of metadata of the named linears, measured on their real storages."""
        sizes = [self._size(name, parse_format(fmt)) for name, fmt in choice.items()]
        return sum(s[0] for s in sizes), sum(s[1] for s in sizes)

    def format_of(self, name: str) -> StorageFormat:
        """Format in which a linear is installed now.

        Raises:
            OracleError: If it is dense now, or not a linear of the model.
        """
        if name not in self._current:
            raise OracleError(f"{name!r} is not installed in any format")
        return parse_format(self._current[name])

    def dense_weight(self, name: str) -> torch.Tensor:
        """The original weight of one linear, on the host."""
        return self._originals[name].weight.detach()

    def state(self, name: str, fmt: str) -> State:
        """Packed tensors of one linear in one format, on the host."""
        self._size(name, parse_format(fmt))
        return self._states[name, fmt]

    def installed_state(self, name: str) -> State:
        """Packed tensors of one linear as it is installed now, on the host.

        Raises:
            OracleError: If it is dense now, or not a linear of the model.
        """
        fmt = self.format_of(name)
        return self._own[name].state if name in self._own else self.state(name, fmt.name)

    @property
    def has_own(self) -> bool:
        """Whether some linear is installed with packed tensors that quantising its weight does not give."""
        return bool(self._own) or (self.rounding is not None and any(
            self.rounding.chose(name, fmt) for name, fmt in self._current.items()))

    @contextmanager
    def only_packed(self) -> Iterator[None]:
        """Within it, layers unpack as they go although unpacked weights are kept: what measured memory means."""
        kept = {layer: layer.dense for layer in map(packed, self._kept_layers()) if layer.dense is not None}
        for layer in kept:
            layer.dense = None
        try:
            yield
        finally:
            for layer, dense in kept.items():
                layer.dense = dense

    def _size(self, name: str, fmt: StorageFormat) -> tuple[int, int]:
        if (name, fmt.name) not in self._sizes:
            self._keep(name, fmt, self._pack(name, fmt))
        return self._sizes[name, fmt.name]

    def _pack(self, name: str, fmt: StorageFormat) -> State:
        return self.nearest(name, fmt) if self.rounding is None else self.rounding.state(name, fmt, self.nearest)

    def nearest(self, name: str, fmt: StorageFormat) -> State:
        """What the format's library makes of a linear's weight."""
        if name not in self._originals:
            raise OracleError(f"{name!r} is not a linear layer of {self.spec.name}")
        weight = self._originals[name].weight.detach()
        backend = backend_of(fmt)
        backend.check(fmt, weight.shape[0], weight.shape[1], self.device)
        if fmt.bits == 16 and weight.dtype in (torch.bfloat16, torch.float16):
            return {"codes": weight}  # no second copy of a base that is on the host anyway
        return {key: t.to("cpu") for key, t in backend.pack(weight, fmt, self.device).items()}

    def nearest_bases(self, choice: Mapping[str, str]) -> dict[str, OwnBase]:
        """What the libraries make of those linears of ``choice`` (formats by name) that have other codes here."""
        wanted = {name: parse_format(fmt) for name, fmt in choice.items() if self.has_chosen(name, fmt)}
        return {name: OwnBase(fmt.name, "rtn", self.nearest(name, fmt)) for name, fmt in wanted.items()}

    def has_chosen(self, name: str, fmt: str) -> bool:
        """Whether a linear has other codes in a format than the library's nearest ones."""
        return self.rounding is not None and self.rounding.chose(name, fmt)

    def _keep(self, name: str, fmt: StorageFormat, state: State) -> None:
        key = (name, fmt.name)
        codes = {k: t for k, t in state.items() if k in (CODES, LOWER_CODES)}
        metadata = {k: t for k, t in state.items() if k not in codes}
        self._sizes[key] = storage_bytes(codes), storage_bytes(metadata)
        shared = state["codes"].untyped_storage().data_ptr() in self._dense_storages
        new = 0 if shared else sum(self._sizes[key])
        if self._spill_above is not None and self._in_memory + new > self._spill_above:
            state = self._to_file(key, state)
        else:
            self._in_memory += new
        self._states[key] = state

    def _to_file(self, key: tuple[str, str], state: State) -> State:
        if self._folder is None:
            raise OracleError("spill_above needs the folder that packed tensors go to")
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{key[0]}.{key[1]}.safetensors"
        save_file(state, path)
        mapped: State = load_file(path)  # views of the mapped file: pages are read when they are touched
        return mapped

    def _layer(self, name: str, fmt: StorageFormat) -> nn.Module:
        self._size(name, fmt)
        key = (name, fmt.name)
        if key in self._layers:
            return self._layers[key]
        layer = self._built(name, fmt, self._states[key])
        if self.device.type == "cpu":
            self._layers[key] = layer
        return layer

    def _own_layer(self, name: str, base: OwnBase) -> nn.Module:
        return self._built(name, parse_format(base.fmt), base.state)

    def _built(self, name: str, fmt: StorageFormat, state: State) -> nn.Module:
        original = self._originals[name]
        bias = None if original.bias is None else original.bias.detach().to(self.device)
        layer = backend_of(fmt).build({k: t.to(self.device) for k, t in state.items()}, fmt,
                                      (original.out_features, original.in_features), bias, self.compute_dtype)
        if self.device.type == "cpu" and self.keep_dense and fmt.bits < 16:
            packed(layer).dense = packed(layer).unpack()
        return layer

    def _kept_layers(self) -> list[nn.Module]:
        return [*self._layers.values(), *self._own_layers.values()]

    def _drop_own(self, name: str) -> None:
        self._own.pop(name, None)
        self._own_layers.pop(name, None)

    def _check_place(self, name: str) -> None:
        if name not in self._placed:
            raise OracleError(f"{name!r} is not a linear layer of {self.spec.name}")
        found = self.model.get_submodule(name)
        if found is not self._placed[name]:
            raise OracleError(f"{name} holds a {type(found).__name__} that the bank did not put there; "
                              "take adapters off before formats change")

    def _place(self, name: str, layer: nn.Module) -> None:
        layer.train(self.model.training)
        set_submodule(self.model, name, layer)
        self._placed[name] = layer
