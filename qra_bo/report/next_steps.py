"""Commands of this program that can be pasted into a shell, and uses of a finished run."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence

from qra_bo.report.data import ReportData
from qra_bo.utils.formatting import override_value
from qra_bo.utils.redact import printable, redact

_QUOTED = re.compile(r"'((?:uniform|mix):[^']*)'")  # by ``normalise``
OF_A_SEARCH = ("budget", "effort", "oracle")
"""Values and groups that task=finetune does without, or refuses."""


def command(words: Sequence[str], changes: Mapping[str, str | None], without: Sequence[str] = ()) -> str:
    """Return the command with the flags and overrides ``words``, quoted for a shell, without secrets.

    Args:
        words: As the user gave them.
        changes: Values of other keys, which replace theirs; ``None`` leaves a key out.
        without: Keys and groups that are left out, with the keys of those groups.
    """
    flags = [text for text in words if text.startswith("-")]
    given = {text.lstrip("+").partition("=")[0]: _QUOTED.sub(r"\1", text.lstrip("+")) for text in words
             if not text.startswith("-")}
    kept = {key: text for key, text in given.items() if key.partition(".")[0] not in without}
    kept |= {key: f"{key}={value}" for key, value in changes.items() if value is not None}
    kept = {key: f"+{text}" if key == "model" else text for key, text in kept.items()
            if key not in changes or changes[key] is not None}
    ordered = sorted(kept.values(), key=lambda text: not text.startswith("+model"))
    return printable(redact(shlex.join(["python", "-m", "qra_bo", *flags, *ordered])))


def next_steps(d: ReportData, folder: str) -> list[tuple[str, str]]:
    """Return purpose and code of every use of the run in ``folder``."""
    words, run = d.words, override_value(printable(folder))

    def again(**changes: str | None) -> str:  # the command of this run, of which nothing but ``changes`` differs
        return command(words, {"resume": None, "task": None, "allocation": None} | changes)

    on_other_data = {"out": None, "resume": None, "task": "finetune", "allocation": run, "data": "jsonl",
                     "data.path": "FILE.jsonl"}
    steps = [] if d.study.final is None else [
        ("Chat with it", f"python -m qra_bo.runs chat {shlex.quote(printable(folder))}"),
        ("From Python: the model, with the logits of the run's end",
         f"import qra_bo\nmodel, tokenizer = qra_bo.load({json.dumps(printable(folder))})"),
        ("For other trainers and servers", command((), {"task": "export", "out": run, "export.check": "true"})),
        ("Your own questions to it and to the untuned model (pip install 'qra_bo[eval]' first)", command((), {
            "task": "evaluate", "out": run, "eval.tasks": "[questions.jsonl]", "eval.against": "untuned"})),
        ("The same bits and ranks on other data", command(words, on_other_data, (*OF_A_SEARCH, "data")))]
    if d.study.prediction is not None:
        steps.append(("Compare it with a search on unseen seeds", again(effort="quick", out=run)))
    if not d.ended:
        steps.append(("Continue", command(words, {"out": run})))
    return steps
