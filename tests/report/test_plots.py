"""Figures are drawn where the journal holds what they need, and hold what they claim."""

import re
from dataclasses import replace

import numpy as np
import pytest

from qra_bo.report.data import parse_events
from qra_bo.report.html import render_html
from qra_bo.report.inline_svg import Sheet
from qra_bo.report.plots import PLOTS, RUNS_PLOTS, write_plots
from qra_bo.report.plots_search import front
from qra_bo.report.side_by_side import NamedRun
from qra_bo.report.style import DARK, LIGHT, NARROW, narrow
from tests.report.fixtures import L, failed_alone, make_events, without_mixed


@pytest.fixture(scope="module")
def data():
    return parse_events(make_events())


def test_a_whole_run_has_every_figure_as_png(data, tmp_path):
    paths = write_plots(data, tmp_path / "plots")
    assert [p.stem for p in paths] == list(PLOTS)
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_a_run_that_has_just_begun_has_none():
    d = parse_events(make_events()[:2])
    assert not any(draw(d, LIGHT) for draw in PLOTS.values())


def test_the_front_is_the_non_dominated_set_by_brute_force(data):
    points = data.points
    expected = {e.id for e in points if not any(
        o.predicted_bytes <= e.predicted_bytes and o.loss <= e.loss and o.id != e.id for o in points)}
    assert {e.id for e in front(points)} == expected


def test_confirmation_shows_every_difference_and_the_interval(data):
    fig = PLOTS["confirmation"](data, LIGHT)
    dots = fig.axes[0].collections[0].get_offsets()[:, 0]
    assert sorted(dots) == pytest.approx(sorted(data.confirmation.differences))


def test_bars_are_the_winner_s_bits_and_ranks(data):
    draw = PLOTS["allocation"]
    above, below = draw(data, DARK).axes
    assert [bar.get_height() for bar in above.patches] == list(data.bits(data.winner))
    assert [bar.get_height() for bar in below.patches] == list(data.winner.ranks)


def test_modules_are_drawn_as_a_map():
    events = make_events()
    names = [f"model.layers.{i}.{m}" for i in range(4) for m in ("qkv", "o", "gateup")]
    events[0] = {**events[0], "units": names}
    draw = PLOTS["allocation"]
    d = parse_events(events)
    image = draw(d, LIGHT).axes[0].images[0].get_array()
    assert image.shape == (3, 4)
    assert image[1, 2] == d.bits(d.winner)[names.index("model.layers.2.o")]


def test_narrow_figures_have_their_panels_below_one_another(data):
    for draw in PLOTS.values():
        wide, thin = draw(data, LIGHT), draw(data, narrow(LIGHT))
        assert thin.get_figwidth() == NARROW
        assert len(thin.axes) == len(wide.axes)
    thin.draw_without_rendering()
    above, below = (ax.get_position() for ax in thin.axes)
    assert above.y0 > below.y1
    assert above.x0 == pytest.approx(below.x0, abs=.05)


@pytest.mark.parametrize("theme", [LIGHT, narrow(LIGHT)])
def test_no_label_or_legend_lies_outside_or_on_another(data, theme):
    for name, draw in PLOTS.items():
        fig = draw(data, theme)
        fig.draw_without_rendering()
        for box in fig.legends:
            extent = box.get_window_extent()
            assert extent.x0 >= 0, name
            assert extent.x1 <= fig.bbox.x1, name
        labels = [[t.get_window_extent() for t in ax.texts] for ax in fig.axes if name == "pareto"]
        for ax, boxes in zip(fig.axes, labels, strict=False):
            assert len(boxes) > 2
            assert not any(a.padded(2).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
            assert all(ax.bbox.contains(b.x0, b.y0) and ax.bbox.contains(b.x1, b.y1) for b in boxes)


def test_a_panel_alone_has_no_title(data):
    near = replace(data, header=replace(data.header, budget_bytes=1))
    assert PLOTS["pareto"](data, LIGHT).axes[0].get_title(loc="left") == "all"
    assert [ax.get_title(loc="left") for ax in PLOTS["pareto"](near, LIGHT).axes] == [""]


@pytest.mark.parametrize("theme", [LIGHT, narrow(DARK)])
def test_sizes_keep_clear_of_the_budget_and_of_the_names(data, theme):
    tight = replace(data, header=replace(data.header, budget_bytes=sum(data.breakdown.values()) + 1))
    fig = PLOTS["memory"](tight, theme)
    fig.draw_without_rendering()
    ax = fig.axes[0]
    line = ax.transData.transform((tight.header.budget_bytes / 1e6, 0))[0]
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(box.x0 < line < box.x1 for box in boxes)
    assert all(box.x0 >= ax.bbox.x0 for box in boxes)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_format_has_a_colour_of_its_own(data, theme):
    lines = PLOTS["sensitivity"](data, theme).axes[0].containers
    assert len({line.lines[0].get_color() for line in lines}) == len(lines) > 1


def test_confirmation_axis_fits_the_differences_and_zero(data):
    low, high = PLOTS["confirmation"](data, LIGHT).axes[0].get_xlim()
    assert low < min(data.confirmation.differences)
    assert 0 < high < -.2 * low


def test_the_same_figure_gives_the_same_bytes(data):
    draw = PLOTS["pareto"]
    first, second = (Sheet().svg(draw(data, LIGHT), lambda: draw(data, DARK), "wide") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", PLOTS)
def test_a_figure_in_other_colours_is_the_one_drawn_in_the_dark(data, name):
    draw = PLOTS[name]
    if draw(data, LIGHT) is None:
        pytest.skip("the run has no data for it")
    once, twice = Sheet(), Sheet()
    svg = once.svg(draw(data, LIGHT), lambda: draw(data, DARK), "wide")
    assert svg == twice.svg(draw(data, LIGHT), lambda: draw(data, DARK), "wide", {})
    assert once.style == twice.style


def test_points_above_the_view_are_marked(data):
    draw = PLOTS["convergence"]
    ax = draw(data, LIGHT).axes[0]
    dots = {c.get_label(): len(c.get_offsets()) for c in ax.collections}
    top = max(float(y) for c in ax.collections for _, y in c.get_offsets())
    assert sum(dots.values()) == len(data.study.points)
    assert sum(n for label, n in dots.items() if label.endswith("above the view")) == sum(
        e.loss > top for e in data.study.points)


def test_every_alternative_text_holds_the_numbers(data):
    alt = dict(re.findall(r'<section id="(\w+)"(?:(?!</section>).)*?<div role="img" aria-label="([^"]*)"',
                          render_html(data), re.S))
    assert list(alt) == list(PLOTS)
    assert f"{data.confirmation.mean:+.4f}".replace("-", "\u2212") in alt["confirmation"]
    assert f"{data.study.best_uniform.loss:.4f}" in alt["pareto"]
    assert f"{data.study.best_uniform.loss:.4f}" in alt["convergence"]
    assert "0: 8-bit r1" in alt["allocation"]
    assert "hqq2 at units 0, 11, 1" in alt["sensitivity"]
    assert "optimiser states" in alt["memory"]
    assert "Spearman 0.97" in alt["surrogate"]


def test_the_convergence_is_told_as_it_is_drawn_where_another_length_is_minimised():
    d = parse_events(make_events())
    d.study.incumbent = max(d.study.points, key=lambda e: e.loss)  # the best at that length
    told = re.search(r"Best validation loss ([\d.]+), found by trial (\d+)", render_html(d))
    best = min(d.study.points, key=lambda e: e.loss)
    assert told.groups() == (f"{best.loss:.4f}", f"{best.id}")
    assert told[1] == f"{PLOTS['convergence'](d, LIGHT).axes[0].lines[0].get_ydata()[-1]:.4f}"


def test_dollar_signs_in_names_make_no_formula():
    evil = r"$\no$"
    names = {"units": [f"model.layers.{u}.{evil}" for u in range(L)]}
    events = [e | (names if e["event"] in ("header", "profile") else {}) for e in make_events()]
    events[0] |= {"scope": evil}
    d = parse_events(events)
    runs = [NamedRun(f"a {evil}", d), NamedRun(f"b {evil}", d)]
    for fig in (*(draw(d, LIGHT) for draw in PLOTS.values()), *(draw(runs, LIGHT) for draw in RUNS_PLOTS.values())):
        fig.draw_without_rendering()  # an unknown command in a formula ends it


def test_a_choice_is_not_drawn_against_itself():
    events = [{**e, "reference": e["candidate"]} if e["event"] == "confirmation" else e for e in make_events()]
    assert PLOTS["confirmation"](parse_events(events), LIGHT) is None


@pytest.mark.parametrize("without", [failed_alone, without_mixed])
def test_a_run_that_compared_nothing_is_not_drawn_at_no_difference(without):
    failed = parse_events(without(make_events(wins=False)))
    assert PLOTS["confirmation"](failed, LIGHT) is None
    shown = [NamedRun(name, d) for name, d in (("failed", failed), ("whole", parse_events(make_events())))]
    labels = RUNS_PLOTS["differences"](shown, LIGHT).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["whole"]
    assert RUNS_PLOTS["differences"](shown[:1], LIGHT) is None


def test_calibration_shows_the_losses_and_names_what_is_outside():
    check = next(e for e in make_events() if e["event"] == "surrogate_check")
    far = [1e17, *check["predicted"][1:]]
    events = [{**e, "predicted": far} if e["event"] == "surrogate_check" else e for e in make_events()]
    left = PLOTS["surrogate"](parse_events(events), LIGHT).axes[0]
    low, high = left.get_ylim()
    observed = check["observed"]
    assert low < min(observed) < max(observed) < high < 2 * max(observed)
    assert "1 predicted outside the view: 1e+17" in left.get_title(loc="left")
    crosses = left.collections[-1].get_offsets()
    assert crosses.tolist()[0] == pytest.approx([observed[0], high])
    assert len(crosses) == 1


def test_sensitivities_carry_their_intervals(data):
    before = PLOTS["sensitivity"](data, LIGHT).axes[0]
    se = [[.01] * len(data.header.formats)] * len(data.header.units)
    events = [{**e, "quantization_se": se} if e["event"] == "profile" else e for e in make_events()]
    after = PLOTS["sensitivity"](parse_events(events), LIGHT).axes[0]
    assert not before.collections
    halves = {round(float(np.ptp(segment[:, 1])) / 2, 6)
              for bars in after.collections for segment in bars.get_segments()}
    assert halves == {0.0196}
