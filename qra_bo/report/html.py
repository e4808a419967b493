"""``report.html`` and ``report.json``: the whole run in one file that opens with no network."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib.figure import Figure

from qra_bo.report import story
from qra_bo.report.data import JOURNAL_FIELDS, ReportData
from qra_bo.report.guide import WORDS, next_steps
from qra_bo.report.plots import PLOTS, RUNS_PLOTS, Plot, RunsPlot
from qra_bo.report.side_by_side import NamedRun, caveats, facts
from qra_bo.report.style import DARK, LIGHT, svg_uri
from qra_bo.report.tables import COLUMNS, page_lines, row_cells
from qra_bo.report.text import DASH, duration, number, size
from qra_bo.study.cost import cost_of
from qra_bo.trials import Trial

REM_PER_INCH = 7.0
"""Size of a figure on the page: its text is then about as large as the page's own small text."""
EVALUATION_COLUMNS = ("id", "stage", "allocation", "bits", "rank", "loss", "± se", "state", "predicted MB",
                      "measured MB", "seconds", "fidelity", "steps", "split", "lr scale", "seed")
TEXT_COLUMNS = ("stage", "fidelity", "allocation", "split", "state")


class Picture:
    """A figure in both appearances, as the templates show it.

    Args:
        name: Its section's id.
        title: Its heading.
        caption: How to read it.
        shown: What it shows, in numbers.
        light: Drawn for a light page.
        dark: The same for a dark one.
    """

    def __init__(self, name: str, title: str, caption: str, shown: str, light: Figure, dark: Figure) -> None:
        self.name, self.title, self.caption = name, title, caption
        self.alt = f"{title}. {shown}"
        self.light, self.dark = svg_uri(light), svg_uri(dark)
        self.rem = round(REM_PER_INCH * float(light.get_size_inches()[0]), 1)


def pictures(plots: Sequence[Plot] | Sequence[RunsPlot], of: Any) -> tuple[list[Picture], list[str]]:
    """The figures that can be drawn of a run (or of several), and why others can't."""
    figures, absent = [], []
    for plot in plots:
        light, dark = plot.draw(of, LIGHT), plot.draw(of, DARK)
        if light is None or dark is None:
            absent.append(f"{plot.title}: {plot.absent}")
        else:
            figures.append(Picture(plot.name, plot.title, plot.caption, plot.shown(of), light, dark))
    return figures, absent


def render_runs(runs: Sequence[NamedRun]) -> str:
    """Several runs side by side as one HTML document."""
    figures, absent = pictures(RUNS_PLOTS, runs)
    return template("runs.html.jinja").render(
        title=f"{len(runs)} runs side by side", runs=runs, answers=[story.answer(run.data) for run in runs],
        rows=facts(runs), caveats=caveats(runs), figures=figures, absent=absent)


def template(name: str) -> Template:
    """A page of this package; whatever is put into it is escaped."""
    environment = Environment(loader=PackageLoader("qra_bo.report"), autoescape=True, undefined=StrictUndefined,
                              keep_trailing_newline=True)
    return environment.get_template(name)


def render_html(d: ReportData) -> str:
    """The report as one HTML document; everything that comes from the journal is escaped."""
    figures, absent = pictures(PLOTS, d)
    return template("report.html.jinja").render(
        d=d, title=f"{d.header.model} within {size(d.header.budget_bytes)}", budget=size(d.header.budget_bytes),
        answer=story.answer(d), rows=[row_cells(r) for r in story.comparison(d)], columns=COLUMNS[2:],
        lines=page_lines(d), figures=figures, absent=absent, progress=_progress(d), units=_unit_rows(d),
        checks=story.checks(d), evaluation_columns=[(c, c in TEXT_COLUMNS) for c in EVALUATION_COLUMNS],
        trials=[(e.allocation == d.winner, _evaluation_cells(d, e)) for e in d.trials],
        steps=next_steps(d), words=WORDS, subtitle=_subtitle(d),
        provenance=list(_provenance(d)), config=json.dumps(d.header.config, indent=2, sort_keys=True))


def report_json(d: ReportData) -> dict[str, Any]:
    """The same data for scripts: answer, comparison, checks, units, cost and evaluations."""
    return {
        "schema_version": 1, "model": d.header.model, "state": d.state, "oracle": d.header.oracle,
        "proxy_label": d.proxy_label, "budget_bytes": d.header.budget_bytes, "scope": d.header.scope,
        "answer": asdict(story.answer(d)), "comparison": [asdict(r) for r in story.comparison(d)],
        "gap_closed": story.gap_closed(d), "checks": [asdict(c) for c in story.checks(d)],
        "surrogate_check": None if d.surrogate_check is None else {
            k: v for k, v in d.surrogate_check.items() if k not in JOURNAL_FIELDS},
        "units": [dict(zip(("unit", "format", "bits", "rank"), row, strict=True)) for row in _unit_rows(d)],
        "cost": {"cost": d.total_cost, "equivalents": d.equivalents, "wall_seconds": d.wall_seconds,
                 "overhead_seconds": d.study.overhead_seconds},
        "evaluations": [e.to_json() | {"cost": cost_of(e).tokens} for e in d.trials],
        "provenance": dict(d.provenance), "config": d.header.config, "config_sha256": d.header.config_sha256}


def _progress(d: ReportData) -> tuple[float, str] | None:
    """How far a run that goes on is, as a share and in words; ``None`` once it has ended."""
    planned = float({**d.study.header, **d.study.last.get("extension", {})}.get("planned_cost", 0.0))
    if d.end is not None or planned <= 0:
        return None
    share = min(1.0, d.study.search_cost.tokens / planned)
    return share, (f"{100 * share:.0f} % of the planned search, stage {d.stage}; {len(d.trials)} evaluations so "
                   "far. Write this report again to see more: task=report")


def _unit_rows(d: ReportData) -> list[tuple[str, str, int, int]]:
    w = d.winner
    return [] if w is None else list(zip(d.header.units, w.formats, d.bits(w), w.ranks, strict=True))


def _evaluation_cells(d: ReportData, e: Trial) -> list[tuple[str, str]]:
    """(text, sort key) of every column; an empty key sorts last in both directions."""
    m, r = e.result, e.spec
    rank = sum(e.allocation.ranks) / len(e.allocation)

    def num(value: float | None, digits: int) -> tuple[str, str]:
        return number(value, digits), "" if value is None else repr(value)

    def text(value: str) -> tuple[str, str]:
        return value, value

    measured = None if m.measured_bytes is None else m.measured_bytes / 1e6
    state = m.state.value + (f": {m.message}" if m.message else "")
    return [num(e.id, 0), text(e.stage), text(d.name(e.allocation)), num(d.average_bits(e.allocation), 2),
            num(rank, 2), num(e.loss, 4), num(m.loss_se, 4), text(state), num(e.predicted_bytes / 1e6, 1),
            num(measured, 1), num(m.seconds, 1), text(e.fidelity.value), num(r.steps, 0), text(r.split),
            num(r.lr_scale, 2), num(r.train_seed, 0)]


def _provenance(d: ReportData) -> Iterator[tuple[str, str]]:
    h = d.header
    yield "model", h.model
    yield "budget", f"{h.budget_text} = {h.budget_bytes:,} bytes of {h.scope} memory"
    yield "formats", ", ".join(f.name for f in h.formats)
    yield "ranks", ", ".join(map(str, h.ranks))
    yield "granularity", f"{h.granularity}, {len(h.units)} units"
    yield "oracle, method, effort", f"{h.oracle}, {h.method}, {h.effort}"
    yield "steps", f"{h.high_steps} at high fidelity, {DASH if h.low_steps is None else h.low_steps} at low"
    yield "seeds", f"{h.seed} of the search, {h.train_seed} of its trainings"
    yield "configuration sha256", h.config_sha256
    for key, value in d.provenance.items():
        yield key.replace("_", " "), _plain(value)


def _plain(value: Any) -> str:
    """A value of the provenance as people read it; nested names are joined by a dot."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return " / ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return DASH if value is None else str(value)


def _subtitle(d: ReportData) -> str:
    """When, how long, at what cost, where."""
    ended = [] if d.end is None else [f"ended {str(d.end['time'])[:10]}"]
    where = d.provenance.get("device")
    return " · ".join([*ended, duration(d.wall_seconds), f"cost of {d.equivalents:.1f} high-fidelity evaluations",
                       f"effort {d.header.effort}", f"search seed {d.header.seed}", *([str(where)] if where else [])])
