"""NVIDIA cards by name: memory, speed and compute capability, so that a plan needs no card at hand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qra_bo.utils.errors import ConfigError, nearest_first


@dataclass(frozen=True, slots=True)
class Card:
    """One card.

    Args:
        title: Name as the driver reports it, without the vendor (``torch.cuda.get_device_name``).
        gib: Memory that CUDA reports; less than is printed on the box, most of all with error correction.
        tflops: Dense 16-bit products with fp32 accumulation, in 10^12 operations a second; ``None``: not known.
        capability: Compute capability, e.g. ``(8, 9)``.
    """

    title: str
    gib: float
    tflops: float | None
    capability: tuple[int, int]

    @property
    def total_bytes(self) -> int:
        return round(self.gib * 2**30)


USABLE = 11.62 / 12
"""Share of the GiB on the box that CUDA reports, at least: that of the RTX 3060, without error correction."""
ALIKE = 0.07
"""Largest difference in memory of cards with one size on the box: error correction takes 6 %."""
CARDS: Mapping[str, Card] = {
    "t4": Card("Tesla T4", 14.56, 65, (7, 5)),
    "v100": Card("Tesla V100-SXM2-16GB", 15.75, 125, (7, 0)),
    "v100_32": Card("Tesla V100-SXM2-32GB", 31.73, 125, (7, 0)),
    "rtx3060": Card("GeForce RTX 3060", 11.62, 25.5, (8, 6)),
    "rtx3070": Card("GeForce RTX 3070", 7.76, 40.6, (8, 6)),
    "rtx3090": Card("GeForce RTX 3090", 23.55, 71, (8, 6)),
    "rtx4080": Card("GeForce RTX 4080", 15.57, 97.5, (8, 9)),
    "rtx4090": Card("GeForce RTX 4090", 23.51, 165.2, (8, 9)),
    "rtx5090": Card("GeForce RTX 5090", 31.33, 209.5, (12, 0)),
    "a10": Card("A10", 21.99, 125, (8, 6)),
    "a100_40": Card("A100-SXM4-40GB", 39.38, 312, (8, 0)),
    "a100_80": Card("A100-SXM4-80GB", 79.14, 312, (8, 0)),
    "l4": Card("L4", 22.03, 121, (8, 9)),
    "l40s": Card("L40S", 44.39, 362, (8, 9)), "h100": Card("H100 80GB HBM3", 79.10, 989.4, (9, 0))}
"""Cards by the name that ``gpu=`` takes.

Memory: the lowest total that a public report names together with the card: torch's device properties and out-of-memory
messages, start-up lines of Ultralytics and Unsloth, a server's log (rtx4080). Newer drivers leave less than older ones.

Products: NVIDIA's data sheets (t4, v100, a10, a100, l4, l40s) and white papers (h100 and all rtx but two: "Peak FP16
Tensor TFLOPS with FP32 Accumulate"), as public repositories and pages quote them; the documents themselves were not
read. Those of rtx3060 and rtx3070 are computed: 3,584 cores at 1.777 GHz and 5,888 at 1.725, 4 operations each.
Compute capabilities: NVIDIA's list of CUDA GPUs and torch's device properties.
"""


def card_named(title: str) -> Card | None:
    """Return the card of a device name such as ``"NVIDIA GeForce RTX 4090"``; ``None`` where the table lacks it."""
    return next((card for card in CARDS.values() if _folded(card.title) == _folded(title)), None)


def card_by_key(key: str) -> Card:
    """Return the card of a key, see ``card_key``. One that is known by its memory alone is taken for a recent one."""
    size = _SIZE.fullmatch(key)
    return CARDS[key] if size is None else Card(f"card of {size[1]} GB", USABLE * float(size[1]), None, (8, 0))


def timed_card(card: Card) -> Card | None:
    """Return the card by whose speed times on ``card`` are estimated: itself, and of one that is known by its memory
    alone the slowest of the table with about as much; ``None`` where there is none."""
    alike = [c for c in CARDS.values() if c.tflops is not None and abs(c.gib / card.gib - 1) < ALIKE]
    return card if card.tflops is not None else min(alike, key=lambda c: c.tflops or 0.0, default=None)


def card_key(name: str) -> str:
    """Return the name in ``CARDS`` of a card that is named with other capitals, spaces or dashes, by its title, or by
    its digits alone where no other card has them; of another card the GiB on its box.

    >>> card_key("RTX 4090"), card_key("4090"), card_key("NVIDIA L40S"), card_key("8 GB")
    ('rtx4090', 'rtx4090', 'l40s', '8GB')

    Raises:
        ConfigError: If it names no card, or several.
    """
    plain = _folded(name)
    if size := _SIZE.fullmatch(plain):
        return f"{size[1]}GB"
    found = [key for key, card in CARDS.items() if plain in (_folded(key), _folded(card.title))] or \
        [key for key in CARDS if plain == re.sub(r"\D", "", key)]
    if len(found) != 1:
        known = ", ".join(nearest_first(plain, CARDS))
        raise ConfigError(f"{name!r} is not a card of the table; known, nearest first: {known}. For another card give "
                          "the memory on its box, e.g. gpu=8GB")
    return found[0]


_SIZE = re.compile(r"([1-9]\d{0,3})gi?b", re.IGNORECASE)


def _folded(name: str) -> str:
    """Return a name without the vendor, spaces and dashes."""
    return re.sub(r"[\s_-]", "", name).lower().removeprefix("nvidia")
