"""What every quantiser backend must hold; a backend joins by one line that names the formats it serves.

``class TestHQQ(QuantizerConformance): formats = ("hqq2", "hqq3", "hqq4", "hqq8")``
"""

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import (
    PLANE_NAMES,
    Grid,
    LevelBackend,
    PackedLinear,
    QuantizerBackend,
    RingBackend,
    backend_of,
    storage_bytes,
)
from qra_bo.finetune.quantization.planes import codes_at, words_of
from qra_bo.memory.formats import check_shape, known_backend, matrix_bytes, parse_format
from qra_bo.space.space import StorageFormat
from qra_bo.utils.errors import SpaceError

CPU = torch.device("cpu")


def quantize(linear: nn.Linear, fmt: StorageFormat, dtype: torch.dtype) -> PackedLinear:
    """Return the packed layer of ``linear``, on the CPU."""
    backend, shape = backend_of(fmt), (linear.out_features, linear.in_features)
    check_shape(fmt, *shape)
    bias = None if linear.bias is None else linear.bias.detach()
    return backend.build(backend.pack(linear.weight.detach(), fmt, CPU), fmt, shape, bias, dtype)


def state_bytes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the bytes of codes and of metadata, measured on the storages."""
    codes, others = ([tensor for key, tensor in state.items() if (key in PLANE_NAMES) == of_codes]
                     for of_codes in (True, False))
    return storage_bytes(codes), storage_bytes(others)


def make_linear(out: int, inp: int, *, bias: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32
                ) -> nn.Linear:
    """A linear layer with bell-shaped weights of a language model's size, drawn from a generator of its own."""
    draw = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inp, out, bias=bias, device="meta")
    linear.weight = nn.Parameter(torch.randn(out, inp, generator=draw).mul_(0.05).to(dtype))
    if bias:
        linear.bias = nn.Parameter(torch.randn(out, generator=draw).to(dtype))
    return linear.requires_grad_(False)


def relative_error(dense: Tensor, weight: Tensor) -> float:
    return float((dense.float() - weight.float()).norm() / weight.float().norm())


def digest(state: dict[str, Tensor]) -> str:
    parts = [name.encode() + t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
             for name, t in sorted(state.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def levels_of(grid: Grid) -> Tensor:
    return torch.tensor(list(grid.levels)).float() if isinstance(grid.levels, range) else grid.levels


def scale_and_offset(grid: Grid, height: int) -> tuple[Tensor, Tensor]:
    """Those of every weight, ``out x in``."""
    scale, offset = grid.spread(torch.arange(grid.width), 0, height)
    return scale.T.contiguous(), offset.T.contiguous()


def nearest_codes(grid: Grid, weight: Tensor) -> Tensor:
    levels, (scale, offset) = levels_of(grid), scale_and_offset(grid, len(weight))
    position = torch.where(scale > 0, (weight - offset) / scale, torch.zeros_like(weight))
    return torch.bucketize(position, (levels[1:] + levels[:-1]) / 2)


def grid_values(grid: Grid, codes: Tensor) -> Tensor:
    scale, offset = scale_and_offset(grid, codes.shape[-2])
    return levels_of(grid)[codes.long()] * scale + offset


def integer_codes(state: dict[str, Tensor], fmt: StorageFormat, shape: tuple[int, int]) -> Tensor:
    """Codes, ``out x in``, of a packed integer format."""
    return codes_at(words_of(state), fmt, torch.arange(state["scale"].numel())).view(shape)


def between_extremes(weight: Tensor, bits: int) -> Tensor:
    """Round between the minimum and the maximum of every 64 weights."""
    groups = weight.reshape(-1, 64)
    low, high = groups.amin(dim=1, keepdim=True), groups.amax(dim=1, keepdim=True)
    step = (high - low) / (2 ** bits - 1)
    return (((groups - low) / step).round() * step + low).view_as(weight)


class QuantizerConformance:
    """Subclass it, name it ``Test...`` and set ``formats``, and ``slow_formats`` that add little to these."""

    formats: ClassVar[tuple[str, ...]]
    slow_formats: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[int] = 128  # a multiple of every group
    farthest: ClassVar[float] = 2.0  # most error of one weight, in steps of a grid of its bits over the whole matrix
    on_constants: ClassVar[float] = 1.5  # most error of equal weights in a ring's codes, in steps of their bits

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "fmt" in metafunc.fixturenames:
            metafunc.parametrize("fmt", [pytest.param(parse_format(name), id=name, marks=[pytest.mark.slow] * slow)
                                         for slow, names in enumerate((self.formats, self.slow_formats))
                                         for name in names])

    @staticmethod
    def backend(fmt: StorageFormat) -> QuantizerBackend:
        return backend_of(fmt)

    def layer(self, fmt: StorageFormat, linear: nn.Linear, dtype: torch.dtype = torch.bfloat16) -> PackedLinear:
        return quantize(linear, fmt, dtype)

    def test_free_codes_mean_what_the_grid_says(self, fmt: StorageFormat) -> None:
        backend, shape = self.backend(fmt), (40, 2 * self.columns)
        if not isinstance(backend, LevelBackend):
            return
        state = backend.pack(make_linear(*shape).weight, fmt, CPU)
        grid = backend.grid(state, fmt, shape)
        draw = torch.Generator().manual_seed(1)
        codes = torch.randint(len(grid.levels), shape, generator=draw, dtype=torch.uint8)
        other = backend.recoded(state, fmt, codes)
        assert {k: (t.shape, t.dtype) for k, t in other.items()} == {k: (t.shape, t.dtype) for k, t in state.items()}
        assert all(torch.equal(other[k], state[k]) for k in state if k not in PLANE_NAMES)
        weight = backend.build(other, fmt, shape, None, torch.float32).unpack()
        torch.testing.assert_close(weight, grid_values(grid, codes), rtol=1e-5, atol=1e-6)
        own = backend.build(state, fmt, shape, None, torch.float32).unpack()
        again = backend.recoded(state, fmt, nearest_codes(grid, own).to(torch.uint8))
        torch.testing.assert_close(backend.build(again, fmt, shape, None, torch.float32).unpack(), own)

    def test_bytes_and_weights_of_any_shape(self, fmt: StorageFormat) -> None:
        @settings(max_examples=12, deadline=None, derandomize=True)
        @given(out=st.integers(1, 70), inp=st.integers(1, 10), times=st.sampled_from([2, 32, 64]))
        def check(out: int, inp: int, times: int) -> None:
            inp *= times
            linear = make_linear(out, inp)
            try:
                check_shape(fmt, out, inp)
            except SpaceError:
                with pytest.raises(SpaceError, match=fmt.name):
                    self.layer(fmt, linear)
                return
            layer = self.layer(fmt, linear, torch.float32)
            assert state_bytes(layer.packed_state()) == matrix_bytes(fmt, out, inp)
            dense = layer.unpack()
            assert dense.shape == (out, inp)
            # No weight, clipped or not, is off by some steps of a coarse grid: a wrong block or order would be.
            step = float(linear.weight.max() - linear.weight.min()) / (2 ** fmt.bits - 1)
            assert float((dense - linear.weight).abs().max()) <= self.farthest * step + 1e-3, \
                "a wrong block or order? else raise the suite's `farthest`"

        check()

    def test_planning_and_layers_know_its_rings_and_tables(self, fmt: StorageFormat) -> None:
        backend = self.backend(fmt)
        assert isinstance(backend, RingBackend) == (known_backend(fmt).ring_seconds > 0), "say ring_seconds in BACKENDS"
        for device in (CPU, torch.device("meta")):
            first, again = backend.tables(fmt, device), backend.tables(fmt, device)
            assert list(map(id, first)) == list(map(id, again)), "tables() makes new tensors: cache them by device"
            assert {table.device.type for table in first} <= {device.type}

    def test_error_is_close_to_plain_rounding(self, fmt: StorageFormat) -> None:
        linear = make_linear(self.columns, 2 * self.columns)
        error = relative_error(self.layer(fmt, linear, torch.float32).unpack(), linear.weight)
        if fmt.bits == 16:
            assert error < 3e-4
            return
        bound = relative_error(between_extremes(linear.weight, fmt.bits), linear.weight)
        wider = 1.9 if fmt.block == 0 else 1.35  # one scale a row, or groups of 128, cost more than groups of 64
        assert 0 < error <= wider * bound

    def test_dequantised_weight_is_rounded_once_and_the_original_kept(self, fmt: StorageFormat) -> None:
        linear = make_linear(64, self.columns)
        before = linear.weight.clone()
        exact = self.layer(fmt, linear, torch.float32).unpack()
        half = self.layer(fmt, linear, torch.bfloat16).unpack()
        assert half.dtype == torch.bfloat16
        assert torch.equal(exact.to(torch.bfloat16), half)
        assert torch.equal(linear.weight, before)

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_output_and_gradient_are_of_the_dequantised_weight(
            self, fmt: StorageFormat, dtype: torch.dtype, bias: bool) -> None:
        linear = make_linear(64, self.columns, bias=bias)
        layer = self.layer(fmt, linear, dtype)
        draw = torch.Generator().manual_seed(1)
        x = torch.randn(2, 3, self.columns, generator=draw, dtype=dtype)
        grad = torch.randn(2, 3, 64, generator=draw, dtype=dtype)
        dense = layer.unpack()
        results = []
        for call in (layer, lambda v: nn.functional.linear(v, dense, linear.bias.to(dtype) if bias else None)):
            leaf = x.clone().requires_grad_()
            out = call(leaf)
            out.backward(grad)
            results.append((out.detach(), leaf.grad))
        assert results[0][0].dtype == dtype
        for ours, plain in zip(*results, strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=0)
        assert all(p.grad is None and not p.requires_grad for p in layer.parameters())

    def test_nothing_dense_is_kept_for_the_backward(self, fmt: StorageFormat) -> None:
        kept: list[Tensor] = []
        layer = self.layer(fmt, make_linear(64, self.columns))
        x = torch.ones(2, self.columns, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            layer(x)
        assert kept == []

    def test_train_eval_train_changes_nothing(self, fmt: StorageFormat) -> None:
        layer = self.layer(fmt, make_linear(64, self.columns))
        before = digest(layer.packed_state())
        x = torch.ones(4, self.columns, dtype=torch.bfloat16)
        first = layer.train()(x)
        with torch.no_grad():
            assert torch.equal(first, layer.eval()(x))
            assert torch.equal(first, layer(x.clone()))
        leaf = x.clone().requires_grad_()
        again = layer.train()(leaf)
        again.sum().backward()
        assert torch.equal(first, again)
        assert leaf.grad is not None
        assert digest(layer.packed_state()) == before

    def test_packing_is_deterministic_on_any_number_of_threads(self, fmt: StorageFormat) -> None:
        linear, threads = make_linear(96, 3 * self.columns), torch.get_num_threads()  # more than torch leaves to one
        digests = set()
        try:
            for n in (1, 2):
                torch.set_num_threads(n)
                digests.add(digest(self.backend(fmt).pack(linear.weight, fmt, CPU)))
        finally:
            torch.set_num_threads(threads)
        assert len(digests) == 1

    def test_state_builds_the_same_layer(self, fmt: StorageFormat, tmp_path: Any) -> None:
        from safetensors.torch import load_file, save_file
        linear = make_linear(64, self.columns, bias=True)
        layer = self.layer(fmt, linear)
        save_file(layer.packed_state(), tmp_path / "layer.safetensors")
        state = load_file(tmp_path / "layer.safetensors")
        again = self.backend(fmt).build(state, fmt, (64, self.columns), linear.bias.detach(), torch.bfloat16)
        x = torch.ones(4, self.columns, dtype=torch.bfloat16)
        assert torch.equal(layer(x), again(x))
        assert state_bytes(again.packed_state()) == state_bytes(layer.packed_state())

    def test_moves_with_its_model_and_keeps_its_types(self, fmt: StorageFormat) -> None:
        layer = self.layer(fmt, make_linear(64, self.columns, bias=True))
        x = torch.ones(4, self.columns, dtype=torch.bfloat16)
        layer.dense = layer.unpack()
        first, given, model = layer(x), layer.packed_state(), nn.Sequential(layer)
        before = digest(given)
        model._apply(torch.clone)
        moved = layer.packed_state()
        tensors = [(moved[name], given[name]) for name in given] + [(layer.dense, layer.unpack())]
        assert not {new.data_ptr() for new, _ in tensors} & {old.data_ptr() for _, old in tensors}
        for cast in (model.half, model.bfloat16, model.double, lambda: model.type(torch.float16)):
            cast()
            state = layer.packed_state()
            assert {name: t.dtype for name, t in state.items()} == {name: t.dtype for name, t in given.items()}
            assert digest(state) == digest(given) == before
            assert torch.equal(layer(x), first)
        layer.dense = None
        assert torch.equal(layer(x), first)

    def test_constant_and_zero_weights(self, fmt: StorageFormat) -> None:
        linear = make_linear(64, self.columns)
        for value in (0.0, 0.25):
            linear.weight.fill_(value)
            dense = self.layer(fmt, linear, torch.float32).unpack()
            if isinstance(backend_of(fmt), RingBackend) and value:  # such codes are no better on equal weights
                assert relative_error(dense, linear.weight) < self.on_constants * 2.0 ** -fmt.bits
            else:
                torch.testing.assert_close(dense, linear.weight.detach(), rtol=0.02, atol=1e-3)

    def test_peft_adapts_it_and_trains(self, fmt: StorageFormat) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        class Holder(nn.Module):
            def __init__(self, layer: nn.Module) -> None:
                super().__init__()
                self.proj = layer

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = self.proj(x)
                return out

        layer = self.layer(fmt, make_linear(64, self.columns))
        before = digest(layer.packed_state())
        with torch.random.fork_rng(devices=[]):
            model = get_peft_model(Holder(layer), LoraConfig(r=4, lora_alpha=8, target_modules=["proj"]))
            wrapper = model.base_model.model.proj
            assert isinstance(wrapper, LoraLayer)
            assert wrapper.get_base_layer() is layer
            assert type(wrapper).__name__ == "Linear"
            x = torch.ones(4, self.columns, dtype=torch.bfloat16)
            trained = [p for p in model.parameters() if p.requires_grad]
            assert sum(p.numel() for p in trained) == 4 * (64 + self.columns)
            optimizer = torch.optim.AdamW(trained, lr=1e-2)
            losses = []
            for _ in range(5):
                loss = (model(x).float() - 1).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]
        assert digest(layer.packed_state()) == before
