"""Gap closed and differences: closed forms, coverage by simulation, and when nothing can be said."""

import numpy as np
import pytest
from scipy import stats

from bench.table1.statistics import difference, gap_closed, shared
from qra_bo.study.intervals import two_way_interval

SEEDS = range(8)
LEVELS = np.random.default_rng(3).normal(0, 0.02, 8)
QLORA = {s: 4.10 + LEVELS[s] for s in SEEDS}
LORA_16 = {s: 4.00 + LEVELS[s] + 0.001 * (s % 3) for s in SEEDS}


def test_the_ends_are_0_and_100_percent() -> None:
    zero, one = gap_closed(QLORA, QLORA, LORA_16), gap_closed(LORA_16, QLORA, LORA_16)
    assert (zero.share, zero.low, zero.high) == (0.0, 0.0, 0.0)
    assert one.share == pytest.approx(1.0)
    assert one.low == pytest.approx(1.0)


def test_a_shared_level_cancels_and_the_interval_is_students() -> None:
    noise = np.array([0.001, -0.002, 0.0005, 0.0, 0.001, -0.001, 0.002, -0.0015])
    row = {s: 4.04 + LEVELS[s] + noise[s] for s in SEEDS}
    found = gap_closed(row, QLORA, LORA_16)
    gain = np.array([QLORA[s] - row[s] for s in SEEDS])
    gap = np.array([QLORA[s] - LORA_16[s] for s in SEEDS])
    share = gain.sum() / gap.sum()
    half = stats.t.ppf(0.975, 7) * (gain - share * gap).std(ddof=1) / np.sqrt(8) / gap.mean()
    assert found.share == pytest.approx(share)
    assert (found.low, found.high) == (pytest.approx(share - half), pytest.approx(share + half))


def test_the_interval_covers() -> None:
    rng, hits, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        level, noise = rng.normal(0, 0.02, 5), rng.normal(0, 0.004, (3, 5))
        q, x, lora = ({s: base + level[s] + noise[i, s] for s in range(5)} for i, base in enumerate((4.10, 4.03, 4.00)))
        found = gap_closed(x, q, lora)
        hits += found.low <= 0.7 <= found.high
    assert 0.91 <= hits / n <= 0.985


def test_no_row_is_better_on_the_seeds_that_it_survived() -> None:
    whole = {s: 4.0 + 0.001 * s for s in range(8)}
    lower = {s: loss - 0.1 - 0.001 * (s % 3) for s, loss in whole.items()}
    part = {s: lower[s] for s in range(6)}
    verdicts = [d.verdict for d in (difference(lower, whole), difference(part, whole), difference(part, whole, [6, 7]),
                                    difference(part, {s: whole[s] for s in range(6)}, [6, 7]),
                                    difference(whole, lower)) if d is not None]
    assert verdicts == ["better", "better", "undecided", "better", "worse"]


def test_a_gap_within_its_noise_is_unresolved() -> None:
    wild = {s: 4.0 + LEVELS[s] + (-0.3 if s % 2 else 0.4) for s in SEEDS}
    found = gap_closed(QLORA, QLORA, wild)
    assert found.share is None
    assert found.note.startswith("unresolved: the gap between QLoRA and LoRA-16 is")
    assert "0 training seeds in common" in gap_closed({99: 4.0}, QLORA, LORA_16).note
    assert gap_closed(QLORA, LORA_16, QLORA).share is None  # QLoRA no worse than 16 bits: nothing to close


def test_differences_are_paired_and_signed() -> None:
    assert shared({1: 0.0, 2: 0.0}, {2: 0.0, 3: 0.0}) == [2]
    found = difference(LORA_16, QLORA)
    assert found.verdict == "better"
    assert found.mean == pytest.approx(-0.1 + 0.001 * np.mean([s % 3 for s in SEEDS]))
    back = difference(QLORA, LORA_16)
    assert (back.verdict, back.mean, back.train_seeds) == ("worse", -found.mean, 8)
    level = difference({0: 1.0, 1: 2.0}, {0: 1.1, 1: 1.9, 5: 0.0})
    assert (level.verdict, level.train_seeds) == ("undecided", 2)
    few = difference({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, {0: 1.5, 1: 2.5, 2: 3.5, 3: 4.51})
    assert few.high < 0
    assert few.verdict == "undecided"  # "better" takes five seeds
    assert difference({0: 1.0}, {0: 1.0}) is None


def test_differences_hold_for_other_text_where_sequences_are_known() -> None:
    draw = np.random.default_rng(0)
    texts = [{s: [(200 * (level + x), 100) for x in draw.normal(0, 0.02, 12)] for s in SEEDS} for level in (1.8, 1.9)]
    losses = [{s: sum(loss for loss, _ in text) / 2400 for s, text in side.items()} for side in texts]
    found = difference(*losses, (), *texts)
    assert found.over_text
    wide = two_way_interval(*(list(side.values()) for side in texts))
    assert (found.low, found.high) == pytest.approx((wide.low, wide.high))
    alone = difference(*losses, (), texts[0])
    assert not alone.over_text


def test_the_share_of_the_gap_holds_for_other_text_where_sequences_are_known() -> None:
    draw = np.random.default_rng(1)
    sides = ((4.04, draw.normal(0, 0.05, 12)), (4.1, np.zeros(12)), (4.0, np.zeros(12)))
    texts = [{s: [(100 * (level + of_text + draw.normal(0, 0.001)), 100, i) for i, of_text in enumerate(spread)]
              for s in SEEDS} for level, spread in sides]
    losses = [{s: sum(loss for loss, _, _ in text) / 1200 for s, text in side.items()} for side in texts]
    seeds_alone, both = gap_closed(*losses), gap_closed(*losses, *texts)
    assert both.share == seeds_alone.share
    narrow, wide = (found.high - found.low for found in (seeds_alone, both) if None not in (found.low, found.high))
    shifts = [np.mean([loss for loss, _, i in texts[0][0] if i == j]) / 100 for j in range(12)]
    assert wide == pytest.approx(2 * stats.t.ppf(0.975, 11) * np.std(shifts, ddof=1) / np.sqrt(12) / 0.1, rel=0.05)
    assert wide > 5 * narrow
