"""What to do with a finished run: uses, commands, and the rank that a server must be told."""

from collections.abc import Sequence
from dataclasses import dataclass

from qra_bo.report.data import ReportData

SERVER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for ``--max-lora-rank``."""


@dataclass(frozen=True, slots=True)
class Step:
    """One next step: its purpose, a sentence about it, and the code or command."""

    what: str
    why: str
    code: str


def server_rank(ranks: Sequence[int]) -> int:
    """The least ``--max-lora-rank`` of vLLM that takes an adapter of these ranks."""
    return next((n for n in SERVER_RANKS if n >= max(ranks)), max(ranks))


def next_steps(d: ReportData) -> list[Step]:
    """The uses of a run that delivered an adapter; empty before that."""
    if d.winner is None or "final" not in d.study.last:
        return []
    exports = ("Writes the adapter's card, a script for TRL and, if named, the model for servers "
               "(compressed_tensors, gguf, mlx, merged); measures how each differs from the run's own model. vLLM "
               f"needs --max-lora-rank {server_rank(d.winner.ranks)} for these ranks.")
    steps = [
        Step("From Python", "The mixed base with its adapter, with the logits that it had at the end of the run.",
             'import qra_bo\nmodel, tokenizer = qra_bo.load("RUN")'),
        Step("In other trainers and servers", exports, "python -m qra_bo task=export out=RUN export.check=true"),
        Step("On your task", "The loss is not your task: ask the model your own questions.",
             'python -m qra_bo task=evaluate out=RUN "eval.tasks=[questions.jsonl]"'),
        Step("On other data", "Trains the same bits and ranks again, without a search.",
             "python -m qra_bo ... task=finetune allocation=RUN data=jsonl data.path=FILE")]
    if d.study.given:
        return steps
    effort, why = ("quick", "The same command with a search keeps the profile and measures what was predicted.") \
        if d.prediction else ("thorough", "The same command with more effort continues from the finished trials.")
    return [*steps, Step("Search on", why, f"python -m qra_bo ... effort={effort} out=RUN")]
