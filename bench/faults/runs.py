"""Whole runs in killable processes, for the benchmark of faults.

Processes are forked from one that has imported everything, because imports take ten times as long as a run of
``tiny``. Workers of a run are forked too, instead of started anew; all else is as in ``python -m qra_bo``.
"""

import fcntl
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qra_bo.execution import local, worker
from qra_bo.study.journal import JOURNAL_NAME, LOCK_NAME, read_journal

OVERRIDES = (
    "+model=tiny", "data=tiny", "display=none", "device=cpu", "effort=quick", "method=evolution", "granularity=block",
    "effort.max_full_trials=9", "effort.uniform_baselines=1", 
    "confirm.seeds=2", "final.steps=2", "bits=[2,4,8]", "quantizer.formats.2=[hqq2]", "quantizer.formats.4=[hqq4]",
    "quantizer.formats.8=[hqq8]",
    "train.batch=2", "train.length=32", "eval.sequences=8", "fidelity.high=8", "fidelity.low=4", "data.max_records=64",
    "calibrate.lr_scales=[1.0,2.0]", "worker.checkpoint_seconds=0")
"""The smallest run that has every stage: real quantisation, training, checkpoints at every step, and promotion."""
NEEDED = ("torch", "peft", "transformers.models.llama.modeling_llama", "qra_bo.pipeline.executors",
          "qra_bo.pipeline.run", "qra_bo.finetune.oracle", "qra_bo.searchers.evolution.searcher",
          "pymoo.indicators.hv",
          "qra_bo.export.registry", "qra_bo.finetune.data.load", "qra_bo.finetune.models.load",
          "qra_bo.finetune.quantization.bank")
Prepare = Callable[[], None]


def warm_up() -> None:
    """Import what every run needs, on one thread (a forked process must not miss any), and use most of it once.

    Runs write no report: it is made from the journal, and takes as long as the rest.
    """
    import torch

    torch.set_num_threads(1)
    for name in NEEDED:
        importlib.import_module(name)
    from qra_bo.config import load_config
    from qra_bo.pipeline import listeners, run
    from qra_bo.pipeline.oracles import make_oracle

    with tempfile.TemporaryDirectory() as folder:
        make_oracle(load_config(OVERRIDES).to_dict(), folder).close()
    run.write_report = listeners.write_report = lambda folder: []


@dataclass(frozen=True)
class Ended:
    """How a run's process ended.

    Args:
        status: Exit status, or minus the signal that killed it.
        output: What it printed.
        seconds: How long it ran.
    """

    status: int
    output: str
    seconds: float

    @property
    def is_clear(self) -> bool:
        """Whether it stopped with a message for people: no traceback, and a status that says so."""
        return self.status in (0, 2, 3, 130, 143) and "Traceback" not in self.output


HANG_SIGNAL = signal.SIGUSR2
"""Makes a forked worker hang: a stopped one is waited for."""


class ForkedWorker:
    """A worker process as ``subprocess.Popen`` would start it, but forked.

    Args:
        pass_fds: Descriptors for ``worker.main``: its side of the connection, and the driver's pipe.
    """

    def __init__(self, _command: Sequence[str], stdin: int, pass_fds: tuple[int, int]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _close_all_but(*pass_fds)
                signal.signal(HANG_SIGNAL, lambda *_: time.sleep(1e6))
                worker.main(*pass_fds)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)

    def poll(self) -> int | None:
        """Return its exit status, or minus the signal that killed it; ``None`` while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 300.0) -> int:
        """Raises ``subprocess.TimeoutExpired`` if it goes on."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(.002)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _close_all_but(*kept: int) -> None:
    """Close descriptors that a fresh interpreter would not inherit: the run's lock, and its ends of the pipes."""
    before = 2
    for fd in sorted(kept):
        os.closerange(before + 1, fd)
        before = fd
    os.closerange(before + 1, os.sysconf("SC_OPEN_MAX"))


class RunProcess:
    """A run that goes on in a process of its own.

    Args:
        folder: ``out`` of the run.
        overrides: Beyond ``OVERRIDES``.
        prepare: Called in the new process before the run: what is to go wrong in it.
    """

    def __init__(self, folder: Path, overrides: tuple[str, ...] = (), prepare: Prepare | None = None) -> None:
        self.folder, self._log = folder, folder.with_name(f"{folder.name}.{time.monotonic_ns()}.log")
        self._began = time.monotonic()
        self._log.touch()  # it may be killed before it does anything
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(overrides, prepare)

    def _be(self, overrides: tuple[str, ...], prepare: Prepare | None) -> None:
        """The forked process; never returns."""
        status = 1
        try:
            os.setpgid(0, 0)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            vars(local)["subprocess"] = SimpleNamespace(Popen=ForkedWorker, DEVNULL=subprocess.DEVNULL,
                                                        TimeoutExpired=subprocess.TimeoutExpired)
            if prepare is not None:
                prepare()
            from qra_bo.cli.app import main

            status = main([*OVERRIDES, f"out={self.folder}", *overrides])
        except BaseException as error:
            print(f"Traceback: {error!r}", flush=True)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def catches(self, signum: int) -> bool:
        """Whether it has a handler of its own for a signal."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return False
        caught = next((line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
        return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)

    def children(self) -> list[int]:
        """Its worker processes."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def wait(self, seconds: float = 300.0) -> Ended:
        """Wait for its end and for its workers'.

        Raises:
            TimeoutError: If it hangs.
        """
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"the run in {self.folder} did not end within {seconds:g} s")
            time.sleep(.005)
        took = time.monotonic() - self._began
        _wait_until_free(self.folder, 30.0)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, self.read_output(), took)

    def read_output(self) -> str:
        """What it printed; once."""
        output = self._log.read_text(encoding="utf-8", errors="replace")
        self._log.unlink()
        return output


def _wait_until_free(folder: Path, seconds: float) -> None:
    """Wait until nobody holds the run's lock: forked workers hold it too, until they see that the run is dead."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with (folder / LOCK_NAME).open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(.01)
    raise TimeoutError(f"the lock of {folder} is still held")


def damaged_lines(folder: Path) -> tuple[int, ...]:
    """Numbers of the lines of the journal whose checksum does not hold."""
    return read_journal(folder / JOURNAL_NAME).damaged


def warnings(folder: Path) -> str:
    """All warnings of the journal in one text."""
    return "\n".join(e["message"] for e in read_journal(folder / JOURNAL_NAME).events if e["event"] == "warning")


def states(folder: Path) -> list[str]:
    """How every evaluation ended."""
    return [e["state"] for e in read_journal(folder / JOURNAL_NAME).events if e["event"] == "trial"]


def keys(folder: Path) -> list[str]:
    """Finished evaluations in the order of the journal; empty where there is none yet."""
    path = folder / JOURNAL_NAME
    if not path.exists():
        return []
    return [e["key"] for e in read_journal(path).events if e["event"] == "trial"]


def journal_lines(folder: Path) -> int:
    """Complete lines of the journal; 0 where there is none."""
    try:
        return (folder / JOURNAL_NAME).read_bytes().count(b"\n")
    except OSError:
        return 0


def result(folder: Path) -> dict[str, Any]:
    """``best.json`` without what differs between any two runs: times, measured bytes, the commit."""
    best: dict[str, Any] = json.loads((folder / "best.json").read_text(encoding="utf-8"))
    best["cost"] = {k: v for k, v in best["cost"].items() if not k.endswith("seconds")}
    best["memory"] = {k: v for k, v in best["memory"].items() if k != "measured_bytes"}
    best["provenance"] = {k: v for k, v in best["provenance"].items() if k != "git"}
    return best


def adapter(folder: Path) -> bytes:
    """The delivered adapter's weights."""
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()
