"""Environments in which every command must work: another user, traps in the working directory, bad standard streams."""

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65534
"""Id of a user without rights, whom tests of permissions become where they run as root."""
OWN = ("work", "cache", "tmp")
"""Folders of a place that are its user's."""
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
        folder: Holds them; it and everything in them belongs to ``uid``.
        uid: The user, or ``None`` for the one that runs the tests.
        python: Interpreter of the commands.
        modules: Where they find the project; ``None``: installed in the interpreter's environment.
    """

    folder: Path
    uid: int | None
    python: Path = Path(sys.executable)
    modules: Path | None = ROOT

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def own(self) -> None:
        """Give every file to the user, but for an environment of the interpreter."""
        if self.uid is not None:
            roots = [self.folder / name for name in OWN]
            for path in (self.folder, *roots, *(path for root in roots for path in root.rglob("*"))):
                os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def run(self, *words: str, under: Environment | None = None, module: str = "qra_bo",
            seconds: float = SECONDS) -> Ended:
        """Run ``python -m MODULE WORDS`` in the working directory; the exit status is its own, behind a pipe too."""
        under = under or Environment()
        if under.traps:
            for name, text in TRAPS.items():
                path = self.work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        python = [str(self.python), "-m", module]
        if under.script:
            (self.work / "plain.py").write_text(
                "import sys\nfrom qra_bo.__main__ import main\nif 'plain' not in sys.argv[0]:\n"
                "    raise RuntimeError('the script was imported again')\nsys.exit(main())\n")
            python = [str(self.python), "plain.py"]
        self.own()
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "OMP_NUM_THREADS", "LANG", "LD_LIBRARY_PATH")}
        environment = {**keep, "HOME": str(self.folder), "TMPDIR": str(self.folder / "tmp"),
                       "QRA_BO_CACHE": str(self.folder / "cache"), "PYTHONDONTWRITEBYTECODE": "1",
                       **({"PYTHONPATH": str(self.modules)} if self.modules else {}), **under.variables}
        command = f'{{ "$@"; echo $? >"{self.folder}/status"; }} {under.shell}'
        done = subprocess.run(["sh", "-c", command, "sh", *python, *words], cwd=self.work, env=environment,
                              capture_output=True, timeout=seconds, check=False, preexec_fn=self._become())
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


def installed() -> Path:
    """Return the folder of what is installed beside the project."""
    return Path(sysconfig.get_path("purelib"))


@functools.cache
def python_of_others() -> Path | None:
    """Return an interpreter of this version that ``NOBODY`` can start, and that can read this checkout and what is
    installed; this one where that can. For root alone to ask."""
    here = Path(sys.executable)
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    system = shutil.which(name, path=f"{os.defpath}:/usr/local/bin")
    check = "import os, sys, venv; sys.exit(not all(os.access(p, os.R_OK | os.X_OK) for p in sys.argv[1:]))"
    for python in [here, *([Path(system)] if system else [])]:
        with suppress(PermissionError):
            done = subprocess.run([python, "-c", check, ROOT, installed()], user=NOBODY, group=NOBODY, extra_groups=[],
                                  cwd="/", capture_output=True, check=False)
            if done.returncode == 0:
                return python
    return None


def environment(folder: Path, python: Path) -> Path:
    """Make a virtual environment that also holds what is installed in this one; return its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    [own] = folder.glob("lib/python*/site-packages")
    (own / "others.pth").write_text(f"{installed()}\n")
    return folder / "bin" / "python"


@contextmanager
def unprivileged() -> Iterator[Place]:
    """Make a place of a user without rights: the one that runs the tests, or, where that is root, ``NOBODY``, or root
    without capabilities where ``NOBODY`` can start no interpreter."""
    folder = Path(tempfile.mkdtemp(prefix="qra_bo-user-"))  # not below pytest's, which is its user's alone
    try:
        for name in OWN:
            (folder / name).mkdir()
        python = python_of_others() if os.geteuid() == 0 else None
        place = Place(folder, None if python is None else NOBODY)
        if python not in (None, place.python):
            place = replace(place, python=environment(folder / "environment", python))
        place.own()
        yield place
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
