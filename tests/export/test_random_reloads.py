"""Random allocations over all formats, written as a run's folder and loaded again; damaged codes are refused."""

from pathlib import Path

import pytest
import torch

from qra_bo.export.load import load
from qra_bo.finetune.manifest import PACKED, tensors_digest
from qra_bo.memory.formats import FORMATS
from qra_bo.utils.errors import OutputError
from tests.export.allocations import build, make_case


@pytest.mark.parametrize("first", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(5, 100, 5))])
def test_packed_tensors_are_those_of_the_run(first: int, tmp_path: Path) -> None:
    for number in range(first, first + 5):
        run = build(make_case(number), tmp_path / str(number))
        model = load(run.folder, adapter=False)[0]
        for name, record in run.manifest.modules.items():
            layer = model.get_submodule(name)
            assert layer.fmt == record.format
            assert tensors_digest(layer.packed_state()) == record.sha256


@pytest.mark.parametrize("fmt", [name for name, f in FORMATS.items() if f.backend == "trellis"])
def test_damaged_rings_are_refused(fmt: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    case = next(c for c in map(make_case, range(10**6)) if fmt in c.formats)
    run = build(case, tmp_path)
    tensors = load_file(tmp_path / PACKED)
    name = next(n for n, record in run.manifest.modules.items() if record.format.name == fmt)
    codes = tensors[f"{name}:codes"].view(-1)
    codes[len(codes) // 2] ^= 1
    save_file(tensors, tmp_path / PACKED)
    with pytest.raises(OutputError, match="damaged"):
        load(tmp_path)
    assert codes.dtype == torch.uint8
