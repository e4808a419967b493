"""Stand-ins against the real layers: the same stored storages, the same peak while unpacking and multiplying."""

from collections import Counter
from collections.abc import Mapping

import pytest
import torch

from bench.memory.trace import stand_in
from qra_bo.finetune.memory_probe import PeakTracker, module_tensors
from qra_bo.finetune.quantization.base import RingBackend, backend_of
from qra_bo.memory.formats import FORMATS, parse_format, scratch_bytes
from tests.conformance.quantizer import make_linear

CPU = torch.device("cpu")
SHAPES = [(64, 384), (192, 768), (1536, 768)]  # the last has more weights than a tile


def sizes(state: Mapping[str, torch.Tensor]) -> Counter[int]:
    return Counter(t.untyped_storage().nbytes() for t in state.values())


def profile(layer: torch.nn.Module, device: torch.device) -> tuple[int, int, int]:
    """Live bytes before, at the peak of and after unpacking, then at the peak of a product forward and backward."""
    with PeakTracker() as tracker:
        tracker.track(module_tensors(layer))
        dense = layer.unpack()
        unpacking, kept = tracker.peak_bytes, tracker.live_bytes
        del dense
        x = torch.zeros(8, layer.in_features, dtype=layer.compute_dtype, device=device, requires_grad=True)
        tracker.reset_peak()
        layer(x).sum().backward()
        return unpacking, kept, tracker.peak_bytes


def is_slow(name: str) -> bool:
    """Whether a format is another group size of one that is always tested, or in rings of 16 bits."""
    kind, block = name.partition("-")[0], FORMATS[name].block
    return name != kind and block != 64 and (block == 0 or not FORMATS.keys().isdisjoint((kind, f"{kind}-g64")))


EVERY_FORMAT = pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * is_slow(name)) for name in sorted(FORMATS)])
DTYPES = (torch.bfloat16, torch.float32)


@EVERY_FORMAT
def test_stand_ins_have_storages_and_peaks_of_real_layers(name: str) -> None:
    fmt = parse_format(name)
    for shape in SHAPES[:2] if isinstance(backend_of(fmt), RingBackend) else SHAPES:  # rings are slow to pack
        weight, offset = make_linear(*shape).weight, torch.zeros(shape[0]) if shape[0] == 192 else None
        states = {dtype: backend_of(fmt).pack(weight.to(dtype), fmt, CPU) for dtype in DTYPES[:1 + (fmt.bits == 16)]}
        for dtype in DTYPES:
            state, bias = states.get(dtype, states[DTYPES[0]]), None if offset is None else offset.to(dtype)
            real = backend_of(fmt).build(state, fmt, shape, bias, dtype)
            stand = stand_in(fmt, shape, offset is not None, dtype, CPU)
            assert sizes(stand.packed_state()) == sizes(real.packed_state())
            assert profile(stand, torch.device("meta")) == profile(real, CPU)


@pytest.mark.parametrize("dtype", DTYPES)
@EVERY_FORMAT
def test_scratch_of_unpacking_is_predicted(name: str, dtype: torch.dtype) -> None:
    fmt, shape = parse_format(name), (1536, 768)
    layer = stand_in(fmt, shape, False, dtype, CPU)
    stored = sum(tensor.untyped_storage().nbytes() for tensor in module_tensors(layer))
    peak = profile(layer, torch.device("meta"))[0]
    dense = 0 if fmt.backend == "none" and dtype == torch.bfloat16 else dtype.itemsize * shape[0] * shape[1]
    predicted = scratch_bytes(fmt, *shape, "cpu", dtype.itemsize)
    assert peak - stored - dense <= predicted + 4096
