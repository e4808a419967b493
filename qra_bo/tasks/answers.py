"""Answers to the questions of a file, kept in a run's folder as they come, and two models' answers compared."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import writing

if TYPE_CHECKING:
    from qra_bo.finetune.evaluation import Answer

ANSWERS = "answers"
LEVEL = 0.95
METRICS = ({"exact_match"}, {"acc", "acc_norm"})
"""Of written answers, and of multiple choice."""
_adapter: Any = functools.cache(TypeAdapter)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same questions.

    Args:
        questions: Questions that both answered.
        value: Share that this model has right; ``other``: that the other one has.
        mean: Difference of the shares, with its interval at 95 % (``low``, ``high``): Agresti and Min (2005), Wald's
            with half a question added to each cell.
        only_this: Questions that this model alone has right; ``only_other``: the other one alone.
        p: Of McNemar's exact test that both are as good.
    """

    questions: int
    value: float
    other: float
    mean: float
    low: float
    high: float
    only_this: int
    only_other: int
    p: float


def interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of ``n`` questions."""
    from scipy.stats import binomtest
    found = binomtest(round(share * n), n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def paired(these: Sequence["Answer"], others: Sequence["Answer"], metric: str) -> Paired:
    """Compare the answers to questions that both have."""
    from scipy.stats import binomtest
    right = {a.question: a.right[metric] for a in others if metric in a.right}
    pairs = [(a.right[metric], right[a.question]) for a in these if a.question in right]
    n, only_this, only_other = len(pairs), sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    if not n:
        return Paired(0, math.nan, math.nan, math.nan, math.nan, math.nan, 0, 0, 1.0)
    b, c, z = only_this + 0.5, only_other + 0.5, NormalDist().inv_cdf(0.5 + LEVEL / 2)
    centre, half = (b - c) / (n + 2), z * math.sqrt(b + c - (b - c) ** 2 / (n + 2)) / (n + 2)
    p = binomtest(only_this, only_this + only_other).pvalue if only_this + only_other else 1.0
    return Paired(n, sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n, (only_this - only_other) / n,
                  max(-1.0, centre - half), min(1.0, centre + half), only_this, only_other, float(p))


@dataclass(slots=True)
class AnswerFile:
    """A JSONL file of answers: one line says whose they are, every other one is an answer. ``cut`` says that it holds
    other lines, such as the half one of a killed writer: the next answers write it anew.

    Answers of another adapter than the folder's are set aside, and written over by the next ones.
    """

    path: Path
    header: Mapping[str, Any]
    answers: "list[Answer]" = field(default_factory=list)
    cut: bool = False

    @classmethod
    def of_run(cls, folder: Path, task: str, variant: str = "") -> "AnswerFile":
        """Open the answers of the run in ``folder``, or of its ``variant`` (``untuned``)."""
        from qra_bo.finetune.manifest import ADAPTER, ADAPTER_WEIGHTS
        weights = folder / ADAPTER / ADAPTER_WEIGHTS
        if not weights.is_file():
            raise OutputError(f"{folder} holds no finished run: {ADAPTER}/{ADAPTER_WEIGHTS} is not there")
        header = {"task": task, "model": variant or "tuned",
                  "adapter_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
        path = folder / ANSWERS / variant / f"{task}.jsonl"
        *lines, rest = path.read_bytes().split(b"\n") if path.is_file() else [b""]
        ours = lines[1:] if lines[:1] == [json.dumps(header).encode()] else []
        good = [answer for answer in map(_answer, ours) if answer is not None]
        return cls(path, header, good, cut=len(good) + 1 < len(lines) + bool(rest))

    @property
    def known(self) -> set[str]:
        """Digests of the questions that are answered."""
        return {a.question for a in self.answers}

    def add(self, answers: Sequence["Answer"]) -> None:
        """Append answers. Raises ``OutputError`` if the folder can't be written."""
        new = not self.answers
        self.answers += answers
        with writing(self.path, "ask again"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines = [self.header, *map(asdict, self.answers)] if new or self.cut else map(asdict, answers)
            with self.path.open("w" if new or self.cut else "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            self.cut = False


def _answer(line: bytes) -> "Answer | None":
    """Return the answer in a line; ``None`` for a line that no run writes."""
    from qra_bo.finetune.evaluation import Answer
    try:
        found: Answer = _adapter(Answer).validate_json(line, strict=True)
    except ValidationError:
        return None
    return found if set(found.right) in METRICS and all(value in (0, 1) for value in found.right.values()) else None
