"""``python -m qra_bo.runs list|show|chat``: the runs in a folder, the result of one, and its model's answers."""

import argparse
import json
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from rich.console import Console

from qra_bo.report.data import load_run
from qra_bo.report.next_steps import next_steps
from qra_bo.report.side_by_side import FoundRun, find_runs
from qra_bo.report.tables import print_line, print_result, print_runs
from qra_bo.utils.device import resolve_device
from qra_bo.utils.errors import OutputError, UserError, from_lack_of_memory, from_system
from qra_bo.utils.process import check_printed, prepare
from qra_bo.utils.redact import printable

ANSWER_TOKENS = 256
"""Most tokens of an answer in ``chat``."""


def list_runs(folder: Path, console: Console) -> None:
    """Print one line for every run: state, model, budget, losses, difference to the best simple choice."""
    if runs := find_runs(folder):
        print_runs(runs, console)
    else:
        print_line(console, f"no runs in {folder}")


def show_run(folder: Path, console: Console) -> None:
    """Print the result of one run. Raises ``OutputError`` or ``JournalError`` if ``folder`` is none, or unreadable."""
    d = load_run(folder)
    if not d.ended:
        print_line(console, f"State: {FoundRun(folder.name, folder, d).state} in the stage {d.stage}")
    shown = ("best.json", "report.html", "adapter", "quant_manifest.json")
    print_result(console, d, folder, [name for name in shown if (folder / name).exists()])


def chat(folder: Path, console: Console, system: str = "") -> None:
    """Answer every line of stdin by the model of a finished run, greedily and on a card where there is one: where it
    was trained on conversations in one that ``system`` opens, by the same template, else as a text to go on from.

    Raises:
        OutputError: If ``folder`` is no run, has no adapter, or was trained on texts, which have no system message.
    """
    d = load_run(folder)
    if not d.ended and d.study.final is None:
        raise OutputError(f"{folder} has no trained adapter yet. Go on: {dict(next_steps(d, str(folder)))['Continue']}")
    chats = bool(d.study.provenance.get("data_chats"))
    if system and not chats:
        raise OutputError(f"{folder} was trained on texts, which have no system message: leave --system out")
    from transformers import TextStreamer  # loads torch, which the other commands do without

    from qra_bo.export.load import keep_unpacked, load
    from qra_bo.finetune.data.chat_template import ChatTemplate
    from qra_bo.finetune.data.conversations import Conversation
    from qra_bo.finetune.data.jsonl import check_characters
    if sys.stdin.isatty():
        print_line(console, "loading the model")
    model, tokenizer = load(folder, resolve_device("auto"))
    keep_unpacked(model)  # else every token unpacks every layer
    template = ChatTemplate(tokenizer)
    if sys.stdin.isatty():
        print_line(console, f"A line is {'a question' if chats else 'a text that the model goes on from'}, answered by "
                            f"the likeliest tokens, {ANSWER_TOKENS} at most; Ctrl-D ends.")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # as in the POSIX locale
    streamer, turns = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True), \
        [{"role": "system", "content": system}] if system else []
    for line in filter(str.strip, sys.stdin):
        check_characters(line, "your line")
        turns.append({"role": "user", "content": line.rstrip("\n")})
        text = template.question(Conversation(json.dumps([*turns, {"role": "assistant", "content": ""}]),
                                              (len(turns),), where="your line")) if chats else line.rstrip("\n")
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=template.is_plain or not chats)
        length = inputs["input_ids"].shape[1]
        new = model.generate(**inputs.to(model.device), max_new_tokens=ANSWER_TOKENS, do_sample=False,
                             streamer=streamer)[0, length:]
        if len(new) == ANSWER_TOKENS:
            print_line(console, f"(ended after {ANSWER_TOKENS} tokens)")
        turns.append({"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)})


def build_parser() -> argparse.ArgumentParser:
    """The command line; every command stores its function as ``run``, which takes a console and the other arguments."""
    parser = argparse.ArgumentParser(prog="python -m qra_bo.runs", description="List runs, show one, or ask its model.")
    commands = parser.add_subparsers(required=True, metavar="list|show|chat")
    listing = commands.add_parser("list", help="one line for every run below FOLDER")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("outputs"))
    listing.set_defaults(run=list_runs)
    for name, run, what in (("show", show_run, "the result of one run"),
                            ("chat", chat, "answers of a finished run's model to lines of stdin")):
        command = commands.add_parser(name, help=what)
        command.add_argument("folder", type=Path)
        command.set_defaults(run=run)
    commands.choices["chat"].add_argument("--system", default="", metavar="TEXT", help="system message of the talk")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 130 on Ctrl-C, or 2 with one message on stderr where the input can't work."""
    given = vars(build_parser().parse_args(arguments))
    try:
        given.pop("run")(console=Console(), **given)
        check_printed()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        known = error if isinstance(error, UserError) else from_system(error) or from_lack_of_memory(error)
        if known is None:
            raise
        print(printable(str(known)), file=sys.stderr)
        return known.exit_status
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main())
