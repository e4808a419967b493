"""Figures as SVG within a page: one drawing in the colours of both appearances, with letters that all figures share.

matplotlib writes every letter's outline into every file. A page that holds four files a figure (light and dark, wide
and narrow) repeats them 36 times; here the outlines stand once, light and dark are one drawing whose colours are CSS
variables, and coordinates have as many digits as can be seen.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import zip_longest
from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.sax.saxutils import quoteattr

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from qra_bo.report.style import IN_THE_DARK

HREF = "{http://www.w3.org/1999/xlink}href"
LEFT_OUT = ("metadata", "style")
"""Elements that say nothing about the drawing; the page has the one rule that matplotlib's style sheets hold."""
STYLE = "figure svg * { stroke-linejoin:round; stroke-linecap:butt; }"
_COLOUR, _NUMBER, _ID = re.compile(r"#[0-9a-f]{6}\b"), re.compile(r"-?\d+\.\d+(?:e-?\d+)?"), re.compile(r"#([\w.-]+)")
_MOVE = re.compile(r"translate\((\S+?)(?:[ ,]+(\S+))?\)")
_GLYPH = re.compile(r"[A-Za-z][\w -]*-[0-9a-f]+")
"""A letter's identifier: the name of its font and its code."""


class Sheet:
    """What the figures of one page share: outlines of letters, and pairs of colours."""

    def __init__(self) -> None:
        self._glyphs: dict[str, tuple[str, str]] = {}  # by matplotlib's identifier: ours, and the element
        self._colours: dict[tuple[str, str], str] = {}
        self._ids = 0

    def svg(self, light: Figure, dark: Callable[[], Figure | None], kind: str,
            colours: Mapping[str, str] = IN_THE_DARK) -> str:
        """Return the element of one figure in both appearances.

        Args:
            light: The figure.
            dark: Draws it in the dark; called where ``colours`` don't say all that differs.
            kind: Class of the element.
            colours: What each colour of a light figure is in the dark one.
        """
        tree = _tree(light)
        trees = tree, _recoloured(tree, colours) or _drawn(dark)
        if _alike(*trees):
            body = self._children(*trees, {})
        else:  # e.g. two series that share a colour in one appearance alone
            body = "".join(f'<g class="in-{name}">{self._children(tree, tree, {})}</g>'
                           for name, tree in zip(("light", "dark"), trees, strict=True))
        return f'<svg class="{kind}" viewBox="{_short(trees[0].attrib["viewBox"])}" aria-hidden="true">{body}</svg>'

    @property
    def letters(self) -> str:
        """The outlines that the figures refer to; an element that shows nothing."""
        return f'<svg class="letters" width="0" height="0" aria-hidden="true"><defs>' \
               f'{"".join(element for _, element in self._glyphs.values())}</defs></svg>'

    @property
    def style(self) -> str:
        """The rules of the figures: their colours in both appearances."""
        light, dark = ("".join(f"{name}:{pair[i]};" for pair, name in self._colours.items()) for i in (0, 1))
        return f"{STYLE}\n:root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"

    def _children(self, light: Element, dark: Element, ids: dict[str, str]) -> str:
        return "".join(self._written(a, b, ids) for a, b in zip(light, dark, strict=True))

    def _written(self, light: Element, dark: Element, ids: dict[str, str]) -> str:
        tag, given = _tag(light), light.attrib
        if tag in LEFT_OUT:
            return ""
        if tag == "path" and _GLYPH.fullmatch(name := given.get("id", "")):
            if name not in self._glyphs:
                own = f"g{len(self._glyphs)}"
                self._glyphs[name] = own, f'<path id="{own}"{_attributes(given, ("d", "transform"))}/>'
            return ""
        if tag == "image" and given[HREF] != dark.attrib[HREF]:
            return "".join(f'<image class="in-{name}" href="{element.attrib[HREF]}"'
                           f'{_attributes(given, ("x", "y", "width", "height", "transform"))}/>'
                           for name, element in (("light", light), ("dark", dark)))
        inner = self._children(light, dark, ids)
        attributes = self._attributes(tag, given, dark.attrib, ids)
        if tag in ("g", "defs") and not attributes:
            return f"<defs>{inner}</defs>" if tag == "defs" and inner else inner
        return f"<{tag}{attributes}>{inner}</{tag}>" if inner else "" if tag == "g" else f"<{tag}{attributes}/>"

    def _attributes(self, tag: str, light: dict[str, str], dark: dict[str, str], ids: dict[str, str]) -> str:
        found = {}
        for key, value in light.items():
            if key == "id":
                if tag != "g":
                    found["id"] = self._own(value, ids)
            elif key == "style":
                found["style"] = self._coloured(value, dark[key])
            elif key == HREF:
                found["href"] = value if value.startswith("data:") else f"#{self._own(value[1:], ids)}"
            elif key == "clip-path":
                found[key] = _ID.sub(lambda m: f"#{self._own(m[1], ids)}", value)
            elif tag == "use" and key == "transform" and (move := _MOVE.fullmatch(value)):
                found |= {side: _short(to) for side, to in zip("xy", move.groups(), strict=True) if to and float(to)}
            else:
                found[key] = _short(value)
        return "".join(f" {key}={quoteattr(value)}" for key, value in found.items())

    def _own(self, name: str, ids: dict[str, str]) -> str:
        """Return this page's identifier for one of matplotlib's."""
        if name in self._glyphs:
            return self._glyphs[name][0]
        if name not in ids:
            self._ids += 1
            ids[name] = f"p{self._ids}"
        return ids[name]

    def _coloured(self, light: str, dark: str) -> str:
        """Return a style in which colours that differ between the appearances are variables."""
        others = iter(_COLOUR.findall(dark))

        def variable(match: re.Match[str]) -> str:
            pair = match[0], next(others)
            if pair[0] == pair[1]:
                return pair[0]
            return f"var({self._colours.setdefault(pair, f'--f{len(self._colours)}')})"

        return re.sub(r"([:;]) ", r"\1", _COLOUR.sub(variable, light))


def _recoloured(light: Element, colours: Mapping[str, str]) -> Element | None:
    """Return a drawing in other colours; ``None`` where it has an image or a colour that is not among ``colours``."""
    dark = deepcopy(light)
    for element in dark.iter():
        style = element.attrib.get("style", "")
        if _tag(element) == "image" or not colours.keys() >= set(_COLOUR.findall(style)):
            return None
        if style:
            element.attrib["style"] = _COLOUR.sub(lambda m: colours[m[0]], style)
    return dark


def _drawn(draw: Callable[[], Figure | None]) -> Element:
    figure = draw()
    assert figure is not None  # what there is to draw does not depend on the appearance
    return _tree(figure)


def _tree(figure: Figure) -> Element:
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "qra_bo", "svg.fonttype": "path"}):  # savefig would draw everything twice
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return ElementTree.fromstring(buffer.getvalue())


def _alike(light: Element, dark: Element) -> bool:
    """Return whether two drawings differ in nothing but colours, identifiers and the content of images."""
    return all(a is not None and b is not None and a == b
               for a, b in zip_longest(_outline(light), _outline(dark)))


def _outline(tree: Element) -> Iterator[tuple[object, ...]]:
    """Yield each element without what the appearances may differ in; identifiers are numbered as they come."""
    seen: dict[str, int] = {}
    for element in tree.iter():
        given = {key: _COLOUR.sub("", value) if key == "style" else value for key, value in element.attrib.items()}
        for key in ("id", HREF, "clip-path"):
            if key in given:
                name = _ID.search(given[key]) if key != "id" else None
                given[key] = "" if given[key].startswith("data:") else str(
                    seen.setdefault(name[1] if name else given[key], len(seen)))
        yield element.tag, len(element), tuple(given.items())


def _tag(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _attributes(given: dict[str, str], keys: tuple[str, ...]) -> str:
    return "".join(f" {key}={quoteattr(_short(given[key]))}" for key in keys if key in given)


def _short(value: str) -> str:
    """Round the numbers of an attribute to what can be seen: hundredths of a point, and six digits below 1."""
    return _NUMBER.sub(lambda m: _rounded(float(m[0])), " ".join(value.split()))


def _rounded(number: float) -> str:
    shown = f"{number:.{2 if abs(number) >= 1 else 6}f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown
