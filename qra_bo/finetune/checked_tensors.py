"""Files of tensors with a checksum, so that damaged contents are never used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qra_bo.utils.files import follow_umask


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add name, type, shape and all bytes of each tensor to a hash, in the order of their names and one at a time."""
    for name, tensor in sorted(tensors.items()):
        host = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name} {host.dtype} {list(host.shape)}\n".encode())
        digest.update(host.reshape(-1).view(torch.uint8).numpy().data)


def fast_hash(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """Return the XXH3 hash of tensors and a text: for damage and differences, not against forgery."""
    digest = xxhash.xxh3_128(facts.encode())
    add_tensors(digest, tensors)
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Replace ``path`` by contiguous tensors and their texts, with a new file's permissions. Raises ``OSError``."""
    try:
        save_file(dict(tensors), path, metadata=None if about is None else dict(about))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    follow_umask(path)


def save_checked(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON values with the checksum of both; raises ``OSError``."""
    text = json.dumps(facts)
    save_tensors(path, tensors, {"facts": text, "checksum": fast_hash(tensors, text)})


def load_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and JSON values of ``save_checked``.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    text = about.get("facts", "")
    if about.get("checksum") != fast_hash(tensors, text):
        raise ValueError("its checksum does not hold")
    facts: dict[str, Any] = json.loads(text)
    return tensors, facts
