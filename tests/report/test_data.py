"""A journal is read into settings, trials and findings; numbers against counts made by hand."""

import numpy as np
import pytest

from qra_bo.report.data import parse_events
from qra_bo.space import Allocation, uniform
from qra_bo.study.lines import study_of
from qra_bo.study.results import _versus
from qra_bo.utils.errors import JournalError
from tests.report.fixtures import HIGH, TOKENS_A_STEP, L, failed_alone, make_events


@pytest.fixture(scope="module")
def events():
    return make_events()


def test_cost_counts_everything_once_and_forward_tokens_a_third(events):
    d = parse_events(events)
    evaluations = [e for e in events if e["event"] == "trial"]
    steps = sum(e["new_steps"] for e in evaluations)
    assert d.study.cost.tokens == pytest.approx(2_048 + 60_256 / 3 + steps * TOKENS_A_STEP + len(evaluations) * 2_000)
    assert d.equivalents == pytest.approx(d.study.cost.tokens / (HIGH * TOKENS_A_STEP + 2_000))


def test_references_and_what_does_not_fit_are_never_incumbent(events):
    d = parse_events(events)
    assert min(d.points, key=lambda e: e.loss).stage == "reference"
    assert d.study.incumbent.stage not in ("reference", "calibration", "confirmation")
    assert all(e.predicted_bytes <= d.header.budget_bytes for e in d.study.points)
    assert d.study.incumbent.loss == min(e.loss for e in d.study.points)
    assert d.study.best_uniform.allocation == uniform(L, "nf4", 4)


def test_names_tell_uniform_fractional_and_mixed_apart(events):
    d = parse_events(events)
    assert d.study.name(uniform(L, "int8", 2)) == "uniform-8bit-r2"
    mix = next(e for e in d.points if e.stage == "baseline" and len(set(e.allocation.formats)) == 2).allocation
    assert d.study.name(mix) == "mix-3.17bit-r5"
    assert d.study.name(Allocation(mix.formats[1:] + mix.formats[:1], mix.ranks)).startswith("mixed-")
    tried = {(e.allocation, e.spec.codes) for e in d.study.trials}
    assert len({d.study.name(*pair) for pair in tried}) == len(tried)
    assert d.study.name(d.study.confirmation.candidate).startswith("mixed-")
    assert d.average_bits(uniform(L, "hqq3", 2)) == 3.0


def test_average_bits_are_weighted_by_parameters(events):
    header = {**events[0], "unit_numel": [3, *[1] * (L - 1)]}
    d = parse_events([header, *events[1:]])
    a = d.study.confirmation.candidate
    bits = np.array(d.bits(a))
    assert d.average_bits(a) == pytest.approx((bits.sum() + 2 * bits[0]) / (L + 2))


def test_every_prefix_of_a_journal_can_be_reported(events):
    for n in range(1, len(events)):
        d = parse_events(events[:n])
        assert d.state == "unfinished"


def test_what_is_no_journal_is_refused(events):
    with pytest.raises(JournalError, match="no header"):
        parse_events(events[1:])
    with pytest.raises(JournalError, match="malformed"):
        parse_events([{k: v for k, v in events[0].items() if k != "units"}])


def test_a_delivered_allocation_that_was_not_compared_states_no_difference() -> None:
    events = failed_alone(make_events())
    c = study_of(events).confirmation
    for delivered, found in ((c.candidate, None), (c.reference, (0.0, 0.0, 0.0))):
        versus = _versus(study_of([*events[:-1], {**events[-1], "best": delivered.fingerprint}]), "uniform")
        assert (versus and (versus["mean"], versus["low"], versus["high"])) == found
