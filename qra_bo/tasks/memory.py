"""``task=memory``: uniform choices that fit, and the bytes by part; no weights, no GPU."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qra_bo.config import RunConfig, make_space
from qra_bo.config.presets import preset_notes
from qra_bo.memory.advice import NOTHING_BINDS
from qra_bo.memory.budget import check_budget, format_size
from qra_bo.memory.model import KEYS
from qra_bo.memory.plan import Plan, Row
from qra_bo.memory.serving import ANY, gguf_bytes
from qra_bo.pipeline.data import WHOLE, TextSize
from qra_bo.pipeline.forecast import Forecast, make_forecast
from qra_bo.pipeline.next_step import next_steps
from qra_bo.pipeline.plan import TraceCheck, make_plan, verify_plan
from qra_bo.report.text import rough
from qra_bo.utils.errors import BudgetError, DataError, ModelError

WIDTH = 120
"""Columns of the plan outside a terminal."""


def run(config: RunConfig) -> int:
    """Print the plan, as tables or as JSON (``memory.format``); returns 0 where something fits every budget.

    Raises:
        BudgetError: If nothing fits some budget, with what is wrong with the text where that can't be read either; the
            plan has been printed by then.
        DataError: If the user's file is missing or malformed; likewise.
        ModelError: If the model's shapes are not available, or its template renders no conversation; likewise.
    """
    plan = make_plan(config)
    checks = verify_plan(config, plan) if config.memory.verify else None
    forecast, unread = None, None
    try:
        forecast = make_forecast(config, plan)
    except (DataError, ModelError) as error:  # the plan of the memory stands without the text
        unread = error
    space = make_space(config, plan.memory.spec)
    steps = next_steps(plan, space, HydraConfig.get().overrides.task, forecast, config.max_average_bits,
                       _config_dir(HydraConfig.get())) \
        if HydraConfig.initialized() and unread is None else []  # a command would end with the same error
    if config.memory.format == "json":
        traced = {} if checks is None else {"traced": [asdict(check) for check in checks]}
        times = {} if forecast is None else forecast.to_json()
        further = {"notes": preset_notes(config), "next": [asdict(step) for step in steps]}
        print(json.dumps(plan.to_json() | further | times | traced, indent=2))
    elif (console := Console()).is_terminal:
        console.print(render(plan, preset_notes(config), checks, forecast))
    else:
        print("\n".join(plan_lines(plan, preset_notes(config), checks, forecast)))
    if config.memory.format != "json":
        for step in steps:
            print(f"Next: {step.what}{'' if step.time is None else f' ({step.time})'}:\n  {step.command}")
    table, problems = plan.memory.table(space), []
    for answer in plan.budgets:
        try:
            check_budget(answer.size, table, space, plan.memory)
        except BudgetError as error:
            problems.append(str(error))
    if unread is not None:
        if not problems:
            raise unread
        problems.append(str(unread))
    if problems:
        raise BudgetError("; ".join(dict.fromkeys(problems)))
    return 0


def _config_dir(composed: HydraConf) -> str | None:
    """Return the folder of groups that the command names by ``--config-dir``."""
    return next((s.path for s in composed.runtime.config_sources if s.provider.startswith("hydra.searchpath")), None)


def plan_lines(plan: Plan, notes: Sequence[str] = (), checks: Sequence[TraceCheck] | None = None,
               forecast: Forecast | None = None) -> list[str]:
    """Return the plan as lines of text, without a terminal; see ``render``."""
    console = Console(width=WIDTH, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(render(plan, notes, checks, forecast))
    return [line.rstrip() for line in capture.get().splitlines()]


def render(plan: Plan, notes: Sequence[str] = (), checks: Sequence[TraceCheck] | None = None,
           forecast: Forecast | None = None) -> RenderableType:
    """Return advice and tables: uniform choices, largest ranks, bytes by part, cards; levers where nothing fits.

    ``notes`` on what was chosen stand below the advice, predictions beside traced peaks where ``checks`` are given,
    text and times where there is a ``forecast``.
    """
    advice = [f"{_named(b.text, b.size)}: {b.advice.sentence} {b.advice.offer}".rstrip() for b in plan.budgets]
    lines = filter(None, (*advice, plan.serving, *notes, _head(plan)))
    parts: list[RenderableType] = [*map(Text, lines), _uniform(plan)]
    parts.append(Text(f"Allocations of this space need {format_size(plan.least.total)} ({plan.least_is}) to "
                      f"{format_size(plan.most)}. {_references(plan)}"))
    parts.append(_table("Largest uniform rank that fits", ["budget", *plan.budgets[0].ranks],
                        [(_named(b.text, b.size), *(str(rank or "none") for rank in b.ranks.values()))
                         for b in plan.budgets]))
    parts += [_breakdown(plan), *_paces(plan)]
    if forecast is not None:
        parts += _times(forecast, forced=all(b.advice.region == NOTHING_BINDS for b in plan.budgets))
    parts.append(_cards(plan))
    if not plan.fits and plan.levers:
        parts.append(_table("What lowers the smallest allocation", ["change", "then needs", "saves"],
                            [(v.change, format_size(v.needs), format_size(v.saves)) for v in plan.levers]))
    if checks is not None:
        parts.append(_table("Against a training step traced storage by storage, with no weights",
                            ["allocation", "predicted", "traced", "difference", "phase", "seconds"],
                            [(c.what, format_size(c.predicted_bytes), format_size(c.traced_bytes),
                              f"{c.predicted_bytes / c.traced_bytes - 1:+.2%}", c.phase, f"{c.seconds:.1f}")
                             for c in checks]))
    return Group(*parts)


def _head(plan: Plan) -> str:
    spec, shape, allowance = plan.memory.spec, plan.memory.shape, plan.memory.allowance
    what = "stored bytes" if plan.consumer.name == ANY else f"bytes as stored for {plan.consumer.title}"
    if plan.memory.scope == "peak":
        what = (f"peak memory of training on {shape.device}, {8 * shape.compute_dtype_bytes}-bit compute, "
                f"{shape.batch} x {shape.length} tokens"
                f"{f', {shape.accumulate} batches a step' if shape.accumulates else ''}"
                f"{', checkpointing' if shape.checkpointing else ''}"
                f"{'' if shape.optimizer == 'adamw' else f', {shape.optimizer}'}"
                f"{'' if shape.embeddings == 16 else f', embedding and head in {shape.embeddings} bits'}")
        if allowance is not None:
            what += (f"; its allocator adds {allowance.share_ppm / 10**4:.2f} % of transient bytes and "
                     f"{format_size(allowance.fixed_bytes)} ({allowance.measurements} measured peaks)")
    return (f"{spec.name}: {(spec.linear_numel + spec.other_numel) / 1e6:,.1f} M parameters, of them "
            f"{spec.linear_numel / 1e6:,.1f} M in linears that are quantised; {plan.n_units} units; {what}")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    heading = Text(title, style="table.title", no_wrap=True, overflow="ignore")  # else broken at the table's own width
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _uniform(plan: Plan) -> Table:
    by_format: dict[str, list[Row]] = {}
    for row in plan.uniform:
        by_format.setdefault(str(row.fmt), []).append(row)
    big = max(row.total for row in plan.uniform) >= 10**9
    unit, scale, digits = ("GB", 10**9, 2) if big else ("MB", 10**6, 1)
    return _table(f"The same choice for every unit, in {unit}; * fits {format_size(plan.tightest)}",
                  ["format", "bits", *(f"rank {row.rank}" for row in next(iter(by_format.values())))],
                  [(fmt, str(rows[0].bits), *(f"{r.total / scale:.{digits}f}{'*' if r.total <= plan.tightest else ' '}"
                                              for r in rows)) for fmt, rows in by_format.items()])


def _references(plan: Plan) -> str:
    """What people train without a search, beside the tightest budget."""
    return " ".join(f"{row.what} ({row.fmt}, rank {row.rank}) needs {format_size(row.total)} and "
                    f"{'fits' if row.total <= plan.tightest else 'does not fit'}." for row in plan.references)


def _named(text: str, size: int) -> str:
    shown = format_size(size)
    return shown if shown.replace(".00", "").replace(" ", "") == text.replace(" ", "") else f"{text} = {shown}"


def _breakdown(plan: Plan) -> Table:
    """Of each budget's best uniform choice; of the smallest allocation where none fits a budget."""
    rows = {row.what: row for row in (answer.best or plan.least for answer in plan.budgets)}
    table = _table("Where the bytes go", ["", *rows],
                   [(key.replace("_", " "), *(format_size(row.breakdown[key]) for row in rows.values()))
                    for key in KEYS if any(row.breakdown[key] for row in rows.values())])
    table.add_section()
    table.add_row("in all", *(format_size(row.total) for row in rows.values()))
    table.add_row("whole model as a file", *(format_size(row.file_bytes) for row in rows.values()))
    table.add_row("decided by", *(row.phase for row in rows.values()))
    files = {} if plan.consumer.name != "llamacpp" else {
        what: gguf_bytes(plan.memory, row.space, row.allocation) for what, row in rows.items()}
    if files:
        table.add_section()
        most = float("inf") if plan.card is None else plan.card.total_bytes
        large = sorted({f"{name}.gguf" for sizes in files.values() for name, size in sizes.items() if size > most})
        note = f". Larger than the card: {', '.join(large)}; llama-server runs base.gguf with adapter.gguf"
        table.caption = Text(f"*.gguf: of export.targets=[gguf]; the vocabulary adds some MB{note if large else ''}")
        table.caption_justify = "left"
    for name in next(iter(files.values()), ()):
        table.add_row(f"{name}.gguf", *(format_size(sizes[name]) for sizes in files.values()))
    return table


def _paces(plan: Plan) -> list[Text]:
    """Estimated speed of each budget's best uniform choice on the plan's card."""
    paces = {b.best.what: b.tokens_per_second for b in plan.budgets if b.best is not None and b.tokens_per_second}
    listed = "; ".join(f"{pace:,.0f} with {what}" for what, pace in paces.items())
    return [] if plan.card is None or not paces else [Text(
        f"Training tokens a second on a {plan.card.title}: about {listed} (estimated from the number of operations, "
        "not measured on a GPU; a run corrects it by its first trial)")]


def _times(forecast: Forecast, *, forced: bool) -> list[RenderableType]:
    """The text's size, and the time of every effort, of searches that must be ``forced``; a line where no speed is
    known."""
    text, parts = forecast.text, list[RenderableType]()
    if text is not None:
        of_all = "" if text.training_records == text.records else f", {text.training_records:,} of them for training"
        once = f" (left out as repeats: {text.repeated:,})" if text.repeated else ""
        parts.append(Text(f"Text: {text.source}: {text.records:,} records{once}{of_all}; {_tokens(text)} training "
                          f"tokens ({text.basis}), in about {text.sequences:,.0f} sequences"))
        if text.whole_length is not None:
            parts.append(Text(f"  {WHOLE:.0%} of them have at most about {text.whole_length:,} tokens each"))
        if text.too_much_is_cut:
            parts.append(Text(f"  {text.cut_share:.0%} of its answer tokens lie beyond train.length: a run ends with a "
                              "message; raise train.length, or accept it by data.max_cut"))
    final = f"Final fine-tune: {forecast.final}"
    if forecast.final_seconds is None and all(effort.seconds is None for effort in forecast.efforts):
        return [*parts, Text(f"{final}; {forecast.basis}")]
    last = "not known" if forecast.final_seconds is None else f"about {rough(forecast.final_seconds)}"
    rows = [(e.effort, f"{e.max_full_trials}", "not known" if e.seconds is None else f"about {rough(e.seconds)}", last)
            for e in forecast.efforts]
    parts += [Text(f"{final}. In the table, {forecast.basis}"),
              _table(f"Time by effort, at most{' (with search.force=true)' if forced else ''}",
                     ["effort", "full trials", "search and confirmation", "final fine-tune"], rows)]
    return [*parts, Text(forecast.advice)] if forecast.advice else parts


def _tokens(text: TextSize) -> str:
    """The training tokens, in two digits where they are an estimate."""
    return f"{text.training_tokens:,}" if text.counted else f"about {int(float(f'{text.training_tokens:.2g}')):,}"


def _cards(plan: Plan) -> Table:
    """Neighbouring cards that hold the same choice share a line."""
    rows = []
    for row, cards in itertools.groupby(plan.cards.items(), key=lambda item: item[1]):
        sizes = [gb for gb, _ in cards]
        name = f"{sizes[0]} GB" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} GB"
        rows.append((name, "nothing", "") if row is None else (name, row.what, format_size(row.total)))
    where = "on CUDA" if plan.memory.scope == "peak" else "peak of training on CUDA"
    return _table(f"Best uniform choice by card ({where}, less memory.headroom)", ["card", "choice", "needs"], rows)
