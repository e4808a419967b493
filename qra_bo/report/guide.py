"""Next steps with a finished run, for terminal and page."""

from dataclasses import dataclass

from qra_bo.report.data import ReportData
from qra_bo.report.story import server_rank


@dataclass(frozen=True, slots=True)
class Step:
    """One next step: its purpose, a sentence about it, and the code or command."""

    what: str
    why: str
    code: str


def next_steps(d: ReportData) -> list[Step]:
    """The uses of a run that delivered an adapter; empty before that."""
    if d.winner is None or "final" not in d.study.last:
        return []
    return [
        Step("From Python", "The mixed base with its adapter, with the logits that it had at the end of the run.",
             'import qra_bo\nmodel, tokenizer = qra_bo.load("RUN")'),
        Step("In other trainers and servers",
             "Writes the adapter's card, configurations for other trainers and, if named, merged or packed weights. "
             "export.check=true loads each export again and measures its difference to the run's own model. vLLM "
             f"needs --max-lora-rank {server_rank(d.winner.ranks)} for these ranks.",
             "python -m qra_bo task=export out=RUN export.check=true"),
        Step("On your task", "The loss is not your task: ask the model your own questions.",
             'python -m qra_bo task=evaluate out=RUN "eval.tasks=[questions.jsonl]"'),
        Step("Search on", "The same command with more effort continues from the finished trials.",
             "python -m qra_bo ... effort=thorough out=RUN"),
    ]
