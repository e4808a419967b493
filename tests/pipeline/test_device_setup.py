"""What a worker does to its device before the first tensor."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from qra_bo.config import load_config
from qra_bo.pipeline import finetune_oracle
from qra_bo.pipeline.executors import prepare_worker_environment
from qra_bo.utils.device import expand_segments

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
AT_IMPORT = """
import os, sys
from importlib.abc import MetaPathFinder
from qra_bo.config import load_config
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.pipeline.prepare import make_setting

class AtImport(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print([os.environ.get(key) for key in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")], flush=True)
            os._exit(0)

config = load_config(["model=tiny", "data=tiny", "budget=1GB", "device=cpu"])
make_setting(config)  # in the driver, before any worker starts
assert "torch" not in sys.modules
sys.meta_path.insert(0, AtImport())
make_oracle(config.to_dict(), "unused")
"""


class Loaded(Exception):
    """Raised in the place of loading a model."""


@pytest.mark.parametrize(("device", "index"), [("cuda:1", 1), ("cuda", 0), ("auto", 0)])
def test_worker_makes_its_gpu_the_current_one(device: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    def set_device(chosen: torch.device) -> None:
        current.append(torch.cuda._utils._get_device_index(chosen))  # raises what torch's own raises

    def load(_: object) -> None:
        assert current[-1] == index
        raise Loaded

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(finetune_oracle, "load_base", load)
    config = load_config(["model=tiny", "data=tiny", "budget=1GB", f"device={device}", "dtype=float32"])
    with pytest.raises(Loaded):
        finetune_oracle.make_finetune(config, None)  # type: ignore[arg-type]


def test_segments_are_expandable_when_a_worker_imports_torch() -> None:
    env = {key: value for key, value in os.environ.items() if key not in NAMES}
    done = subprocess.run([sys.executable, "-c", AT_IMPORT], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(["expandable_segments:True"] * 2), done.stderr


@pytest.mark.parametrize(("kernel", "value"), [
    ("5.15.167.4-microsoft-standard-WSL2", None), ("4.4.0-19041-Microsoft", None),
    ("6.8.0-45-generic", "expandable_segments:True")])
def test_segments_stay_as_they_are_on_wsl(kernel: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(platform, "release", lambda: kernel)
    expand_segments()
    assert {key: os.environ.get(key) for key in NAMES} == dict.fromkeys(NAMES, value)


@pytest.mark.parametrize(("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"),
                                              ({"OMP_WAIT_POLICY": "active"}, None)])
def test_threads_of_a_worker_sleep_soon_at_barriers(given: dict[str, str], spins: str | None,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    prepare_worker_environment()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    assert given.items() <= os.environ.items()
