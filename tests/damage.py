"""Damage to files, for sweeps over whatever files a run or a cache really wrote."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path


def _each(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Sequence[Path], random.Random], None]:
    def damage(files: Sequence[Path], rng: random.Random) -> None:
        for path in files:
            path.write_bytes(change(path.read_bytes(), rng))

    return damage


def flipped(content: bytes, rng: random.Random) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    if changed:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _swap(files: Sequence[Path], rng: random.Random) -> None:
    """Give every file the content of another one of its kind."""
    kinds: dict[str, list[Path]] = {}
    for path in files:
        kinds.setdefault(path.suffix, []).append(path)
    for alike in kinds.values():
        contents = [path.read_bytes() for path in alike]
        for path, content in zip(alike, (*contents[1:], contents[0]), strict=True):
            path.write_bytes(content)


def _folders(files: Sequence[Path], rng: random.Random) -> None:
    """Put a folder in the place of every file: not even root can read it."""
    for path in files:
        path.unlink()
        path.mkdir()


DAMAGES: dict[str, Callable[[Sequence[Path], random.Random], None]] = {
    "flip": _each(flipped), "truncate": _each(lambda content, rng: content[: rng.randrange(max(1, len(content)))]),
    "empty": _each(lambda content, rng: b""), "swap": _swap, "folder": _folders}
