"""Models of the hub: the driver downloads them, with the hub's own progress and resumption; workers read the cache.

Only safetensors (or the one GGUF file that is named), configuration and tokenizer files are ever asked for.
"""

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from qra_bo.finetune.models.files import CONFIG, WEIGHTS, bases_of, check_model_files, shards
from qra_bo.finetune.models.gguf_header import parts_of
from qra_bo.memory import format_size
from qra_bo.utils.errors import ModelError
from qra_bo.utils.files import free_on_disk

SMALL = (CONFIG, "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Configuration, tokenizer and index files, which are read before any weights are asked for."""
FOLDERS = "*/*"
"""Files in subfolders of a repository: exports for other programs."""
SPARE = 256 * 10**6
"""Bytes that a download leaves free on the disk."""
log = logging.getLogger(__name__)


def is_on_hub(model: Mapping[str, Any]) -> bool:
    """Whether a node of ``conf/model`` names a repository of the hub, and no folder of this machine."""
    paths = (base.get("path") for base in bases_of(model))
    return model["source"] == "path" and any(path and not Path(str(path)).exists() for path in paths)


def fetch(model: Mapping[str, Any], *, bars: bool = True) -> None:
    """Download what the hub's cache lacks of a model; do nothing for models of other sources.

    ``bars`` shows the hub's progress bars where stderr is a terminal.

    Raises:
        ModelError: If the repository can't be reached or read, holds no safetensors, or the disk is too small.
    """
    for base in filter(is_on_hub, bases_of(model)):
        repo = _Repository(base)
        small = repo.get(SMALL) if base.get("gguf_file") is None else Path()  # a GGUF file holds all
        folder = repo.get(_weights(small, base), bars=bars and sys.stderr.isatty())
        if base.get("revision") is None:
            log.warning("model.revision is not set: the newest revision of %s, commit %s, was taken; pin it with "
                        "model.revision=%s", base.get("path"), folder.name, folder.name)


def small_files(model: Mapping[str, Any]) -> Path:
    """Return the folder of a model's configuration and tokenizer, downloaded where they are of the hub.

    Raises:
        ModelError: If the repository can't be reached or read.
    """
    return _Repository(model).get(SMALL) if is_on_hub(model) else Path(str(model.get("path")))


def tokenizer_folder(model: Mapping[str, Any]) -> Path | None:
    """Return the folder of the hub's cache with the tokenizer of a model of the hub, ``None`` where the cache lacks it;
    asks no network."""
    return _Repository(model).local(parts_of(model.get("gguf_file")) or SMALL)


def cached(model: Mapping[str, Any]) -> Path:
    """Return the folder of the hub's cache with a model that ``fetch`` downloaded; asks no network.

    Raises:
        ModelError: If the cache lacks a part of it.
    """
    repo = _Repository(model)
    folder = repo.local(parts_of(model.get("gguf_file")) or [CONFIG])
    if folder is None or repo.local(_weights(folder, model)) is None:
        raise ModelError(f"the hub's cache on this machine lacks {model['path']!r} or a part of it; run a command with "
                         "a network, which downloads it, or give a folder as model.path")
    return folder


def _weights(folder: Path, model: Mapping[str, Any]) -> list[str]:
    """Return the files with the weights: one, or the shards of the index.

    Raises:
        ModelError: If something in ``folder`` would make transformers read other files.
    """
    if named := parts_of(model.get("gguf_file")):
        return named
    check_model_files(folder, str(model["name"]))
    return shards(folder) or [WEIGHTS]


class _Repository:
    """One revision of a repository, and its folder in the hub's cache."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.name, self.revision = str(model.get("path")), model.get("revision")
        self._options: dict[str, Any] = {"repo_id": self.name, "revision": self.revision, "ignore_patterns": [FOLDERS]}
        self._code = ["*.py"] if model.get("trust_remote_code") else []

    def local(self, files: Sequence[str]) -> Path | None:
        """Return the folder in the cache where it holds ``files``, else ``None``; asks no network."""
        from huggingface_hub import errors, snapshot_download  # half a second that models of other sources do without
        try:
            folder = Path(snapshot_download(**self._options, allow_patterns=list(files), local_files_only=True))
        except (errors.HFValidationError, errors.LocalEntryNotFoundError):
            return None
        return folder if all((folder / name).exists() for name in _exact(files)) else None

    def get(self, files: Sequence[str], *, bars: bool = False) -> Path:
        """Download the files of these patterns that the cache lacks; return their folder.

        Raises:
            ModelError: If they can't be had.
        """
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
        wanted: dict[str, Any] = {**self._options, "allow_patterns": [*files, *self._code]}
        try:
            with self._explained(), disable_progress_bars():
                listed = snapshot_download(**wanted, dry_run=True)
        except ModelError:
            have = self.local(files)
            if have is None:
                raise
            return have
        lacking = sorted(set(_exact(files)) - {file.filename for file in listed})
        if lacking:
            raise ModelError(f"the hub's repository {self.name!r} holds no {', '.join(lacking[:3])}; weights are read "
                             "from safetensors alone, because pickles can run code: take a repository, or a revision "
                             "with model.revision, that holds a transformers model in safetensors")
        missing, cache = [file for file in listed if file.will_download], Path(constants.HF_HUB_CACHE)
        size, free = sum(file.file_size or 0 for file in missing), free_on_disk(cache)
        if size + SPARE > free:
            raise ModelError(f"the download of {self.name!r} takes {format_size(size)}, {format_size(SPARE)} should "
                             f"stay free, and the disk of {cache} has {format_size(free)}; free some, or name a folder "
                             "on another disk by the environment variable HF_HOME")
        if size > SPARE:
            log.warning("downloading %d files of %s (%s) to %s", len(missing), self.name, format_size(size), cache)
        with self._explained(), nullcontext() if bars and missing else disable_progress_bars():
            return Path(snapshot_download(**wanted))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of the hub, the network and the disk into one that says what to do."""
        from huggingface_hub import constants, errors
        try:
            yield
        except Exception as error:  # those of the HTTP library have other classes in every release of the hub's
            opaque = isinstance(error, errors.DryRunError | errors.LocalEntryNotFoundError)
            cause = error.__cause__ or error if opaque else error
            raise ModelError(self._advice(cause, constants.ENDPOINT, constants.HF_HUB_CACHE)) from error

    def _advice(self, error: BaseException, hub: str, cache: str) -> str:
        from huggingface_hub import errors
        status = getattr(getattr(error, "response", None), "status_code", None)
        name, again = repr(self.name), "run the same command again: files that arrived whole are kept"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        match error:
            case errors.GatedRepoError():
                return (f"{name} is gated: the hub gives it to accounts that its owner has approved, and refused this "
                        f"one ({status}). Ask for access on {hub}/{self.name}, log in with 'hf auth login' or set "
                        "HF_TOKEN, and run the same command again")
            case errors.RevisionNotFoundError():
                return (f"the hub's repository {name} has no revision {self.revision!r}; correct model.revision, or "
                        "leave it out for the newest")
            case errors.RepositoryNotFoundError():
                return (f"the hub at {hub} has no repository {name}, or shows it to its members alone ({status}); give "
                        "model.path as ORG/NAME or an existing folder, or log in with 'hf auth login'")
            case errors.HFValidationError():
                return f"model.path={name} is no folder here and no id of the hub (ORG/NAME); correct it"
            case errors.HfHubHTTPError():
                return f"the hub at {hub} answered {status} for {name} ({reason}); later, {again}"
            case OSError(errno=int()) if not isinstance(error, ConnectionError):
                return (f"the files of {name} can't be written to {cache} ({error.strerror}); free the disk or make "
                        f"the folder writable, or name another by the environment variable HF_HOME, and {again}")
        return (f"the download of {name} from {hub} broke off or could not begin ({reason}), and the cache in {cache} "
                f"lacks a part of it; with a network, {again}. Or give a folder with *.safetensors as model.path")


def _exact(files: Sequence[str]) -> list[str]:
    """Return the names among names and patterns."""
    return [file for file in files if "*" not in file]
