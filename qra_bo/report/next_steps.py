"""Uses of a finished run; RUN in their commands stands for its folder."""

from qra_bo.report.data import ReportData

STEPS = (
    ("From Python: the model, with the logits of the run's end",
     'import qra_bo\nmodel, tokenizer = qra_bo.load("RUN")'),
    ("For other trainers and servers", "python -m qra_bo task=export out=RUN export.check=true"),
    ("Your own questions to it", 'python -m qra_bo task=evaluate out=RUN "eval.tasks=[questions.jsonl]"'),
    ("The same bits and ranks on other data",
     "python -m qra_bo ... task=finetune allocation=RUN data=jsonl data.path=FILE"))


def next_steps(d: ReportData) -> tuple[tuple[str, str], ...]:
    """Purpose and code of every use of a run that delivered an adapter; empty before that."""
    return () if d.final_loss is None else STEPS
