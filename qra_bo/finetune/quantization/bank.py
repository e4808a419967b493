"""Every linear layer of a model in every storage format: packed once, swapped in place.

On a CPU the layers themselves are kept and a swap sets an attribute. For CUDA the packed tensors and the dense
originals are kept in host memory, outside the device budget, and only what is installed is on the device. Originals
that a file of the base holds are mapped from it; packed tensors too, where a store is given. Formats of 16 bits are the
base itself or a cast of it, which is made again at each use: kept, the casts would be a second base in host memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.models.host_linear import HostLinear
from qra_bo.finetune.quantization.base import Packed, PackedLinear, State, backend_of, frozen, pack_for, storage_bytes
from qra_bo.finetune.quantization.rounding import Rounding
from qra_bo.memory.formats import check_shape, known_backend, parse_format
from qra_bo.memory.stored import own_format
from qra_bo.oracle.protocol import Progress, quiet
from qra_bo.space import DecoderSpec, StorageFormat
from qra_bo.utils.errors import ConfigError, ContractError, ModelError

SMALLEST_ERROR = 0.02
"""Relative error below which a format of at most 4 bits is taken to reproduce the base."""
SAMPLED = 3


@dataclass(frozen=True, slots=True)
class OwnBase:
    """Packed tensors that replace those of a linear's own weight, e.g. LoftQ's of ``W - scale B A``.

    Args:
        fmt: Format name.
        tag: Name among those of one linear and format.
        state: Packed tensors on the host, of the sizes that the linear's own weight would have.
    """

    fmt: str
    tag: str
    state: State = field(compare=False)


class LayerBank:
    """Quantised linears of one model.

    Args:
        model: The model without adapters, its linears in host memory: the bank keeps them. Linears with the codes of a
            file are on the device, and stay in place.
        spec: Names and shapes of the linears.
        formats: Formats that ``build`` prepares; others are packed at their first use.
        compute_dtype: Type of the matrix products.
        device: Device of installed layers, on which weights are packed.
        keep_dense: Keep each layer's unpacked weight too: faster on a CPU, equal bit for bit, two more bytes a weight
            and format. Memory is then measured within ``only_packed``.
        rounding: Choice of codes on the dense model; ``None`` keeps the libraries' codes.
        dense_on_device: Whether dense linears are copied to the device when they are in place; else a ``HostLinear``
            copies each weight when it runs.
        store: Store on disk of the packed tensors, which are then mapped from its files; ``None`` keeps them in memory.
        states: Packed tensors that are there already, on the host, by linear and format: the codes of files.

    Raises:
        ModelError: If the model lacks a linear of ``spec`` or has it in another shape.
    """

    def __init__(self, model: Any, spec: DecoderSpec, formats: Sequence[StorageFormat], compute_dtype: torch.dtype,
                 device: torch.device | str, *, keep_dense: bool = False, rounding: Rounding | None = None,
                 dense_on_device: bool = False, store: TensorStore | None = None,
                 states: Mapping[tuple[str, str], State] | None = None) -> None:
        self.model, self.spec, self.formats, self.compute_dtype = model, spec, tuple(formats), compute_dtype
        self.device, self.keep_dense, self.rounding = torch.device(device), keep_dense, rounding
        self.dense_on_device, self.store = dense_on_device, store
        self._product_dtype: torch.dtype | None = None
        self._states = dict(states or {})
        self._linears = {linear.name: linear for linear in spec.linears}
        self._layers: dict[tuple[str, str], nn.Module] = {}
        self._installed: dict[str, str | OwnBase] = {}
        self._placed: dict[str, nn.Module] = {}
        modules = dict(model.named_modules())
        self._originals = {m.name: self._take(m.name, modules.get(m.name), m.out_features, m.in_features)
                           for m in spec.linears}
        self._hosted = {name for name, module in self._placed.items() if isinstance(module, HostLinear)}

    def _take(self, name: str, found: nn.Module | None, out_features: int, in_features: int) -> nn.Linear:
        linear = found.original if isinstance(found, HostLinear) else found
        if found is None or not isinstance(linear, nn.Linear) \
                or (linear.out_features, linear.in_features) != (out_features, in_features):
            raise ModelError(f"{name} should be a linear layer of {out_features} x {in_features}; the model has "
                             f"{linear}")
        self._placed[name] = found
        return linear

    @property
    def current(self) -> Mapping[str, str]:
        """Format of every quantised linear."""
        return {n: own.fmt if isinstance(own, OwnBase) else own for n, own in self._installed.items()}

    @property
    def streams(self) -> bool:
        """Whether every pass of the dense model copies its weights to the device."""
        return self.device.type != "cpu" and not self.dense_on_device

    def build(self, progress: Progress = quiet) -> None:
        """Pack every linear in every format of ``formats`` below 16 bits now, on all of torch's threads."""
        todo = [(linear.name, fmt) for fmt in self.formats if not fmt.is_base for linear in self.spec.linears
                if (linear.name, fmt.name) not in self._states]
        self.choose_codes(progress)
        workers, store = torch.get_num_threads() if self.device.type == "cpu" else 1, self.store
        alone = nullcontext() if store is None or not todo else \
            store.alone(lambda: progress("quantise", store.count, len(todo)))
        with alone, ThreadPoolExecutor(workers) as pool:
            futures = {pool.submit(self._pack, name, fmt): (name, fmt.name) for name, fmt in todo}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    self._states[futures[future]] = future.result()
                    progress("quantise", done, len(todo))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # else every layer is packed before the error, or the stop, is known
                raise

    def choose_codes(self, progress: Progress = quiet) -> None:
        """Let ``rounding`` send its text through the dense model, before the first layer is installed."""
        if self.rounding is not None:
            self.rounding.prepare(progress)

    def install(self, choice: Mapping[str, str | OwnBase]) -> None:
        """Put each linear of ``choice`` in place, in a named format or with packed tensors of its own.

        Raises:
            ConfigError: If a format is unknown.
            SpaceError: If a format can't pack a linear of this shape.
            ContractError: If a name is not a linear of the model, or adapters are still attached.
        """
        self.choose_codes()
        changed = {name: wanted for name, wanted in choice.items() if self._installed.get(name) != wanted}
        for name, wanted in changed.items():  # every error is raised before anything is changed
            self._check_place(name)
            if isinstance(wanted, OwnBase):
                continue
            if (form := parse_format(wanted)).is_base:  # whose packed tensors are not kept
                self._check(name, form)
            else:
                self.state(name, wanted)
        for name, wanted in changed.items():  # one by one: a device need not hold old and new layers together
            self._place(name, self._layer(name, wanted))
            self._installed[name] = wanted

    def multiply_in(self, dtype: torch.dtype | None) -> None:
        """Let packed linears and a head multiply in a wider type from now on, those to come too; ``None`` ends it."""
        self._product_dtype = dtype
        for layer in self.model.modules():
            if isinstance(layer, Packed):
                layer.product_dtype = dtype

    def restore_dense(self) -> None:
        """Put the original dense linears in place."""
        for linear in self.spec.linears:
            name = linear.name
            if name in self._installed or (self.dense_on_device and isinstance(self._placed[name], HostLinear)):
                self._check_place(name)
                self._place(name, self._dense(name))
                self._installed.pop(name, None)

    def _dense(self, name: str) -> nn.Module:
        original, hosted = self._originals[name], name in self._hosted
        if isinstance(original, PackedLinear):
            return self._built(name, original.fmt.name, original.packed_state()) if hosted else self._kept(original)
        if not self.dense_on_device:
            return HostLinear(original) if hosted else original
        copy = nn.Linear(original.in_features, original.out_features, bias=False, device="meta")
        copy.weight = nn.Parameter(original.weight.detach().to(self.device, self.compute_dtype), requires_grad=False)
        bias = None if original.bias is None else original.bias.detach().to(self.device)
        copy.register_parameter("bias", frozen(bias))
        return copy

    def stored_bytes(self, choice: Mapping[str, str]) -> int:
        """Return the bytes of the packed tensors of the named linears."""
        return sum(storage_bytes(self.state(name, fmt).values()) for name, fmt in choice.items())

    def dense_weight(self, name: str) -> torch.Tensor:
        """Return the original weight of one linear, on the host."""
        return self._originals[name].weight.detach()

    def state(self, name: str, fmt: str) -> State:
        """Return the packed tensors of one linear in one format, on the host; those below 16 bits are kept."""
        key, form = (name, fmt), parse_format(fmt)
        if form.is_base:
            return self._pack(name, form)
        if key not in self._states:
            self._states[key] = self._pack(name, form)
        return self._states[key]

    def installed_state(self, name: str) -> State:
        """Return the packed tensors of a quantised linear, on the host."""
        installed = self._installed[name]
        return installed.state if isinstance(installed, OwnBase) else self.state(name, installed)

    @contextmanager
    def only_packed(self) -> Iterator[None]:
        """Ignore kept unpacked weights within the block, so that the memory of packed layers is measured."""
        kept = {layer: layer.dense for layer in (*self._layers.values(), *self.model.modules())
                if isinstance(layer, Packed) and layer.dense is not None}
        for layer in kept:
            layer.dense = None
        try:
            yield
        finally:
            for layer, dense in kept.items():
                layer.dense = dense

    def _pack(self, name: str, fmt: StorageFormat) -> State:
        if self.rounding is not None and fmt in self.rounding.formats:
            self.choose_codes()
            return self.rounding.state(name, fmt)
        if self.store is None or fmt.is_base:
            return self.nearest(name, fmt)
        key = f"{name}.{fmt.name}"
        return self.store.load(key) or self.store.mapped(key, self.nearest(name, fmt))

    def nearest(self, name: str, fmt: StorageFormat) -> State:
        """Pack a linear's weight with the library's own codes; the tensors are on the host."""
        self._check(name, fmt)
        original = self._originals[name]
        state = original.packed_state() if isinstance(original, PackedLinear) else \
            pack_for(original.weight.detach(), fmt, self.compute_dtype, self.device)
        return {key: t.to("cpu") for key, t in state.items()}

    def _check(self, name: str, fmt: StorageFormat) -> None:
        original = self._originals[name]
        if isinstance(original, PackedLinear) and own_format(fmt, self._linears[name]) != original.fmt:
            raise ConfigError(f"{name} has the codes of its file, {original.fmt.name}, and no weights in 16 bits that "
                              f"{fmt.name} could be made from")
        check_shape(fmt, original.out_features, original.in_features)

    def nearest_bases(self, choice: Mapping[str, str]) -> dict[str, OwnBase]:
        """Pack with the libraries' codes the linears of ``choice`` (formats by name) that have chosen codes here."""
        chosen = [] if self.rounding is None else [fmt.name for fmt in self.rounding.formats]
        return {name: OwnBase(fmt, "rtn", self.nearest(name, parse_format(fmt)))
                for name, fmt in choice.items() if fmt in chosen}

    def _layer(self, name: str, wanted: str | OwnBase) -> nn.Module:
        if isinstance(wanted, OwnBase):
            return self._built(name, wanted.fmt, wanted.state)
        if isinstance(self._originals[name], PackedLinear) and parse_format(wanted).is_base:
            return self._dense(name)
        if (name, wanted) in self._layers:
            return self._layers[name, wanted]
        layer = self._built(name, wanted, self.state(name, wanted))
        if self.device.type == "cpu":
            self._layers[name, wanted] = layer
        return layer

    def _kept(self, layer: PackedLinear) -> PackedLinear:
        if self.device.type == "cpu" and self.keep_dense and layer.dense is None:
            layer.dense = layer.unpack()
        return layer

    def _built(self, name: str, fmt_name: str, state: State) -> PackedLinear:
        original, fmt = self._originals[name], own_format(parse_format(fmt_name), self._linears[name])
        bias = None if original.bias is None else original.bias.detach().to(self.device)
        layer = backend_of(fmt).build({k: t.to(self.device) for k, t in state.items()}, fmt,
                                      (original.out_features, original.in_features), bias, self.compute_dtype)
        return layer if fmt.backend == "none" else self._kept(layer)

    def _check_place(self, name: str) -> None:
        if name not in self._placed:
            raise ContractError(f"{name!r} is not a linear layer of {self.spec.name}")
        found = self.model.get_submodule(name)
        if found is not self._placed[name]:
            raise ContractError(f"{name} holds a {type(found).__name__} that the bank did not put there; "
                                "detach adapters before formats change")

    def _place(self, name: str, layer: nn.Module) -> None:
        if isinstance(layer, PackedLinear):
            layer.product_dtype = self._product_dtype
        layer.train(self.model.training)
        self.model.set_submodule(name, layer)
        self._placed[name] = layer


def relative_error(bank: LayerBank, name: str, fmt: StorageFormat) -> float:
    """Return ``||Q(W) - W|| / ||W||`` of one linear of the bank's model."""
    weight = bank.dense_weight(name).float()
    layer = backend_of(fmt).build(bank.nearest(name, fmt), fmt, (weight.shape[0], weight.shape[1]), None,
                                  bank.compute_dtype)
    return float((layer.unpack().float() - weight).norm() / weight.norm())


def refuse_reproducing_formats(bank: LayerBank, formats: Sequence[StorageFormat]) -> None:
    """Check on a few linears, spread over the decoder, that no format of at most 4 bits reproduces the base.

    A base dequantised from a 4-bit file is on an integer grid. A format of the same group size reproduces that grid
    almost exactly (relative error 0.1 to 0.3 %, NF4's is 9.4 %), so that its 4 bits are as good as 16.

    Raises:
        ConfigError: If one reproduces all of them.
    """
    linears = bank.spec.linears
    names = [linears[i * (len(linears) - 1) // (SAMPLED - 1)].name for i in range(SAMPLED)]
    problems = []
    for fmt in formats:
        if fmt.bits > 4 or fmt.is_base or known_backend(fmt).ring_seconds:  # which takes minutes
            continue
        worst = max(relative_error(bank, name, fmt) for name in names)
        if worst < SMALLEST_ERROR:
            problems.append(f"the format {fmt.name} of {fmt.bits} bits reproduces this base within {worst:.1%}: its "
                            "weights were quantised before, and results would flatter that format; use nf4 for 4 bits, "
                            "or an unquantised base")
    if problems:
        raise ConfigError(problems)
