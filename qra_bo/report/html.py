"""``report.html``, ``report.json`` and ``plots/*.png``: the whole run in files that open with no network."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from qra_bo.memory.budget import format_size
from qra_bo.report import story
from qra_bo.report.data import BREAKDOWN, ReportData, load_run
from qra_bo.report.next_steps import next_steps
from qra_bo.report.plots import PLOTS, write_plots
from qra_bo.report.side_by_side import COLUMNS, FoundRun, caveats
from qra_bo.report.style import svg_element
from qra_bo.report.text import duration, short_names
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.study.cost import cost_of
from qra_bo.study.gain import told_gain
from qra_bo.study.lines import encode
from qra_bo.study.results import checks
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder, replace_text, writing
from qra_bo.utils.formatting import number, signed
from qra_bo.utils.redact import printable


def _render(name: str, figures: Mapping[str, Figure | None], **values: Any) -> str:
    """Render a page of this package; every value is escaped."""
    elements = {name: fig and svg_element(fig, name) for name, fig in figures.items()}
    environment = Environment(loader=PackageLoader("qra_bo.report"), autoescape=True, undefined=StrictUndefined,
                              keep_trailing_newline=True)
    environment.filters |= {"size": format_size, "duration": duration, "number": number, "signed": signed,
                            "urlencode": lambda name: quote(os.fsencode(name)),
                            "pretty": lambda value: json.dumps(value, indent=2, sort_keys=True)}
    environment.globals |= {"notes": story.notes, "versus": story.versus,
                            "allocation_line": story.allocation_line, "most_sensitive": most_sensitive,
                            "BREAKDOWN": BREAKDOWN}
    return printable(environment.get_template(name).render(values, figures=elements))


def render_html(d: ReportData, figures: Mapping[str, Figure | None], folder: str = "RUN") -> str:
    """The report with these of its figures as one HTML document, whose commands name ``folder``; everything that comes
    from the journal is escaped."""
    planned = d.study.planned_cost
    share = None if d.ended or planned <= 0 else min(1.0, d.study.search_cost.tokens / planned)
    return _render("report.html.jinja", figures, d=d, delivered=told_gain(d.study), answer=story.answer(d),
                   checks=checks(d.study), rows=story.comparison(d), columns=story.COLUMNS[2:], tested=story.tested(d),
                   lines=story.lines(d), share=share, units=_unit_rows(d), steps=next_steps(d, folder),
                   sample=story.sample(d))


def report_json(d: ReportData) -> dict[str, Any]:
    """The same data for scripts: answer, comparison, health cards, units, cost and trials."""
    return {"schema_version": 3, "model": d.header.model, "state": d.state, "oracle": d.header.oracle,
        "proxy_label": d.proxy_label, "budget_bytes": d.header.budget_bytes, "scope": d.header.scope,
        "answer": asdict(story.answer(d)), "comparison": [asdict(r) for r in story.comparison(d)],
        "checks": [asdict(c) for c in checks(d.study)], "notes": dict(story.notes(d)), "warnings": list(d.warnings),
        "surrogate_check": d.study.surrogate_check and encode(d.study.surrogate_check), "verdict": asdict(d.verdict),
        "units": [dict(zip(("unit", "format", "bits", "rank"), row, strict=True)) for row in _unit_rows(d)],
        "cost": {"cost": d.study.cost.tokens, "full_trial_equivalents": d.equivalents, "wall_seconds": d.wall_seconds,
                 "overhead_seconds": d.study.overhead_seconds},
        "trials": [e.to_json() | {"cost": cost_of(e).tokens} for e in d.study.trials],
        "provenance": dict(d.study.provenance), "config": d.header.config, "config_sha256": d.header.config_sha256}


def write_report(folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.json`` and ``plots/*.png`` beside the journal in ``folder``; returns the paths.

    Works during a run, too: files are replaced whole. Raises ``OutputError`` if the folder holds no journal, holds
    links, or can't be written, and ``JournalError`` if the journal can't be read.
    """
    check_run_folder(folder)
    d = load_run(folder)
    page, data = folder / "report.html", folder / "report.json"
    figures = {name: draw(d) for name, draw in PLOTS.items()}
    with writing(folder, f"write the report again: task=report out={folder}"):
        replace_text(page, render_html(d, figures, str(folder)))
        replace_text(data, json.dumps(report_json(d), indent=1, sort_keys=True) + "\n")
        return [page, data, *write_plots(figures, folder / "plots")]


def write_page(page: Path, runs: Sequence[FoundRun]) -> None:
    """Write readable runs side by side as one HTML page; raises ``OutputError`` if it can't, or finds another."""
    if page.exists() and "qra_bo report" not in page.read_text("utf-8", "replace"):
        raise OutputError(f"{page} is no page of this program, and would be written over; move it")
    answers = [(run, story.answer(run.data)) for run in runs if run.data is not None]
    with writing(page, "write it again"):
        replace_text(page, _render("runs.html.jinja", {}, answers=answers, columns=COLUMNS, caveats=caveats(runs)))


def most_sensitive(p: SensitivityProfile) -> list[tuple[str, str, float]]:
    """Format, unit and divergence from 16 bits (nats) where each format diverges most."""
    names = short_names(p.units)
    return [(fmt, names[int(np.argmax(column))], float(column.max()))
            for fmt, column in zip(p.formats, p.quantization_kl.T, strict=True)]


def _unit_rows(d: ReportData) -> list[tuple[str, str, int, int]]:
    w = d.winner
    return [] if w is None else list(zip(d.header.units, w.formats, d.bits(w), w.ranks, strict=True))
