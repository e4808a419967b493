"""Faults of machines, disks, clocks, files and packages; each is provoked in its own runs.

The runs are those of ``oracle=synthetic``, which trains nothing, where the fault is no matter of training.
"""

import ctypes
import datetime
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.log import Session
from bench.faults.runs import Ended, RunProcess, damaged_lines, journal_lines, keys, result, states, warm_up, warnings
from bench.report import Target, publish
from qra_bo.study.journal import JOURNAL_NAME

PLANTED = ("oracle=synthetic", "effort.max_full_trials=14")
PAUSE = 0.02
"""Seconds that an evaluation of the planted oracle takes here."""
Rng = np.random.Generator
Try = Callable[[Path, Path, Rng], str]
"""``(folder of the run, folder of the undisturbed run, random)``: one try; what went wrong, or nothing."""


def slowly() -> None:
    """Let every evaluation of the planted oracle take its time."""
    from qra_bo.oracle.synthetic import SyntheticOracle

    evaluate = SyntheticOracle.evaluate

    def slow(self: SyntheticOracle, request: Any, progress: Any) -> Any:
        time.sleep(PAUSE)
        return evaluate(self, request, progress)

    SyntheticOracle.evaluate = slow  # type: ignore[method-assign]


def planted(folder: Path, prepare: Callable[[], None] | None = None) -> RunProcess:
    """A run of the planted oracle in a process of its own, with what is to go wrong in it."""
    def both() -> None:
        slowly()
        if prepare is not None:
            prepare()

    return RunProcess(folder, PLANTED, both)


def _at_random(process: RunProcess, plain: Path, rng: Rng) -> None:
    """Wait until the run is somewhere between its second line and its end."""
    lines = int(rng.integers(2, journal_lines(plain) - 4))
    end = time.monotonic() + 120
    while journal_lines(process.folder) < lines and time.monotonic() < end:
        time.sleep(.002)
    time.sleep(float(rng.uniform(0, PAUSE)))


def ends_as(folder: Path, plain: Path, ended: Ended) -> str:
    """Return how a run that ended differs from the undisturbed one; empty where it does not."""
    if ended.status != 0:
        return f"it ended with {ended.status}: {ended.output[-400:]}"
    if len(set(keys(folder))) < len(keys(folder)) or set(keys(folder)) != set(keys(plain)):
        return "evaluations were lost or repeated"
    return "" if result(folder) == result(plain) else "the result differs from the undisturbed run's"


def _says(ended: Ended, status: int, *texts: str) -> str:
    missing = [t for t in texts if t not in ended.output]
    if ended.status == status and not missing and ended.is_clear:
        return ""
    return f"ended with {ended.status} instead of {status}, or without {missing}: {ended.output[-400:]}"


def cut_line(folder: Path, plain: Path, rng: Rng) -> str:
    """A process dies while it writes: the last line is cut off anywhere."""
    folder.mkdir()
    raw = (plain / JOURNAL_NAME).read_bytes()
    (folder / JOURNAL_NAME).write_bytes(raw[:int(rng.integers(1, len(raw) - 1))])
    return ends_as(folder, plain, planted(folder).wait())


def flipped_bit(folder: Path, plain: Path, rng: Rng) -> str:
    """A disk flips a bit of a journal: the line is named and the rest kept; without a header the run is refused."""
    folder.mkdir()
    raw = bytearray((plain / JOURNAL_NAME).read_bytes())
    at = int(rng.integers(len(raw)))
    raw[at] ^= 1 << int(rng.integers(8))
    (folder / JOURNAL_NAME).write_bytes(raw)
    number = bytes(raw[:at]).count(b"\n") + 1
    if number == 1:
        before = (folder / JOURNAL_NAME).read_bytes()
        problem = _says(planted(folder).wait(), 2, JOURNAL_NAME)
        return problem or ("" if (folder / JOURNAL_NAME).read_bytes() == before else "the journal was written to")
    hurt = damaged_lines(folder)
    ended = planted(folder).wait()
    if ended.status != 0:
        return f"it ended with {ended.status}: {ended.output[-400:]}"
    last = number > bytes(raw).count(b"\n")
    if not last and (not hurt or f"line {hurt[0]} of {JOURNAL_NAME} is damaged" not in warnings(folder)):
        return f"line {number} was changed and not named"
    if set(keys(folder)) != set(keys(plain)) or len(keys(folder)) != len(set(keys(folder))):
        return "evaluations were lost or repeated"
    return "" if result(folder)["search_loss"] == result(plain)["search_loss"] else "another winner"


def full_disk(folder: Path, plain: Path, rng: Rng) -> str:
    """The disk fills up somewhere in the run (a file system of a few pages), and is then freed."""
    folder.mkdir()
    pages = int(rng.integers(3, 2 + (plain / JOURNAL_NAME).stat().st_size // 4096))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "none", str(folder)], check=True)
    try:
        problem = _says(planted(folder).wait(), 2, "can't be written", "No space left")
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        return problem or ends_as(folder, plain, planted(folder).wait())
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def read_only(folder: Path, plain: Path, rng: Rng) -> str:
    """The folder is read-only from the start, or becomes so in the middle of the run; then it is mended."""
    folder.mkdir()
    late = bool(rng.integers(2))
    if not late:
        folder.chmod(0o555)
    process = planted(folder, obey_permissions)
    if late:
        _at_random(process, plain, rng)
        folder.chmod(0o555)
    problem = _says(process.wait(), 2, "can't be written", "Permission denied")
    folder.chmod(0o755)
    return problem or ends_as(folder, plain, planted(folder, obey_permissions).wait())


def obey_permissions() -> None:
    """Give up root's right to write where no permission is given (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    for field in (0, 1):  # effective, permitted
        data[field] &= ~0b110
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def vanished(folder: Path, plain: Path, rng: Rng) -> str:
    """The folder is moved away in the middle of the run, and put back."""
    process = planted(folder)
    _at_random(process, plain, rng)
    away = folder.with_name(f"{folder.name}-away")
    folder.rename(away)
    problem = _says(process.wait(), 2, "can't be written")
    if folder.exists():
        return "the folder was made again"
    away.rename(folder)
    return problem or ends_as(folder, plain, planted(folder).wait())


def jumping_clock(folder: Path, plain: Path, rng: Rng) -> str:
    """The machine's clock jumps by up to a year, forth and back, all the time; the run is killed once meanwhile."""
    seed = int(rng.integers(1 << 30))

    def jump() -> None:
        drawn, real = random.Random(seed), time.time

        class Jumping(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return super().now(tz) + datetime.timedelta(days=drawn.uniform(-365, 365))

        time.time = lambda: real() + drawn.uniform(-3e7, 3e7)
        from qra_bo.study import journal, status

        for module in (journal, status):
            vars(module)["datetime"] = Jumping

    process = planted(folder, jump)
    _at_random(process, plain, rng)
    process.signal(signal.SIGKILL)
    process.wait()
    return ends_as(folder, plain, planted(folder, jump).wait())


def second_process(folder: Path, plain: Path, rng: Rng) -> str:
    """Another process is started on a run that goes on: it is told who holds it."""
    first = planted(folder)
    _at_random(first, plain, rng)
    first.signal(signal.SIGSTOP)  # it must not end before the second has begun
    second = planted(folder)
    _, status = os.waitpid(second.pid, 0)  # and not second.wait(): that waits for the lock, which the first holds
    told = Ended(os.waitstatus_to_exitcode(status), second.read_output(), 0.0)
    problem = _says(told, 2, "is in use by", str(first.pid))
    first.signal(signal.SIGCONT)
    return problem or ends_as(folder, plain, first.wait())


def upgraded_package(folder: Path, plain: Path, rng: Rng) -> str:
    """A package is upgraded between a kill and the resume: it is told, and the run goes on."""
    def upgrade() -> None:
        version = metadata.version
        metadata.version = lambda name: "99.0" if name == "numpy" else version(name)  # type: ignore[assignment]

    problem = _killed(folder, plain, rng)
    ended = planted(folder, upgrade).wait()
    said = "-> 99.0" in warnings(folder)
    best = result(folder)
    best["provenance"]["packages"]["numpy"] = result(plain)["provenance"]["packages"]["numpy"]
    if problem or ended.status != 0 or not said:
        return problem or f"it ended with {ended.status}, told: {said}: {ended.output[-300:]}"
    return "" if best == result(plain) else "the result differs from the undisturbed run's"


def other_data(folder: Path, plain: Path, rng: Rng) -> str:
    """Data, or a base model, changed between a kill and the resume: refused, and right again once they are back."""
    def change() -> None:
        from qra_bo.oracle.synthetic import SyntheticOracle

        describe = SyntheticOracle.describe
        SyntheticOracle.describe = lambda self: {**describe(self), "data_sha256": "0"}  # type: ignore[method-assign]

    problem = _killed(folder, plain, rng)
    problem = problem or _says(planted(folder, change).wait(), 2, "can't be continued", "data_sha256")
    return problem or ends_as(folder, plain, planted(folder).wait())


def _killed(folder: Path, plain: Path, rng: Rng) -> str:
    process = planted(folder)
    _at_random(process, plain, rng)
    process.signal(signal.SIGKILL)
    return "" if process.wait().status == -signal.SIGKILL else "it ended before it was killed"


def _failing(state: str, spoil: Callable[[Any], None]) -> Try:
    """A try in which one training step of the real oracle goes wrong: a result, and the run ends well."""
    def once(folder: Path, plain: Path, rng: Rng) -> str:
        at = int(rng.integers(17, 30))

        def prepare() -> None:
            from qra_bo.finetune import oracle as finetune

            steps, calls = finetune.train_step, [0]

            def faulty(model: Any, *rest: Any) -> int:
                calls[0] += 1
                done = steps(model, *rest)
                if calls[0] == at:
                    spoil(model)
                return done

            finetune.train_step = faulty

        ended = RunProcess(folder, ("calibrate.lr_scales=[1.0]", "confirm.seeds=0"), prepare).wait()
        if ended.status != 0:
            return f"it ended with {ended.status}: {ended.output[-400:]}"
        found = [s for s in states(folder) if s != "ok"]
        return "" if found == [state] else f"{found} instead of one {state}"

    return once


def _host_memory(model: Any) -> None:
    import torch

    torch.empty(1 << 50, dtype=torch.uint8)


def _device_memory(model: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _not_a_number(model: Any) -> None:
    for p in model.parameters():
        if p.requires_grad:
            p.data.fill_(float("nan"))


AGAIN = "stops with status 2 and goes on to the same result"
KINDS: dict[str, tuple[Try, str]] = {
    "a line cut off": (cut_line, "goes on to the same result"),
    "a bit flipped in the journal": (
        flipped_bit, "line named, the rest kept, its evaluation done again; a broken header is refused"),
    "a full disk": (full_disk, AGAIN), "a read-only folder": (read_only, AGAIN),
    "a folder that vanishes": (vanished, f"{AGAIN} once it is back"),
    "a clock that jumps": (jumping_clock, "same result"),
    "two processes on one run": (second_process, "the second is told who holds it; the first ends the same"),
    "a package upgraded before the resume": (upgraded_package, "told, same result"),
    "other data before the resume": (other_data, "refused with status 2; same result once they are back"),
    "out of host memory": (_failing("oom", _host_memory), "a result without a loss; the run ends well"),
    "out of device memory": (
        _failing("oom", _device_memory), "the same (the device's error is raised: no GPU is needed)"),
    "weights that are not numbers": (_failing("diverged", _not_a_number), "a divergence; the run ends well")}
"""Try and outcome of every fault."""
TRIES = 10
"""Of every fault."""


def needs_root(kind: str) -> bool:
    """Whether a fault can only be made by who may mount file systems, and this process may not."""
    return kind == "a full disk" and (os.getuid() != 0 or shutil.which("mount") is None)


def provoke(session: Session) -> bool:
    """Try every fault in turn and return whether every try was well."""
    tries, wanted = session.tries("faults"), 1 if session.short else TRIES
    warm_up()
    before, plain = tries.tried, session.folder / "planted"
    rng = session.random(1, before.total())
    ended = planted(plain).wait()
    if ended.status != 0:
        raise RuntimeError(f"the undisturbed run with {PLANTED} ended with {ended.status}: {ended.output}")
    for number in range(wanted):  # in turn: a run that is stopped has tried them all about as often
        for kind in KINDS:
            if before[kind] + number < wanted and not session.is_over and not needs_root(kind):
                tries.add(kind, _inject(kind, number, session.folder, plain, rng))
    tried, good = tries.tried, tries.good
    rows = [{"fault": kind, "tries": tried[kind], "good": good[kind],
             "outcome": outcome if tried[kind] else "not tried: no time, or no right to mount",
             "oracle": "real" if "memory" in kind or "numbers" in kind else "planted"}
            for kind, (_, outcome) in KINDS.items()]
    well = sum(0 < r["good"] == r["tries"] >= wanted for r in rows)
    target = Target("faults met as they should be in every try", f"all {len(rows)}, {wanted} tries each", well,
                    well == len(rows))
    publish("faults", [target], rows, ["fault", "tries", "good", "outcome", "oracle"], threads=1,
            folder=session.results)
    return tried == good


def _inject(kind: str, number: int, folder: Path, plain: Path, rng: Rng) -> str:
    """Make one try of one fault; return what went wrong, or nothing."""
    where = folder / f"{list(KINDS).index(kind)}-{number}"
    try:
        problem = KINDS[kind][0](where, plain, rng)
    except Exception as error:  # whatever a broken run leaves behind is told with it
        problem = f"{type(error).__name__}: {error}"
    if not problem:
        shutil.rmtree(where, ignore_errors=True)
    print(f"{kind}, try {number}: {problem or 'well'}", flush=True)
    return problem
