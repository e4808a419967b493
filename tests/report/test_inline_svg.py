"""Two drawings of one figure as one element: colours by appearance, letters once, nothing else changed."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from qra_bo.report.inline_svg import Sheet, _rounded
from qra_bo.report.style import DARK, GREEN, LIGHT, Theme, axes, dress


def drawn(theme: Theme, *, second: str = GREEN, image: float | None = None, marker: str = "o") -> Figure:
    fig, ax = axes(theme, 3.0, 2.0)
    ax.plot([0, 1], [0, 1], marker, color=theme.main, label="a")
    ax.plot([0, 1], [1, 0], marker, color=second)
    if image is not None:
        ax.imshow(np.array([[0.0, image], [1.0, 0.5]]), cmap=theme.cmap)
    dress(ax, theme, "bits", "loss")
    return fig


def tree(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_one_drawing_holds_the_colours_of_both_appearances() -> None:
    sheet = Sheet()
    svg = sheet.svg(drawn(LIGHT), lambda: drawn(DARK), "wide")
    light, dark = re.findall(r":root \{ (.*?) \}", sheet.style)
    names = [dict(item.split(":") for item in text.rstrip(";").split(";")) for text in (light, dark)]
    pairs = {(names[0][name], names[1][name]) for name in names[0]}
    assert pairs == {(getattr(LIGHT, key).lower(), getattr(DARK, key).lower())
                     for key in ("ink", "muted", "grid", "paper", "main")}
    assert set(re.findall(r"var\((--f\d+)\)", svg)) == set(names[0])
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == {GREEN.lower()}  # one colour in both
    assert "in-dark" not in svg


def test_known_colours_are_exchanged_as_a_dark_drawing_has_them() -> None:
    def never() -> Figure:
        raise AssertionError("drawn in the dark")

    twice, once = Sheet(), Sheet()
    assert once.svg(drawn(LIGHT), never, "wide") == twice.svg(drawn(LIGHT), lambda: drawn(DARK), "wide", {})
    assert once.style == twice.style


def test_letters_stand_once_for_all_figures_and_every_reference_is_met() -> None:
    sheet = Sheet()
    parts = [sheet.svg(drawn(LIGHT), lambda: drawn(DARK), kind) for kind in ("wide", "narrow")]
    known = sheet.letters
    assert known.count("<path") == len(set("bitsloss" + "0.0 0.2 0.4 0.6 0.8 1.0".replace(" ", "")))
    ids = re.findall(r' id="([^"]+)"', "".join([known, *parts]))
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', "".join(parts))) <= {
        pair for name in ids for pair in ((name, ""), ("", name))}


def test_drawings_that_differ_are_both_kept() -> None:
    light, dark = drawn(LIGHT, second="#123456"), drawn(DARK, second=DARK.main)  # there both series share one marker
    svg = Sheet().svg(light, lambda: dark, "wide")
    groups = {g.attrib["class"]: g for g in tree(svg) if "class" in g.attrib}
    assert set(groups) == {"in-light", "in-dark"}
    counts = [len(list(group.iter())) for group in groups.values()]
    assert min(counts) > 50
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids))


def test_images_of_both_appearances_are_kept() -> None:
    svg = Sheet().svg(drawn(LIGHT, image=0.2), lambda: drawn(DARK, image=0.2), "wide")
    images = [element for element in tree(svg).iter() if element.tag == "image"]
    assert [image.attrib["class"] for image in images] == ["in-light", "in-dark"]
    assert all(image.attrib["href"].startswith("data:image/png;base64,") for image in images)


def test_a_figure_keeps_its_size_and_its_elements() -> None:
    sheet, fig = Sheet(), drawn(LIGHT)
    svg = sheet.svg(fig, lambda: drawn(DARK), "wide")
    assert tree(svg).attrib["viewBox"] == "0 0 216 144"
    text = "".join(sorted("bits" + "loss"))
    letters = dict(zip(re.findall(r'<path id="(g\d+)"', sheet.letters), range(100), strict=False))
    used = [u.attrib["href"][1:] for u in tree(svg).iter("use") if u.attrib["href"][1:] in letters]
    ticks = sum(len(t.get_text()) for ax in fig.axes for a in (ax.xaxis, ax.yaxis) for t in a.get_ticklabels()
                if -0.05 <= float(t.get_text().replace("\u2212", "-") or 9) <= 1.05)
    assert len(used) == len(text) + ticks


@pytest.mark.parametrize(("number", "text"), [(1.005001, "1.01"), (-12.0, "-12"), (100.0, "100"), (0.085, "0.085"),
                                              (0.015625, "0.015625"), (-0.0000001, "0"), (0.0, "0"), (-1.5, "-1.5")])
def test_numbers_are_rounded_to_what_is_seen(number: float, text: str) -> None:
    assert _rounded(number) == text
