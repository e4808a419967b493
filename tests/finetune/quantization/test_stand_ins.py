"""Stand-ins against the real layers: the same stored storages, the same peak while unpacking and multiplying."""

from collections import Counter
from collections.abc import Mapping

import pytest
import torch

from bench.memory.trace import stand_in
from qra_bo.finetune.memory_probe import PeakTracker, module_tensors
from qra_bo.finetune.quantization.base import packed
from qra_bo.memory.formats import FORMATS, parse_format, scratch_bytes
from tests.conformance.quantizer import quantize

CPU = torch.device("cpu")
SHAPES = [(64, 128), (192, 640), (1536, 640)]  # the last has more weights than a tile


def sizes(state: Mapping[str, torch.Tensor]) -> Counter[int]:
    return Counter(t.untyped_storage().nbytes() for t in state.values())


def profile(layer: torch.nn.Module, device: torch.device) -> tuple[int, int, int]:
    """Live bytes before, at the peak of and after unpacking, then at the peak of a product forward and backward."""
    with PeakTracker() as tracker:
        tracker.track(module_tensors(layer))
        dense = packed(layer).unpack()
        unpacking, kept = tracker.peak_bytes, tracker.live_bytes
        del dense
        x = torch.zeros(8, packed(layer).in_features, dtype=packed(layer).compute_dtype, device=device,
                        requires_grad=True)
        tracker.reset_peak()
        layer(x).sum().backward()
        return unpacking, kept, tracker.peak_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_stand_ins_have_storages_and_peaks_of_real_layers(name: str, dtype: torch.dtype) -> None:
    fmt = parse_format(name)
    for shape in SHAPES:
        dense = torch.nn.Linear(shape[1], shape[0], bias=shape[0] == 192).to(dtype).requires_grad_(False)
        real = quantize(dense, fmt, dtype)
        stand = stand_in(fmt, shape, dense.bias is not None, dtype, CPU)
        assert sizes(packed(stand).packed_state()) == sizes(packed(real).packed_state())
        assert profile(stand, torch.device("meta")) == profile(real, CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_scratch_of_unpacking_is_predicted(name: str, dtype: torch.dtype) -> None:
    fmt, shape = parse_format(name), (1536, 640)
    layer = stand_in(fmt, shape, False, dtype, CPU)
    stored = sum(sizes(packed(layer).packed_state()).elements())
    peak = profile(layer, torch.device("meta"))[0]
    dense = 0 if fmt.backend == "none" and dtype == torch.bfloat16 else dtype.itemsize * shape[0] * shape[1]
    predicted = scratch_bytes(fmt, *shape, "cpu", dtype.itemsize)
    assert peak - stored - dense <= predicted + 4096
