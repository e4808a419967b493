"""One error tree: whatever the user can mend derives from ``UserError`` and ends with exit status 2."""

import difflib
from collections.abc import Iterable


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """``known`` with the most similar names first, the others in alphabetical order: what to say of an unknown name."""
    def alike(other: str) -> float:
        ratio = difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()
        return ratio if ratio >= 0.4 else 0.0

    return sorted(sorted(known), key=alike, reverse=True)


class QRABOError(Exception):
    """Base of every error raised on purpose by ``qra_bo``."""

    exit_status = 1


class UserError(QRABOError):
    """The user's input or environment can't work; the message says what to do."""

    exit_status = 2


class ConfigError(UserError):
    """One or more configuration values are wrong; all problems are reported at once."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(" ".join(f"({i}) {p}" if len(self.problems) > 1 else p
                                  for i, p in enumerate(self.problems, start=1)))


class SpaceError(UserError):
    """A ladder, an allocation or a search space is malformed."""


class BudgetError(UserError):
    """A budget is malformed, or no allocation of the space fits it."""


class ModelError(UserError):
    """A base model is unknown, not at hand, or not a decoder that can be handled."""


class DataError(UserError):
    """A data file is missing, malformed or too small."""


class DeviceError(UserError):
    """The requested device or backend is not available on this machine."""


class OutputError(UserError):
    """The run's folder can't be used: foreign, locked by another process, or not writable."""


class JournalError(UserError):
    """A journal can't be read, or belongs to another configuration or a newer schema."""


class ProfileError(UserError):
    """A sensitivity profile is malformed, or lacks what is asked of it."""


class WorkerError(UserError):
    """A worker could not be started, or was lost again and again in work that can't be done without."""


class TrainingError(UserError):
    """A training that nothing can go on without diverged or ran out of memory."""


class OracleError(QRABOError):
    """An oracle broke its contract: a bug, never a result."""


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed; "
                         f"run: pip install 'qra_bo[{extra}]'")
