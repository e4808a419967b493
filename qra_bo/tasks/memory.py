"""``task=memory``: uniform choices that fit, and the bytes by part; no weights, no GPU."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qra_bo.config import RunConfig, make_space
from qra_bo.config.presets import preset_notes
from qra_bo.finetune.data.options import UserData
from qra_bo.finetune.models.hub import is_on_hub
from qra_bo.memory.budget import check_budget, format_size
from qra_bo.memory.model import KEYS
from qra_bo.memory.plan import Plan, Row
from qra_bo.memory.serving import ANY, gguf_bytes
from qra_bo.pipeline.forecast import more_steps, next_command, plan_times, recommended
from qra_bo.pipeline.given import judged
from qra_bo.pipeline.host_memory import host_parts
from qra_bo.pipeline.pricing import make_plan
from qra_bo.pipeline.text import TextSize, text_size
from qra_bo.report.next_steps import command
from qra_bo.study.setting import Setting
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
    config = config.with_changes(embeddings=plan.memory.shape.embeddings)  # as a run's, which the RAM depends on
    text, unread = None, None
    try:
        text = text_size(config) if config.oracle.trains else None
    except (DataError, ModelError) as error:  # the plan of the memory stands without the text
        unread = error
    space = make_space(config, plan.memory.spec)
    setting = Setting(config, space, plan.memory, sequences=None if text is None else text.sequences)
    if len(plan.budgets) == 1:
        setting, _ = judged(setting, plan.budgets[0].size)
    effort = recommended(setting, plan.budgets[0].advice.region)
    next_line = None if unread is not None else next_command(plan, setting, effort)
    retry = {}
    if text is not None and text.facts is not None and _cuts_too_much(config, text):  # a run would end with a message
        retry = {"train.length": str(text.facts.usual_length)}
    if unread is None and not plan.fits:
        lever = next((change for change, needs in plan.levers.items() if needs <= plan.tightest), "")
        retry = dict(change.split("=", 1) for change in lever.split()) | retry
    if retry:
        next_line = command(config.words, retry)
    notes = _text(config, text)
    if unread is None and config.oracle.trains and plan.fits:
        notes += filter(None, [plan_times(setting, plan, effort), more_steps(setting)[1], _host(setting, plan)])
    notes += preset_notes(config)
    if not {word.lstrip("+").partition("=")[0] for word in config.words} & {"budget", "gpu", "profile"}:
        notes.insert(0, f"No budget is given: {config.budget[0]} is assumed; budget=8GB or gpu=NAME plans for yours")
    if config.memory.format == "json":
        print(json.dumps(plan.to_json() | {"notes": notes, "text": None if text is None else asdict(text),
                                                 "next": next_line}, indent=2))
    else:
        if (console := Console()).is_terminal:
            console.print(render(plan, notes))
        else:
            print("\n".join(plan_lines(plan, notes)))
        if next_line is not None:
            print(f"Next: {next_line}")
    problems = []
    for answer in plan.budgets:
        try:
            check_budget(answer.size, answer.memory.table(space), space, answer.memory)
        except BudgetError as error:
            problems.append(str(error))
    if unread is not None:
        if not problems:
            raise unread
        problems.append(str(unread))
    if problems:
        raise BudgetError("; ".join(dict.fromkeys(problems)))
    return 0


def plan_lines(plan: Plan, notes: Sequence[str] = ()) -> list[str]:
    """Return the plan as lines of text, without a terminal; see ``render``."""
    console = Console(width=WIDTH, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(render(plan, notes))
    return [line.rstrip() for line in capture.get().splitlines()]


def render(plan: Plan, notes: Sequence[str] = ()) -> RenderableType:
    """Return advice and tables: uniform choices, largest ranks, bytes by part, cards; levers where nothing fits.

    ``notes`` on what was chosen, the text and the time stand below the advice.
    """
    advice = [" ".join(filter(None, (
        f"{_named(b.text, b.size)}: {b.advice.sentence}", b.advice.offered, b.note, None if b.fractional is None else
        f"Without a search: task=finetune allocation={b.fractional.what}"
        f"{'' if b.fractional.embeddings == 16 else f' embeddings={b.fractional.embeddings}'} needs "
        f"{format_size(b.fractional.total)}."))) for b in plan.budgets]
    lines = filter(None, (*advice, *notes, plan.serving, _head(plan)))
    parts: list[RenderableType] = [*map(Text, lines), _uniform(plan)]
    usual = [f" {row.what} ({row.fmt}, rank {row.rank}) needs {format_size(row.total)} and "
             f"{'fits' if row.total <= plan.tightest else 'does not fit'}." for row in plan.references]
    parts.append(Text(f"Allocations of this space need {format_size(plan.least.total)} ({plan.least_is}) to "
                      f"{format_size(plan.most)}.{''.join(usual)}"))
    parts.append(_table("Largest uniform rank that fits", ["budget", *plan.budgets[0].ranks],
                        [(_named(b.text, b.size), *(str(rank or "none") for rank in b.ranks.values()))
                         for b in plan.budgets]))
    parts += [_breakdown(plan), _cards(plan)]
    if not plan.fits and plan.levers:
        parts.append(_table("What lowers the smallest allocation", ["change", "then needs", "saves"],
                            [(change, format_size(needs), format_size(plan.least.total - needs))
                             for change, needs in plan.levers.items()]))
    return Group(*parts)


def _head(plan: Plan) -> str:
    spec, shape = plan.memory.spec, plan.memory.shape
    what = "stored bytes" if plan.consumer.name == ANY else f"bytes as stored for {plan.consumer.title}"
    if plan.memory.scope == "peak":
        what = (f"peak memory of training on {shape.device}, {8 * shape.compute_dtype_bytes}-bit compute, "
                f"{shape.batch} x {shape.length} tokens"
                f"{f', {shape.accumulate} batches a step' if shape.accumulate > 1 else ''}"
                f"{', checkpointing' if shape.checkpointing else ''}"
                f"{'' if shape.optimizer == 'adamw' else f', {shape.optimizer}'}"
                f"{'' if shape.embeddings == 16 else f', embedding and head in {shape.embeddings} bits'}")
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


def _cuts_too_much(config: RunConfig, text: TextSize | None) -> bool:
    return isinstance(config.data, UserData) and text is not None and text.facts is not None \
        and text.facts.cut_share > config.data.max_cut


def _text(config: RunConfig, text: TextSize | None) -> list[str]:
    """What a run reads, and whether it would refuse that."""
    if text is None:
        return []
    size = f"{text.training_tokens:,}" if text.basis.startswith("counted") else f"about {text.training_tokens:,}"
    left = "".join(f" (left out, because {reason}: {n:,})" for reason, n in text.left_out.items())
    lines = [f"Text: {text.source}: {text.records:,} records{left}, {text.training_records:,} of them for training; "
             f"{size} training tokens ({text.basis}), in about {text.sequences:,.0f} sequences"]
    if text.facts is not None and (cut := text.facts.told_cut(config.train.length)):
        refused = ": a run refuses that until train.length or data.max_cut is raised"
        lines.append(f"  {cut}{refused if _cuts_too_much(config, text) else ''}")
    if text.facts is not None and 0 < (short := text.facts.usual_length) <= config.train.length // 2:
        lines.append(f"  train.length={short} keeps 95 % of the records whole, and needs less memory")
    return lines


def _host(setting: Setting, plan: Plan) -> str:
    """RAM of a run, and what it downloads."""
    config, spec = setting.config, plan.memory.spec
    ram = sum(host_parts(config, spec, setting.space, plan.tightest, plan.memory.shape.device).values())
    base = format_size(2 * (spec.linear_numel + spec.other_numel))
    workers = f" for each of {config.executor.workers} workers" if config.executor.workers > 1 else ""
    bound = "" if plan.memory.shape.device == "cuda" else ", of which the budget bounds training alone"
    return f"RAM: about {format_size(ram)}{workers}{bound}" \
        f"{f'; the base is a download of about {base}' if is_on_hub(config.model) else ''}"


def _cards(plan: Plan) -> Table:
    """Neighbouring cards that hold the same choice share a line."""
    rows = []
    for row, cards in itertools.groupby(plan.cards.items(), key=lambda item: item[1]):
        sizes = [gb for gb, _ in cards]
        name = f"{sizes[0]} GB" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} GB"
        rows.append((name, "nothing", "") if row is None else (name, row.what, format_size(row.total)))
    where = "on CUDA" if plan.memory.scope == "peak" else "peak of training on CUDA"
    return _table(f"Best uniform choice by card ({where}, less memory.headroom)", ["card", "choice", "needs"], rows)
