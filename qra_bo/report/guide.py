"""Help beside the results: meanings of the report's words, and the next steps with a finished run."""

from dataclasses import dataclass

from qra_bo.report.data import ReportData
from qra_bo.report.story import server_rank

WORDS = (
    ("uniform baseline", "The same bit-width and the same LoRA rank for every layer, as without a search. The answer "
     "is measured against the best one that fits the budget."),
    ("bits, rank", "How many bits a weight of the frozen base takes, and how wide the trained adapter (LoRA) of a "
     "layer is. More of either costs memory."),
    ("loss, nats", "Mean negative log-likelihood of a token of held-out text, in natural units; lower is better. 0.01 "
     "nats less is 1 % less perplexity."),
    ("search loss, test loss", "The search sees the validation split, with its one training seed. The test split is "
     "used once, over training seeds that the search never used."),
    ("peak memory, stored memory", "The most bytes that fine-tuning needs at one moment, or the bytes of weights and "
     "adapters alone; the budget bounds one of the two."),
    ("full and low fidelity", "A fine-tuning of the search's full length, and a shorter one that costs less and is "
     "less informative. Costs are counted in full-trial equivalents."),
    ("surrogate", "The model that the search fits to the measured losses to choose the next trial."),
    ("QLoRA, 16-bit LoRA", "References: 4 bits (NF4) and no quantisation, both with rank 16. They need not fit."),
)
"""Words of the page that a newcomer may not know, each with its meaning."""


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
