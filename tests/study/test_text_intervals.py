"""Intervals over training seeds and held-out text: closed forms, and coverage by simulation."""

import numpy as np
import pytest
from scipy.stats import t

from qra_bo.study.intervals import paired_interval, text_error, two_way_interval
from qra_bo.utils.errors import ConfigError

Side = list[list[tuple[float, int]]]


def sides(differences: np.ndarray, tokens: np.ndarray) -> tuple[Side, Side]:
    """Losses of a candidate and of a reference (2 nats a token) with these differences a token, seeds x sequences."""
    return ([[(float((2 + d) * n), int(n)) for d, n in zip(row, tokens, strict=True)] for row in differences],
            [[(2.0 * n, int(n)) for n in tokens] for _ in differences])


def test_differences_of_seeds_alone_have_the_paired_interval() -> None:
    of_seeds = np.array([0.01, -0.02, 0.03, 0.005])
    found = two_way_interval(*sides(np.tile(of_seeds[:, None], (1, 6)), np.full(6, 40)))
    expected = paired_interval(of_seeds)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_differences_of_sequences_alone_have_their_interval() -> None:
    of_text = np.array([0.1, -0.2, 0.05, 0.0, 0.3])
    found = two_way_interval(*sides(np.tile(of_text, (5, 1)), np.full(5, 64)))
    half = t.ppf(0.975, 4) * of_text.std(ddof=1) / np.sqrt(5)
    assert (found.mean, found.high - found.mean) == pytest.approx((of_text.mean(), half))
    few = two_way_interval(*sides(np.tile(of_text, (3, 1)), np.full(5, 64)))  # of so few seeds the t quantile
    assert few.high - few.mean == pytest.approx(half * t.ppf(0.975, 2) / t.ppf(0.975, 4))


def test_sequences_of_one_document_count_once() -> None:
    """An interval over documents is that of their sums, however many sequences each was cut into."""
    draw = np.random.default_rng(3)
    documents, tokens = np.array([0, 2, 0, 1, 2, 2, 1, 0]), draw.integers(20, 60, 8)
    differences = draw.normal(0, 0.02, (5, 8))
    each, base = sides(differences, tokens)
    known = [[[(loss, n, int(d)) for (loss, n), d in zip(row, documents, strict=True)] for row in side]
             for side in (each, base)]
    joined = [[[(sum(row[i][0] for i in np.flatnonzero(documents == d)), int(tokens[documents == d].sum()))
                for d in range(3)] for row in side] for side in (each, base)]
    assert two_way_interval(*known) == two_way_interval(*joined)
    assert text_error(*known) == pytest.approx(text_error(*joined))
    one = [[[(loss, n, 7) for loss, n, _ in row] for row in side] for side in known]
    assert two_way_interval(*one) == two_way_interval(each, base)  # one document tells nothing of others


@pytest.mark.parametrize("clustered", [True, False])
def test_alike_sequences_of_few_documents_need_their_documents(clustered: bool) -> None:
    draw, held, repeats = np.random.default_rng(11), 0, 1000
    documents = np.repeat(np.arange(6), 16)
    for _ in range(repeats):
        differences = draw.normal(0, 0.02, 6)[documents] + draw.normal(0, 0.03, (5, 96))
        found = two_way_interval(*([[(*pair, int(d)) for pair, d in zip(row, documents, strict=True)] for row in side]
                                   if clustered else side for side in sides(differences, np.full(96, 64))))
        held += found.low <= 0 <= found.high
    assert (0.93 <= held / repeats <= 0.975) is clustered


def test_means_are_weighted_by_target_tokens() -> None:
    found = two_way_interval(*sides(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([300, 100])))
    assert found.mean == pytest.approx(0.25)
    same = two_way_interval(*sides(np.full((2, 3), 0.5), np.array([5, 6, 7])))
    assert (same.low, same.mean, same.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(("seeds", "text", "both"), [(0.005, 0.05, 0.05), (0.02, 0.05, 0.05), (0.01, 0.0, 0.05)])
def test_intervals_hold_for_other_seeds_and_other_text(seeds: float, text: float, both: float) -> None:
    draw, held, repeats = np.random.default_rng(7), 0, 1500
    for _ in range(repeats):
        tokens = draw.integers(60, 128, 64)
        differences = draw.normal(0, seeds, (5, 1)) + draw.normal(0, text, 64) + draw.normal(0, both, (5, 64))
        found = two_way_interval(*sides(differences, tokens))
        held += found.low <= 0 <= found.high
    assert 0.93 <= held / repeats <= 0.97


def test_sides_of_other_seeds_or_sequences_are_refused() -> None:
    candidate, reference = sides(np.zeros((3, 4)), np.full(4, 9))
    for other in (reference[:2], [row[:3] for row in reference], [[(loss, 8) for loss, _ in row] for row in reference]):
        with pytest.raises(ConfigError, match="two training seeds and two sequences"):
            two_way_interval(candidate, other)
