"""The table of cards: consistent with the memory and the generations that the names state."""

import pytest

from qra_bo.memory.cards import CARDS, card_by_key, card_key, card_named, timed_card
from qra_bo.utils.errors import ConfigError

NOMINAL_GIB = {"t4": 16, "v100": 16, "v100_32": 32, "rtx3060": 12, "rtx3070": 8, "rtx3090": 24, "rtx4080": 16,
               "rtx4090": 24, "rtx5090": 32, "a10": 24, "a100_40": 40, "a100_80": 80, "l4": 24, "l40s": 48, "h100": 80}


def test_reported_memory_is_90_to_100_percent_of_the_printed() -> None:
    assert set(CARDS) == set(NOMINAL_GIB)
    assert all(0.9 <= card.total_bytes / (NOMINAL_GIB[name] * 2**30) < 1 for name, card in CARDS.items())


def test_device_names_find_their_card() -> None:
    assert card_named("NVIDIA GeForce RTX 4090") is CARDS["rtx4090"]
    assert card_named("Tesla T4") is CARDS["t4"]
    assert card_named("NVIDIA GeForce GT 710") is None


@pytest.mark.parametrize(("given", "key"), [
    ("RTX4090", "rtx4090"), ("rtx 4090", "rtx4090"), ("RTX-4090", "rtx4090"), ("4090", "rtx4090"),
    ("A100-80", "a100_80"),
    ("NVIDIA GeForce RTX 4090", "rtx4090"), ("V100", "v100"), ("L4", "l4"),
    ("8 GB", "8GB"), ("8gib", "8GB"), *((name, name) for name in CARDS)])
def test_cards_may_be_named_otherwise(given: str, key: str) -> None:
    assert card_key(given) == key


def test_a_card_that_the_table_lacks_is_known_by_the_memory_on_its_box() -> None:
    unnamed, known = card_by_key(card_key("12 GB")), CARDS["rtx3060"]
    assert (unnamed.total_bytes, unnamed.capability, unnamed.tflops) == (known.total_bytes, (8, 0), None)
    assert card_by_key("rtx3060") is known
    for wrong in ("8", "0GB", "8.5TB"):
        with pytest.raises(ConfigError):
            card_key(wrong)


@pytest.mark.parametrize(("given", "timed"), [
    ("8GB", "rtx3070"), ("12GB", "rtx3060"), ("16GB", "t4"), ("24GB", "rtx3090"), ("32GB", "v100_32"), ("48GB", "l40s"),
    ("80GB", "a100_80"), ("rtx4090", "rtx4090"), ("6GB", None), ("10GB", None)])
def test_times_on_a_card_of_a_size_are_those_of_the_slowest(given: str, timed: str | None) -> None:
    assert timed_card(card_by_key(given)) is (None if timed is None else CARDS[timed])
