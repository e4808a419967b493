"""Results kept on disk between runs."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from qra_bo.finetune import cache
from qra_bo.finetune.adapters.lowrank import Factors, leading
from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.quantization import planes
from qra_bo.memory import formats
from qra_bo.space import decoder


def test_tensors_are_kept_on_disk_and_the_oldest_go(tmp_path: Path) -> None:
    factors = leading(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), 3)
    tensors = {"down": factors.down, "up": factors.up}
    store = TensorStore(tmp_path, {"weights": "a"}, keep=2)
    assert store.load("layer.nf4") is None
    store.save("layer.nf4", tensors)
    again = TensorStore(tmp_path, {"weights": "a"}).load("layer.nf4")
    assert again is not None
    assert torch.equal(Factors(**again).product(), factors.product())
    assert TensorStore(tmp_path, {"weights": "b"}).load("layer.nf4") is None
    for weights in "bc":
        TensorStore(tmp_path, {"weights": weights}, keep=2).save("layer.nf4", tensors)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("module", [planes, formats, decoder])
def test_a_release_with_other_code_reads_no_older_results(module: ModuleType, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    def folder() -> Path:
        cache._code_hash.cache_clear()
        return TensorStore(tmp_path, {}).folder

    before, read, changed = folder(), Path.read_bytes, Path(str(module.__file__))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path == changed))
    assert folder() != before
    monkeypatch.undo()
    assert folder() == before
