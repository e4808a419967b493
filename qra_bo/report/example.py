"""Terminal text of the data before a run: sizes, what is cut, and one example with its trained parts marked."""

from rich.console import Console
from rich.text import Text

from qra_bo.finetune.data.records import DataSplits
from qra_bo.report.tables import print_line
from qra_bo.utils.redact import printable

SHOWN = 400
"""Characters of one part of the example; the middle of a longer one is left out."""
BEGIN, END = "[[", "]]"
"""Marks of trained parts where there is no colour."""


def print_data(console: Console, data: DataSplits) -> None:
    """Print the sizes of the training split and an example; trained parts are green, or without a terminal marked."""
    facts, train = data.train.facts, data.train
    tokens = train.input_ids.size
    print_line(console, f"Data: {data.source}: {facts.records:,} training records in {len(train):,} sequences of "
                        f"{train.input_ids.shape[1]:,} tokens; {1 - facts.used_tokens / tokens:.1%} of the tokens are "
                        f"padding, and a loss is taken on {train.n_targets / tokens:.1%}")
    print_line(console, f"  cut by train.length: {facts.cut_records / max(1, facts.records):.1%} of the records, "
                        f"{facts.cut_share:.1%} of the answer tokens")
    for reason, n in data.left_out.items():
        print_line(console, f"  left out, because {reason}: {n:,}")
    if data.repeated:
        print_line(console, f"  left out as repeats of an earlier record: {data.repeated:,}")
    if data.render == "chat":
        print_line(console, "  instructions are rendered by the model's chat template; data.render=plain: as text")
    if not data.example:
        return
    colour = console.is_terminal
    print_line(console, "  an example, as the model sees it; the loss is taken on the "
                        f"{'green' if colour else f'{BEGIN}marked{END}'} text:")
    text = Text()
    for part, trained in data.example:
        shown = printable(part if len(part) <= SHOWN else f"{part[:SHOWN // 2]} ... {part[-SHOWN // 2:]}")
        if trained:
            text.append(shown if colour else f"{BEGIN}{shown}{END}", style="bold green")
        else:
            text.append(shown)
    console.print(text, soft_wrap=not colour)

