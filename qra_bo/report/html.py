"""``report.html`` and ``report.json``: the whole run in one file that opens with no network."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qra_bo.records import Evaluation
from qra_bo.report import story
from qra_bo.report.data import JOURNAL_FIELDS, ReportData
from qra_bo.report.plots import PLOTS
from qra_bo.report.style import DARK, LIGHT, svg_uri
from qra_bo.report.tables import COLUMNS, row_cells, summary_lines
from qra_bo.report.text import DASH, number, size
from qra_bo.study.cost import cost_of

EVALUATION_COLUMNS = ("id", "stage", "fidelity", "allocation", "bits", "rank", "loss", "± se", "steps", "seed", "split",
                      "lr scale", "predicted MB", "measured MB", "seconds", "state")


def render_html(d: ReportData) -> str:
    """The report as one HTML document; everything that comes from the journal is escaped."""
    figures = []
    for plot in PLOTS:
        light, dark = plot.draw(d, LIGHT), plot.draw(d, DARK)
        if light is not None and dark is not None:
            figures.append({"name": plot.name, "title": plot.title, "caption": plot.caption,
                            "alt": f"{plot.title}. {plot.caption}", "light": svg_uri(light), "dark": svg_uri(dark)})
    environment = Environment(loader=PackageLoader("qra_bo.report"), autoescape=True, undefined=StrictUndefined,
                              keep_trailing_newline=True)
    return environment.get_template("report.html.jinja").render(
        d=d, title=f"{d.header.model} within {size(d.header.budget_bytes)}", budget=size(d.header.budget_bytes),
        answer=story.answer(d), rows=[row_cells(r) for r in story.comparison(d)], columns=COLUMNS[2:],
        lines=summary_lines(d), figures=figures, figure_width="56rem", units=_unit_rows(d), checks=story.checks(d),
        evaluation_columns=EVALUATION_COLUMNS, evaluations=[_evaluation_cells(d, e) for e in d.evaluations],
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
        "evaluations": [e.to_json() | {"cost": cost_of(e).tokens} for e in d.evaluations],
        "provenance": dict(d.provenance), "config": d.header.config, "config_sha256": d.header.config_sha256}


def _unit_rows(d: ReportData) -> list[tuple[str, str, int, int]]:
    w = d.winner
    return [] if w is None else list(zip(d.header.units, w.formats, d.bits(w), w.ranks, strict=True))


def _evaluation_cells(d: ReportData, e: Evaluation) -> list[tuple[str, str]]:
    """(text, sort key) of every column; an empty key sorts last in both directions."""
    m, r = e.measurement, e.request
    rank = sum(e.allocation.ranks) / len(e.allocation)

    def num(value: float | None, digits: int) -> tuple[str, str]:
        return number(value, digits), "" if value is None else repr(value)

    def text(value: str) -> tuple[str, str]:
        return value, value

    measured = None if m.measured_bytes is None else m.measured_bytes / 1e6
    state = m.state.value + (f": {m.message}" if m.message else "")
    return [num(e.id, 0), text(e.stage), text(e.fidelity.value), text(d.name(e.allocation)),
            num(d.average_bits(e.allocation), 2), num(rank, 2), num(e.loss, 4), num(m.loss_se, 4), num(r.steps, 0),
            num(r.train_seed, 0), text(r.split), num(r.lr_scale, 2), num(e.predicted_bytes / 1e6, 1), num(measured, 1),
            num(m.seconds, 1), text(state)]


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
    yield "configuration", h.config_sha256
    for key, value in d.provenance.items():
        yield key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
