"""One error tree, with exit status 2 for every error that the user can resolve; and the kinds of torch's failures."""

import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory",
                 "CUDA error: out of memory", "CUDA driver error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
                 "CUSOLVER_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",
                 "CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate", "Triton Error [CUDA]: out of memory")
"""Texts of torch's and Triton's plain ``RuntimeError`` where host or device memory ran out.

Segments that grow map memory through the driver, which has a text of its own. A handle of cuBLAS or cuSOLVER that finds
no room fails with a status that does not name memory."""


def nearest_first(name: str, known: Iterable[str]) -> list[str]:
    """Sort ``known`` for a message about an unknown name: the most similar first, others in alphabetical order."""
    def alike(other: str) -> float:
        ratio = difflib.SequenceMatcher(None, name[:100].lower(), other.lower()).ratio()
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
    """A base model is unknown, not available, or not a decoder that can be handled."""


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
    """A worker could not be started, or died repeatedly in work that a run can't do without."""


class TrainingError(UserError):
    """A training that a run can't do without diverged or ran out of memory."""


class ContractError(QRABOError):
    """An oracle or a search method broke its contract: a bug, never a result."""


class MissingExtraError(UserError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed; "
                         f"run: pip install 'qra_bo[{extra}]'")


_REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or give another path"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free the disk, then run the same command again"),
    errno.ENAMETOOLONG: "give a shorter name", errno.EIO: "check the disk, or give a path on another one",
    **dict.fromkeys((errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST), "give another path")}
"""What to do about failures of the file system, by error number; others may be bugs."""


def from_system(error: Exception) -> OutputError | None:
    """Return a failure of the file system as an error that the user can resolve; ``None`` for any other."""
    if not isinstance(error, OSError) or error.filename is None or error.errno not in _REMEDIES:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return OutputError(f"{name} can't be used ({error.strerror}): {_REMEDIES[error.errno]}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or device memory ran out; classes are compared by name, so that torch need not be loaded."""
    return (isinstance(error, MemoryError) or any(c.__name__ == "OutOfMemoryError" for c in type(error).__mro__)
            or (isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)))


def from_lack_of_memory(error: BaseException) -> DeviceError | None:
    """Return a lack of host or device memory as an error that the user can resolve; ``None`` for any other."""
    if isinstance(error, QRABOError) or not is_out_of_memory(error):
        return None
    first = (str(error).splitlines() or [""])[0]
    return DeviceError(f"memory ran out ({type(error).__name__}: {first}): end other programs that hold memory of the "
                       "device or the machine, lower train.batch or train.length, name a smaller budget or model, or "
                       "use a device with more memory")


@contextmanager
def explaining_lack_of_memory(said: str) -> Iterator[None]:
    """Turn a lack of host or device memory within the block into a ``DeviceError`` that says so."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(said) from error


def is_device_lost(error: BaseException) -> bool:
    """Whether the process's GPU context is unusable after ``error``, so that further work there fails too."""
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return any(c.__name__ == "AcceleratorError" for c in type(error).__mro__) or "CUDA error: " in str(error)
