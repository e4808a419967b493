"""Traced peaks of a training step and of an evaluation, of decoders of any size, storage by storage.

The real modules of transformers, the adapters' autograd node, loss and optimiser run on meta tensors, which have shapes
and storages alone. Packed weights are replaced by ``stand_in``, attention calls the kernel that the target device would
choose, and a scalar that is read is 1.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from qra_bo.finetune.adapters.lora import fused_linear
from qra_bo.finetune.data.records import TokenBlocks
from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.models.activations import use_checkpointing
from qra_bo.finetune.models.load import choose_kernel, fp32_attention, ungrouped_attention
from qra_bo.finetune.quantization.base import backend_of
from qra_bo.finetune.quantization.embeddings import (
    dense_tables,
    embedding_modules,
    install_embeddings,
    packed_tables,
)
from qra_bo.finetune.training.loop import TrainSettings, held_out
from qra_bo.finetune.training.loss import token_losses
from qra_bo.finetune.training.optimizer import AdamWSettings, UnitwiseAdamW
from qra_bo.memory.activations import TrainShape
from qra_bo.memory.embeddings import embedding_format
from qra_bo.memory.formats import check_shape
from qra_bo.space import Allocation, DecoderSpec, SearchSpace, StorageFormat
from qra_bo.space.decoder import spec_from_model
from qra_bo.utils.errors import ContractError

META = torch.device("meta")
Groups = Sequence[tuple[dict[str, Parameter], float]]
DTYPES = {2: torch.bfloat16, 4: torch.float32}
PHASES = ("forward", "backward", "step", "evaluation")
SCALE = 2.0
"""The adapters' alpha over rank; no byte depends on it."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Bytes of a traced step.

    Args:
        resident: Alive between steps: weights, adapters, masters and moments.
        forward: Peak of the forward pass and the loss.
        backward: Peak of the backward pass.
        step: Peak of the optimiser step.
        evaluation: Peak of evaluating one batch.
        seconds: Wall-clock time of the trace.
    """

    resident: int
    forward: int
    backward: int
    step: int
    evaluation: int
    seconds: float

    @property
    def phase(self) -> str:
        """Name of the phase with the largest peak."""
        return max(PHASES, key=lambda name: int(getattr(self, name)))

    @property
    def peak(self) -> int:
        """Largest peak."""
        return int(getattr(self, self.phase))


def stand_in(fmt: StorageFormat, shape: tuple[int, int], bias: bool, compute_dtype: torch.dtype,
             target: torch.device) -> Any:
    """Build a layer of ``shape`` (out, in) on the meta device, with the storages of the real one on ``target``.

    A ``bias`` has the compute type.

    Raises:
        SpaceError: If the format can't store a matrix of this shape.
    """
    check_shape(fmt, *shape)
    backend = backend_of(fmt)
    offset = torch.empty(shape[0], dtype=compute_dtype, device="meta") if bias else None
    layer = backend.build(backend.empty_state(fmt, shape, compute_dtype), fmt, shape, offset, compute_dtype)
    layer.target = target
    return layer


def config_from_spec(spec: DecoderSpec) -> Any:
    """Return the transformers configuration of a decoder that is known by its numbers."""
    bias = any(linear.bias for linear in spec.linears if linear.group == "attn")
    return AutoConfig.for_model(
        spec.family, hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.n_layers, num_attention_heads=spec.n_heads, num_key_value_heads=spec.n_kv_heads,
        head_dim=spec.head_dim, vocab_size=spec.vocab_size, tie_word_embeddings=spec.tied, attention_bias=bias,
        use_cache=False, pad_token_id=None, bos_token_id=None, eos_token_id=None)


class StepTracer:
    """Tracer of training steps of one decoder; its modules are built once, in seconds for 70 billion parameters.

    Args:
        spec: The decoder.
        config: Its transformers configuration; by default made from the spec's numbers.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ContractError: If the modules of the configuration are not those of the spec.
    """

    def __init__(self, spec: DecoderSpec, config: Any = None, *, trust_remote_code: bool = False) -> None:
        self.spec, self.checkpointing = spec, False
        with META, no_init_weights():
            self.model = AutoModelForCausalLM.from_config(config or config_from_spec(spec), dtype=torch.float32,
                                                          trust_remote_code=trust_remote_code)
        self.model.tie_weights()
        self.model.requires_grad_(False)
        self._tables = {name: self.model.get_submodule(name) for name in embedding_modules(self.model)}
        built = spec_from_model(self.model, spec.name)
        if built != spec:
            raise ContractError(f"the modules that transformers builds for {spec.name!r} are not those of its numbers: "
                                f"{built.linear_numel} parameters in linears and {built.other_numel} others, expected "
                                f"{spec.linear_numel} and {spec.other_numel}")

    def trace(self, space: SearchSpace, allocation: Allocation, shape: TrainShape) -> Traced:
        """Follow one optimiser step, with both moments in place, under an allocation of ``space``.

        Raises:
            SpaceError: If a format can't store a matrix of the decoder.
            ModelError: If the decoder can't use SDPA.
            ContractError: If it gives adapted layers inputs in another than the compute type.
        """
        start = time.perf_counter()
        dtype, target = DTYPES[shape.compute_dtype_bytes], torch.device(shape.device)
        for name, module in self._tables.items():
            self.model.set_submodule(name, module)
        model = self.model.to(dtype)
        self._pack_tables(shape.embeddings, dtype, target)
        choose_kernel(model, _kernel(target, dtype, shape.grouped))
        names = {fmt.name: fmt for fmt in space.formats}
        groups = []
        for unit, fmt, rank in zip(space.units, allocation.formats, allocation.ranks, strict=True):
            parameters: dict[str, Parameter] = {}
            for linear in unit.linears:
                base = stand_in(names[fmt], (linear.out_features, linear.in_features), linear.bias, dtype, target)
                adapted = TracedLora(base, rank, dtype)
                model.set_submodule(linear.name, adapted)
                parameters.update({f"{linear.name}.A": adapted.down, f"{linear.name}.B": adapted.up})
            groups.append((parameters, 1e-3))
        model.train()
        if shape.checkpointing and not self.checkpointing:
            use_checkpointing(model)
        elif self.checkpointing and not shape.checkpointing:
            use_checkpointing(model, False)
        self.checkpointing = shape.checkpointing
        return self._step(shape, traced_optimizer(groups, shape.optimizer, target), start)

    def _pack_tables(self, bits: int, dtype: torch.dtype, target: torch.device) -> None:
        """Put stand-ins of packed tables in the place of the dense embedding and head."""
        fmt = embedding_format(bits, self.spec.hidden_size)
        if fmt is None:
            return
        states = {name: backend_of(fmt).empty_state(fmt, tuple(module.weight.shape), dtype)
                  for name, module in dense_tables(self.model).items()}
        install_embeddings(self.model, states, fmt, dtype)
        for table in packed_tables(self.model).values():
            table.target = target

    def _step(self, shape: TrainShape, optimizer: UnitwiseAdamW, start: float) -> Traced:
        peaks: list[int] = []
        with MetaTracker() as tracker:
            tracker.track_existing(self.model)
            tracker.track(optimizer.tensors())
            resident = tracker.live_bytes

            def phase() -> None:
                peaks.append(tracker.peak_bytes)
                tracker.reset_peak()

            ids = torch.zeros(shape.batch, shape.length, dtype=torch.int64, device=META)
            labels = torch.zeros_like(ids)
            positions = torch.zeros_like(ids) if shape.isolated else None
            chunk = shape.logits_chunk or shape.tokens
            for _ in range(min(2, shape.accumulate)):  # all batches but the first have the same peaks
                peaks.clear()
                total, count = token_losses(self.model, ids, labels, chunk, positions)
                phase()
                total.backward()  # type: ignore[no-untyped-call]
                del total  # of the batch before nothing stays, as in training
                phase()
            optimizer.step(1.0, 1.0 / count)
            phase()
            del ids, labels, positions
            tracker.reset_peak()
            text = np.zeros((shape.batch, shape.length), dtype=np.int64)
            held_out(self.model, TokenBlocks(text, text, text if shape.isolated else None),
                     TrainSettings(shape.batch, logits_chunk=chunk), META)
            phase()
        forward, backward, step, evaluation = peaks
        return Traced(resident, forward, backward, step, evaluation, time.perf_counter() - start)


class MetaTracker(PeakTracker):  # type: ignore[no-untyped-call]
    """Tracker of meta tensors; a scalar that is read from one is 1, so that checks take the branch of real training."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class TracedLora(nn.Module):
    """A stand-in with an adapter, as one autograd node (``adapters.lora``)."""

    def __init__(self, base: Any, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.down = Parameter(torch.empty(rank, base.in_features, dtype=dtype, device=META))
        self.up = Parameter(torch.empty(base.out_features, rank, dtype=dtype, device=META))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.down.dtype:
            raise ContractError(f"an adapter in {self.down.dtype} is given inputs in {x.dtype}: this decoder changes "
                                "types between its layers, and can't be traced")
        return fused_linear(x, self.down, self.up, self.base, SCALE)


class _Kernel(TorchFunctionMode):
    """Replacement of ``scaled_dot_product_attention`` by a device's fused kernel; on the meta device torch itself would
    take the unfused one."""

    def __init__(self, device_type: str, grouped: bool) -> None:
        super().__init__()
        self.device_type, self.grouped = device_type, grouped

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        options = dict(kwargs or {})
        if func is not nn.functional.scaled_dot_product_attention:
            return func(*args, **options)
        mask = options["attn_mask"]
        if self.device_type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *args, 0.0, options["is_causal"], attn_mask=mask, scale=options["scale"])[0]
        if mask is not None or not self.grouped:
            mask = None if mask is None else mask.expand(-1, args[0].shape[1], -1, -1)
            return torch.ops.aten._scaled_dot_product_efficient_attention(
                *args, mask, True, 0.0, options["is_causal"], scale=options["scale"])[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(
            *args, 0.0, options["is_causal"], False, scale=options["scale"])[0]


def _kernel(target: torch.device, dtype: torch.dtype, grouped: bool) -> str:
    """Register the attention of ``target`` and return its name."""
    cast = target.type == "cpu" and dtype == torch.bfloat16
    real = fp32_attention if cast else sdpa_attention_forward if grouped else ungrouped_attention
    name = "traced_fp32_on_cpu" if cast else f"traced_{target.type}_{str(dtype).removeprefix('torch.')}"
    name += "" if grouped else "_ungrouped"

    def traced(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        with _Kernel(target.type, grouped):
            out: tuple[Tensor, None] = real(*args, **kwargs)
        return out

    AttentionInterface.register(name, traced)
    if not cast:  # transformers makes masks for kernels that it knows, and none for fp32_attention
        AttentionMaskInterface.register(name, sdpa_mask)
    return name


def traced_optimizer(groups: Groups, kind: str, target: torch.device) -> UnitwiseAdamW:
    """Return an optimiser of ``memory.optimizers.OPTIMIZERS`` after its first step, over meta parameters.

    The kernels of bitsandbytes can't run without numbers. Their states are made by the library itself, in its sizes; a
    replaced update allocates and frees the tensors of the real one.
    """
    optimizer = UnitwiseAdamW(groups, AdamWSettings(kind=kind))
    if kind == "adamw":
        state: dict[str, Tensor] = {}
        for named, _ in groups:
            for name, parameter in named.items():
                fp32 = torch.empty(parameter.shape, dtype=torch.float32, device=META)
                state.update({f"{name}|{key}": fp32 for key in ("master", "exp_avg", "exp_avg_sq")})
                state[f"{name}|step"] = torch.empty((), dtype=torch.float32, device=META)
        optimizer.load_state(state)
        for _, _, inner in optimizer.groups:  # the check of devices does not know the meta device
            vars(inner)["_need_device_dtype_check_for_fused"] = False
        return optimizer
    for _, _, inner in optimizer.groups:
        vars(inner)["get_state_buffer"] = _buffer
        vars(inner)["step"] = partial(_step, inner, target)
        group = inner.param_groups[0]
        for index, parameter in enumerate(group["params"]):
            inner.init_state(group, parameter, 0, index)  # type: ignore[attr-defined]
    return optimizer


def _buffer(parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a moment."""
    return torch.empty(parameter.shape, dtype=dtype, device=META)


def _step(inner: Any, target: torch.device) -> None:
    """Update every parameter that has a gradient."""
    for parameter in inner.param_groups[0]["params"]:
        state = inner.state[parameter]
        if target.type == "cpu":
            count = 5 if state["state1"].dtype == torch.uint8 else 3  # see memory.optimizers.update_bytes
            del [torch.empty(parameter.shape, device=META) for _ in range(count)][:]
