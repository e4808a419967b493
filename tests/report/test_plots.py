"""Figures are drawn where the journal holds what they need, and hold what they claim."""

import re
from xml.etree import ElementTree

import pytest

from qra_bo.report.data import parse_events
from qra_bo.report.plots import PLOTS, write_plots
from qra_bo.report.style import VARIABLES, svg_element
from tests.report.fixtures import L, failed_alone, make_events, without_mixed


@pytest.fixture(scope="module")
def data():
    return parse_events(make_events())


@pytest.fixture(scope="module")
def drawn(data):
    """Every figure of a whole run; tests don't change them."""
    return {name: draw(data) for name, draw in PLOTS.items()}


def test_figures_that_there_are_become_png(drawn, tmp_path):
    assert all(drawn.values())
    paths = write_plots({"memory": drawn["memory"], "final": None, "pareto": drawn["pareto"]}, tmp_path / "plots")
    assert [p.stem for p in paths] == ["memory", "pareto"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_a_run_that_has_just_begun_has_none():
    d = parse_events(make_events()[:2])
    assert not any(draw(d) for draw in PLOTS.values())


def test_memory_bars_are_the_parts_their_sum_and_the_measurement(data, drawn):
    *parts, predicted, measured = [bar.get_width() * 1e6 for bar in reversed(drawn["memory"].axes[0].patches)]
    assert predicted == pytest.approx(sum(data.study.end.breakdown.values())) == pytest.approx(sum(parts))
    assert measured == pytest.approx(data.study.measurement(data.winner).measured_bytes)


@pytest.mark.parametrize("name", list(PLOTS))
def test_svg_has_its_own_identifiers_text_and_the_page_s_colours(drawn, name):
    svg = svg_element(drawn[name], name)
    assert not [colour for colour in VARIABLES if colour in svg]
    tree = ElementTree.fromstring(svg)
    ids = [e.attrib["id"] for e in tree.iter() if "id" in e.attrib]
    assert all(i.startswith(f"{name}-") for i in ids)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= set(ids)
    texts = [e for e in tree.iter() if e.tag.endswith("}text")]
    assert texts
    assert all("fill: " in e.attrib["style"] for e in texts)  # else it is black in the dark


def test_dollar_signs_in_names_make_no_formula():
    evil = r"$\no$"
    names = {"units": [f"model.layers.{u}.{evil}" for u in range(L)]}
    events = [e | (names if e["event"] in ("header", "profile") else {}) for e in make_events()]
    events[0] |= {"scope": evil}
    d = parse_events(events)
    for draw in PLOTS.values():
        draw(d).draw_without_rendering()  # an unknown command in a formula ends it


@pytest.mark.parametrize("without", [failed_alone, without_mixed])
def test_a_run_that_compared_nothing_is_not_drawn_at_no_difference(without):
    failed = parse_events(without(make_events(wins=False)))
    assert PLOTS["confirmation"](failed) is None
    itself = [{**e, "reference": e["candidate"]} if e["event"] == "confirmation" else e for e in make_events()]
    assert PLOTS["confirmation"](parse_events(itself)) is None
