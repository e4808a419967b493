"""Provenance of results (versions, commit, machine), and whether a journal may be continued."""

import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from qra_bo.config.resume import differences, flatten
from qra_bo.utils.errors import JournalError
from qra_bo.utils.version import __version__

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "hqq", "botorch", "gpytorch", "numpy", "scipy", "pymoo",
            "safetensors", "gguf", "datasets")
INCOMPARABLE = ("data_sha256", "dtype", "train", "model_sha256")
"""Facts that may not change between the sessions of one run: results before and after would not compare."""
NOTABLE = ("version", "git", "packages", "device", "threads", "python", "platform")
"""Facts that may change, which gives a warning."""
_LISTED = 8
"""Differences that a message spells out."""


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that results can depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed has no part in the results
    return found


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
            "packages": package_versions(), "python": platform.python_version(), "platform": platform.platform(),
            **described}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what changed between two sessions of a run without making results incomparable, in words.

    Raises:
        JournalError: If model, data, compute type or trainer differ.
    """
    broken = [f"{k} was {before.get(k)!r} and is {now.get(k)!r}" for k in INCOMPARABLE if before.get(k) != now.get(k)]
    if broken:
        raise JournalError(f"the run can't be continued, its results before and after would not compare: "
                           f"{'; '.join(broken)}. Restore that, or start a new run with another out=")
    found = []
    for key in NOTABLE:
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += [f"{name} {old.get(name)} -> {new.get(name)}" for name in sorted(old.keys() | new.keys())
                      if old.get(name) != new.get(name)]
        elif old != new:
            found.append(f"{key} {old} -> {new}")
    return found


def check_same_configuration(path: Path, before: Mapping[str, Any], before_sha256: str, config: Mapping[str, Any],
                             config_sha256: str, may_differ: frozenset[str] = frozenset()) -> None:
    """Refuse to continue the journal ``path`` of another configuration.

    Args:
        path: For the message.
        before: Configuration in the journal's header.
        before_sha256: Its hash.
        config: The configuration of this run.
        config_sha256: Its hash over the keys that are not harmless (``qra_bo.config.resume``).
        may_differ: Further top-level keys that the hashes leave out.

    Raises:
        JournalError: If the hashes differ; it lists the keys that do.
    """
    if before_sha256 == config_sha256:
        return
    found = [d for d in differences(before, config, harmless=False) if d[0].split(".")[0] not in may_differ]
    listed = "; ".join(f"{key} was {old!r} and is {new!r}" for key, old, new in found[:_LISTED])
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    variables = [key for key, value in flatten(config).items() if "${" in str(value)]
    agree = f"the environment gives {' or '.join(variables)} another value" if variables else \
        "the values agree, but the release that wrote it hashed other keys"
    what = listed + more if found else agree
    raise JournalError(f"the journal {path} belongs to another configuration: {what}. Continue it with the values it "
                       "was started with, or start a new run with another out=")
