"""What a report says beside its results: what its words mean, and what to do with what was found."""

from dataclasses import dataclass

from qra_bo.report.data import ReportData
from qra_bo.report.story import server_rank

WORDS = (
    ("uniform choice", "The same bit-width and the same LoRA rank for every layer: what one would do without a "
     "search. The best that fits the budget is what the answer is measured against."),
    ("bits, rank", "How many bits a weight of the frozen base takes, and how wide the trained adapter (LoRA) of a "
     "layer is. More of either costs memory."),
    ("loss, nats", "Mean negative log-likelihood of a token of held-out text, in natural units; lower is better. 0.01 "
     "nats less is 1 % less perplexity."),
    ("search loss, test loss", "On the validation split, which the search sees, with its one training seed; and on the "
     "test split, looked at once, over training seeds that the search never used."),
    ("peak memory, stored memory", "The most bytes that fine-tuning needs at one moment, or the bytes of weights and "
     "adapters alone; the budget bounds one of the two."),
    ("high and low fidelity", "A fine-tuning of the search's full length, and a shorter one that costs less and says "
     "less. Costs are counted in high-fidelity evaluations."),
    ("surrogate", "The model that the search fits to what was measured, to choose what to try next."),
    ("QLoRA, 16-bit LoRA", "References: 4 bits (NF4) and no quantisation, both with rank 16. They need not fit."),
)
"""Words of the page that a newcomer may not know, each with its meaning."""


@dataclass(frozen=True, slots=True)
class Step:
    """Something to do next: what for, a sentence about it, and the code or command."""

    what: str
    why: str
    code: str


def next_steps(d: ReportData) -> list[Step]:
    """What can be done with a run that delivered an adapter; nothing before."""
    if d.winner is None or d.final is None:
        return []
    rank = server_rank(d.winner.ranks)
    return [
        Step("From Python", "The mixed base with its adapter, with the logits that it had at the end of the run.",
             'import qra_bo\nmodel, tokenizer = qra_bo.load("RUN")'),
        Step("In other trainers and servers",
             "Writes the adapter's card, configurations for other trainers and, if named, merged or packed weights; "
             f"export.check=true loads each again and says how far it is. vLLM needs --max-lora-rank {rank} for "
             "these ranks.", "python -m qra_bo task=export out=RUN export.check=true"),
        Step("On your task", "The loss is not your task: ask the model your own questions.",
             'python -m qra_bo task=evaluate out=RUN "eval.tasks=[questions.jsonl]"'),
        Step("Search on", "The same command as before with more effort goes on from what was evaluated.",
             "python -m qra_bo ... effort=thorough out=RUN"),
    ]
