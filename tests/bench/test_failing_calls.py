"""One system call fails, of Python's and of native libraries, and all others go on."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.faults.failing_calls import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "available")
PROGRAM = """
import json, os, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from bench.faults.failing_calls import Failure, Site, Supervisor

folder, call, file, number, error = Path(sys.argv[1]), *sys.argv[2:4], *map(int, sys.argv[4:6])
watched = Supervisor([folder / "run"], Failure(Site(call, file), number, error))
pid = os.fork()
if pid == 0:
    watched.connect()
    met = []
    try:
        exec(sys.argv[6])
    except Exception as failed:
        met.append(str(failed))
    (folder / "met.json").write_text(json.dumps(met))
    os._exit(0)
watched.start()
os.waitpid(pid, 0)
watched.finish()
seen = {f"{site.call} {site.file}": n for site, n in watched.seen.items()}
print(json.dumps({"hit": watched.hit, "seen": seen, "met": json.loads((folder / "met.json").read_text())}))
"""
WRITES = """
for name in ("a123", "a456", "a789"):
    (folder / name).write_text(name)
    try:
        with open(folder / "run" / name, "wb", buffering=0) as file:
            file.write(name.encode())
    except OSError as failed:
        met.append(failed.errno)
os.rename(folder / "run" / "a789", folder / "run" / "b")
"""


def ended(folder: Path, call: str, file: str, number: int, error: int, code: str) -> dict[str, Any]:
    """What a program under supervision met, and the calls that it made."""
    (folder / "run").mkdir()
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), call, file, str(number), str(error), code],
                          check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_only_the_numbered_call_of_a_kind_fails(tmp_path: Path) -> None:
    found = ended(tmp_path, "write", "run/a#", 2, errno.ENOSPC, WRITES)
    assert found["met"] == [errno.ENOSPC]
    assert found["hit"] == str(tmp_path / "run" / "a456")
    assert found["seen"] == {"openat run/a#": 3, "write run/a#": 3, "rename run/b": 1}
    assert {p.name: p.read_text() for p in (tmp_path / "run").iterdir()} == {"a123": "a123", "a456": "", "b": "a789"}


def test_call_that_is_never_made_hits_nothing(tmp_path: Path) -> None:
    found = ended(tmp_path, "write", "run/a#", 4, errno.EIO, WRITES)
    assert (found["met"], found["hit"]) == ([], "")


@pytest.mark.parametrize("call", ["openat", "write", "renameat"])
def test_writes_of_a_native_library_fail(tmp_path: Path, call: str) -> None:
    file = "run/x.safetensors" if call == "renameat" else "run/.tmp#"
    found = ended(tmp_path, call, file, 1, errno.EACCES, 'save_file({"x": np.ones(9)}, folder / "run/x.safetensors")')
    assert len(found["met"]) == 1
    assert "Permission denied" in found["met"][0]
    assert list((tmp_path / "run").iterdir()) == []


def test_refusal_of_the_kernel_is_told(tmp_path: Path) -> None:
    code = "from bench.faults.failing_calls import unavailable\nmet.append(unavailable())"  # one supervisor at a time
    assert ended(tmp_path, "write", "run/x", 1, errno.EIO, code)["met"] == [
        f"the kernel refuses seccomp's user notification here ({os.strerror(errno.EBUSY)})"]
