"""``report.html``, ``report.json`` and ``plots/*.png``: the whole run in files that open with no network."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined

from qra_bo.report import story
from qra_bo.report.checks import checks
from qra_bo.report.data import ReportData, load_run
from qra_bo.report.guide import WORDS, next_steps
from qra_bo.report.plots import PLOTS, RUNS_PLOTS, Plot, write_plots
from qra_bo.report.side_by_side import NamedRun, caveats, facts
from qra_bo.report.style import DARK, LIGHT, svg_uri
from qra_bo.report.text import DASH, duration, number, size
from qra_bo.study.cost import cost_of
from qra_bo.trials import Trial
from qra_bo.utils.files import check_run_folder, replace_text, writing

REM_PER_INCH = 7.0
"""Size of a figure on the page: its text is then about as large as the page's own small text."""
TRIAL_COLUMNS = ("id", "stage", "allocation", "bits", "rank", "loss", "± se", "state", "predicted MB", "measured MB",
                 "seconds", "fidelity", "steps", "split", "lr scale", "seed")
TEXT_COLUMNS = ("stage", "fidelity", "allocation", "split", "state")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure in both appearances: section id, heading, caption, alternative text, two data URIs, width in rem."""

    name: str
    title: str
    caption: str
    alt: str
    light: str
    dark: str
    rem: float


def pictures(plots: Sequence[Plot[T]], of: T) -> tuple[list[Picture], list[str]]:
    """The figures that can be drawn of a run (or of several), and why others can't."""
    figures, absent = [], []
    for plot in plots:
        light, dark = plot.draw(of, LIGHT), plot.draw(of, DARK)
        if light is None or dark is None:
            absent.append(f"{plot.title}: {plot.absent}")
        else:
            figures.append(Picture(plot.name, plot.title, plot.caption, f"{plot.title}. {plot.shown(of)}",
                                   svg_uri(light), svg_uri(dark), round(REM_PER_INCH * light.get_figwidth(), 1)))
    return figures, absent


def _render(name: str, **values: Any) -> str:
    """Render a page of this package; every value is escaped."""
    environment = Environment(loader=PackageLoader("qra_bo.report"), autoescape=True, undefined=StrictUndefined,
                              keep_trailing_newline=True)
    return environment.get_template(name).render(values)


def render_html(d: ReportData) -> str:
    """The report as one HTML document; everything that comes from the journal is escaped."""
    figures, absent = pictures(PLOTS, d)
    return _render(
        "report.html.jinja", d=d, title=f"{d.header.model} within {size(d.header.budget_bytes)}",
        budget=size(d.header.budget_bytes), answer=story.answer(d), rows=story.comparison(d), columns=story.COLUMNS[2:],
        lines=story.lines(d), figures=figures, absent=absent, progress=_progress(d), units=_unit_rows(d),
        checks=checks(d), trial_columns=[(c, c in TEXT_COLUMNS) for c in TRIAL_COLUMNS],
        trials=[(e.allocation == d.winner, _trial_cells(d, e)) for e in d.trials],
        steps=next_steps(d), words=WORDS, subtitle=_subtitle(d),
        provenance=list(_provenance(d)), config=json.dumps(d.header.config, indent=2, sort_keys=True))


def render_runs(runs: Sequence[NamedRun]) -> str:
    """Several runs side by side as one HTML document."""
    figures, absent = pictures(RUNS_PLOTS, runs)
    return _render("runs.html.jinja", title=f"{len(runs)} runs side by side", runs=runs,
                   answers=[story.answer(run.data) for run in runs], rows=facts(runs), caveats=caveats(runs),
                   figures=figures, absent=absent)


def report_json(d: ReportData) -> dict[str, Any]:
    """The same data for scripts: answer, comparison, checks, units, cost and trials."""
    return {
        "schema_version": 2, "model": d.header.model, "state": d.state, "oracle": d.header.oracle,
        "proxy_label": d.proxy_label, "budget_bytes": d.header.budget_bytes, "scope": d.header.scope,
        "answer": asdict(story.answer(d)), "comparison": [asdict(r) for r in story.comparison(d)],
        "gap_closed": story.gap_closed(d), "checks": [asdict(c) for c in checks(d)],
        "surrogate_check": d.last("surrogate_check"),
        "units": [dict(zip(("unit", "format", "bits", "rank"), row, strict=True)) for row in _unit_rows(d)],
        "cost": {"cost": d.total_cost, "full_trial_equivalents": d.equivalents, "wall_seconds": d.wall_seconds,
                 "overhead_seconds": d.study.overhead_seconds},
        "trials": [e.to_json() | {"cost": cost_of(e).tokens} for e in d.trials],
        "provenance": dict(d.provenance), "config": d.header.config, "config_sha256": d.header.config_sha256}


def write_report(folder: Path) -> list[Path]:
    """Write ``report.html``, ``report.json`` and ``plots/*.png`` beside the journal in ``folder``; returns the paths.

    Works during a run, too: files are replaced whole.

    Raises:
        OutputError: If the folder holds no journal, holds links, or can't be written.
        JournalError: If the journal can't be read.
    """
    check_run_folder(folder)
    d = load_run(folder)
    page, data = folder / "report.html", folder / "report.json"
    with writing(folder, f"write the report again: task=report out={folder}"):
        replace_text(page, render_html(d))
        replace_text(data, json.dumps(report_json(d), indent=1, sort_keys=True) + "\n")
        return [page, data, *write_plots(d, folder / "plots")]


def write_page(page: Path, runs: Sequence[NamedRun]) -> None:
    """Write several runs side by side as one file.

    Raises:
        OutputError: If it can't be written.
    """
    with writing(page, "write it again"):
        replace_text(page, render_runs(runs))


def _progress(d: ReportData) -> tuple[float, str] | None:
    """Progress of an unfinished run, as a share and in words; ``None`` once it has ended."""
    planned = float({**d.study.header, **d.study.last.get("extension", {})}.get("planned_cost", 0.0))
    if d.ended or planned <= 0:
        return None
    share = min(1.0, d.study.search_cost.tokens / planned)
    return share, (f"{100 * share:.0f} % of the planned search, stage {d.stage}; {len(d.trials)} trials so far. Write "
                   "this report again to see more: task=report")


def _unit_rows(d: ReportData) -> list[tuple[str, str, int, int]]:
    w = d.winner
    return [] if w is None else list(zip(d.header.units, w.formats, d.bits(w), w.ranks, strict=True))


def _trial_cells(d: ReportData, e: Trial) -> list[tuple[str, str]]:
    """(text, sort key) of every column; an empty key sorts last in both directions."""
    m, r = e.result, e.spec
    measured = None if m.measured_bytes is None else m.measured_bytes / 1e6
    numbers = {"id": (e.id, 0), "bits": (d.average_bits(e.allocation), 2), "loss": (e.loss, 4), "± se": (m.loss_se, 4),
               "rank": (sum(e.allocation.ranks) / len(e.allocation), 2), "predicted MB": (e.predicted_bytes / 1e6, 1),
               "measured MB": (measured, 1), "seconds": (m.seconds, 1), "steps": (r.steps, 0),
               "lr scale": (r.lr_scale, 2), "seed": (r.train_seed, 0)}
    texts = {"stage": e.stage, "allocation": d.name(e.allocation), "fidelity": e.fidelity.value, "split": r.split,
             "state": m.state.value + (f": {m.message}" if m.message else "")}
    cells = {name: (number(value, digits), "" if value is None else repr(value))
             for name, (value, digits) in numbers.items()} | {name: (text, text) for name, text in texts.items()}
    return [cells[column] for column in TRIAL_COLUMNS]


def _provenance(d: ReportData) -> Iterator[tuple[str, str]]:
    h = d.header
    yield "model", h.model
    yield "budget", f"{h.budget_text} = {h.budget_bytes:,} bytes of {h.scope} memory"
    yield "formats", ", ".join(f.name for f in h.formats)
    yield "ranks", ", ".join(map(str, h.ranks))
    yield "granularity", f"{h.granularity}, {len(h.units)} units"
    yield "oracle, method, effort", f"{h.oracle}, {h.method}, {h.effort}"
    yield "steps", f"{h.high_steps} at full fidelity, {DASH if h.low_steps is None else h.low_steps} at low"
    yield "seeds", f"{h.seed} of the search, {h.train_seed} of its trainings"
    yield "configuration sha256", h.config_sha256
    for key, value in d.provenance.items():
        yield key.replace("_", " "), _plain(value)


def _plain(value: Any) -> str:
    """A value of the provenance as text; nested names are joined."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return " / ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return DASH if value is None else str(value)


def _subtitle(d: ReportData) -> str:
    """Date, duration, cost, effort, seed and device."""
    ended = [f"ended {str(d.study.last['end']['time'])[:10]}"] if d.ended else []
    where = d.provenance.get("device")
    return " · ".join([*ended, duration(d.wall_seconds), f"cost of {d.equivalents:.1f} full-trial equivalents",
                       f"effort {d.header.effort}", f"search seed {d.header.seed}", *([str(where)] if where else [])])
