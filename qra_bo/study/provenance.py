"""Provenance of results (versions, commit, machine), and whether a journal may be continued."""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_bo.config.resume import changed, differences, flatten
from qra_bo.study.header import Header
from qra_bo.utils.errors import JournalError
from qra_bo.utils.version import __version__, versions

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "botorch", "gpytorch", "numpy", "numba", "scipy",
            "pymoo", "safetensors", "gguf", "datasets")
INCOMPARABLE = ("data_sha256", "dtype", "train", "model_sha256", "base")
"""Facts that may not change between the sessions of one run: results before and after would not compare."""
NOTABLE = ("version", "git", "packages", "device", "threads", "python", "platform")
"""Facts that may change, which gives a warning."""
_LISTED = 8
"""Differences that a message spells out."""


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout that holds ``folder``, with ``-dirty`` where tracked files of it differ.

    ``None`` outside a checkout (an installed package) or without git.
    """
    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", "__init__.py"):
            return None  # installed inside somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def collect(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the provenance event: this process's own, and over them the oracle's."""
    return {"version": __version__, "git": git_commit(Path(__file__).parents[1]),
            "packages": versions(PACKAGES), "python": platform.python_version(), "platform": platform.platform(),
            **described}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed between two sessions of a run without making results incomparable, in words. Raises
    ``JournalError`` if model, data, compute type or trainer differ."""
    if broken := changed(*({k: facts.get(k) for k in INCOMPARABLE} for facts in (before, now))):
        raise JournalError(f"the run can't be continued, its results before and after would not compare: "
                           f"{'; '.join(broken)}. Restore that, or start a new run with another out=")
    old, new = (flatten({key: facts.get(key) for key in NOTABLE}) for facts in (before, now))
    return [f"{key.removeprefix('packages.')} {old.get(key)} -> {new.get(key)}"
            for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def check_same_run(path: Path, before: Header, now: Header) -> None:
    """Refuse to continue the journal ``path``, begun with the header ``before``, in another run. Raises
    ``JournalError`` if what is given, the configuration (the hash over its keys that are not harmless), or the file of
    learned rates is another; it says what differs."""
    given = [None if h.given is None else (h.given.allocations, h.given.learning_rate) for h in (before, now)]
    if given[0] != given[1]:
        one, other = ("searches" if side is None else "trains a given allocation" for side in given)
        differs = f"this one {other}" if one != other else "this one trains another, or at another learning rate"
        raise JournalError(f"the journal {path} belongs to a run that {one}, and {differs}; nothing in its "
                           "folder was touched: continue it with the task and allocation that it was started with, or "
                           "start a new run with another out=")
    if before.config_sha256 != now.config_sha256:
        found = [f"{key} was {old!r} and is {new!r}"
                 for key, old, new in differences(before.config, now.config, harmless=False)]
        more = [f"and {len(found) - _LISTED} more"] if len(found) > _LISTED else []
        variables = [key for key, value in flatten(now.config).items() if "${" in str(value)]
        agree = f"the environment gives {' or '.join(variables)} another value" if variables else \
            "the values agree, but the release that wrote it hashed other keys"
        raise JournalError(f"the journal {path} belongs to another configuration: "
                           f"{'; '.join(found[:_LISTED] + more) or agree}. Continue it with the values it was started "
                           "with, or start a new run with another out=")
    if before.rates_sha256 != now.rates_sha256:  # the run would not repeat its proposals or its prediction
        raise JournalError(f"the run in {path} can't be continued: the file of surrogate.rates has changed since it "
                           f"began (its sha256 was {before.rates_sha256}). Restore it, or give another out=")
