"""Limits on memory by control groups, as a container or a scheduler sets them."""

from pathlib import Path

import pytest

from qra_bo.memory.budget import free_bytes
from qra_bo.utils import device
from qra_bo.utils.device import memory_groups


@pytest.fixture(name="groups")
def make_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device, "GROUPS", tmp_path)
    monkeypatch.setattr(device, "OWN_GROUPS", tmp_path / "own")
    return tmp_path


def group(folder: Path, *, limit: str, used: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "") if version == 2 else \
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]}inactive_file 30\n{names[2]}active_file 70\n")


def test_the_tightest_group_above_a_process_counts(groups: Path) -> None:
    (groups / "own").write_text("0::/slurm/job_7/step_0\n")
    group(groups / "slurm" / "job_7" / "step_0", limit="max", used=600, version=2)
    group(groups / "slurm" / "job_7", limit="2000", used=800, version=2)
    assert list(memory_groups()) == [(2000, 1300)]
    assert free_bytes("cpu") == 1300


def test_a_container_sees_its_own_group_at_the_root(groups: Path) -> None:
    (groups / "own").write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    group(groups / "memory", limit="1000", used=1200, version=1)
    assert list(memory_groups()) == [(1000, 0)]
