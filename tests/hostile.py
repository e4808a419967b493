"""Environments in which every command must work: another user, traps in the working directory, bad standard streams."""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534
"""Id of a user without rights, whom tests of permissions become where they run as root."""
TRAPS = {
    "conf/config.yaml": "seed: 13\nmodel: trap\n", "conf/model/tiny.yaml": "name: trap\n", "conf/__init__.py": "",
    "conf.py": "raise RuntimeError('conf.py of the working directory was imported')\n",
    "surrogates/__init__.py": "raise RuntimeError('surrogates of the working directory was imported')\n",
    "json.py": "raise RuntimeError('json.py of the working directory was imported')\n",
    ".env": "QRA_BO_CACHE=/nonexistent\nHYDRA_FULL_ERROR=1\nPYTHONPATH=/nonexistent\n"}
"""Files of a working directory that a program might take for its own."""
ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict"}
SECONDS = 280
_LIBC = ctypes.CDLL(None)
_PR_CAPBSET_DROP, _LAST_CAPABILITY = 24, 40


@dataclass(frozen=True)
class Environment:
    """Conditions that one command is run under.

    Args:
        variables: Added to the environment.
        shell: Redirections of ``sh`` after the command, e.g. ``">&-"``; ``{pipe}`` stands for a reader that has gone.
        traps: Whether the working directory holds ``TRAPS``.
        script: Whether the command is run by a plain script, whose workers import nothing of it.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    shell: str = ""
    traps: bool = False
    script: bool = False


ENVIRONMENTS = {
    "traps": Environment(traps=True), "closed-stdout": Environment(shell=">&-"),
    "closed-stderr": Environment(shell="2>&-"),
    "closed": Environment(shell="<&- >&- 2>&-"), "full-stdout": Environment(shell=">/dev/full"),
    "full": Environment(shell=">/dev/full 2>/dev/full"), "gone-reader": Environment(shell="2>&1 | true"),
    "ascii": Environment(ASCII), "backend": Environment({"MPLBACKEND": "nonsense"}), "script": Environment(script=True)}


@dataclass(frozen=True)
class Ended:
    """What a command came to."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """Home, cache and working directory of one user, for commands of this checkout.

    Args:
        folder: Holds them; it and everything in it belongs to ``uid``.
        uid: The user, or ``None`` for the one that runs the tests.
    """

    folder: Path
    uid: int | None

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def own(self) -> None:
        """Give every file to the user."""
        if self.uid is not None:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def run(self, *words: str, under: Environment | None = None, module: str = "qra_bo",
            variables: Mapping[str, str] | None = None) -> Ended:
        """Run ``python -m MODULE WORDS`` in the working directory; the exit status is its own, behind a pipe too."""
        under = under or Environment()
        if under.traps:
            for name, text in TRAPS.items():
                path = self.work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        python = [sys.executable, "-m", module]
        if under.script:
            (self.work / "plain.py").write_text(
                "import sys\nfrom qra_bo.__main__ import main\nif 'plain' not in sys.argv[0]:\n"
                "    raise RuntimeError('the script was imported again')\nsys.exit(main())\n")
            python = [sys.executable, "plain.py"]
        self.own()
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "OMP_NUM_THREADS", "LANG", "LD_LIBRARY_PATH")}
        environment = {**keep, "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": str(ROOT),
                       "QRA_BO_CACHE": str(self.folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **under.variables,
                       **(variables or {})}
        command = f'{{ "$@"; echo $? >"{self.folder}/status"; }} {under.shell}'
        done = subprocess.run(["sh", "-c", command, "sh", *python, *words], cwd=self.work, env=environment,
                              capture_output=True, timeout=SECONDS, check=False, preexec_fn=self._become())
        status = int((self.folder / "status").read_text())
        return Ended(status, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def _become(self) -> Callable[[], None]:
        uid = self.uid

        def become() -> None:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in a shell; Python ignores it again
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            elif os.geteuid() == 0:
                for capability in range(_LAST_CAPABILITY + 1):
                    _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)

        return become


def readable_by_others() -> bool:
    """Return whether an unprivileged user can run this interpreter and read this checkout."""
    return all(path.stat().st_mode & 0o005 == 0o005 for start in (ROOT, Path(sys.executable).parent,
                                                                 Path(sys.executable).resolve().parent)
               for path in (start, *start.parents))


@contextmanager
def unprivileged() -> Iterator[Place]:
    """Make a place of a user without rights: the one that runs the tests, or, where that is root, ``NOBODY``, or root
    without capabilities where ``NOBODY`` could not even start the interpreter."""
    folder = Path(tempfile.mkdtemp(prefix="qra_bo-user-"))  # not below pytest's, which is its user's alone
    try:
        for name in ("work", "cache", "tmp"):
            (folder / name).mkdir()
        place = Place(folder, NOBODY if os.geteuid() == 0 and readable_by_others() else None)
        place.own()
        yield place
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
