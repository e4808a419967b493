"""Frozen view of one run's journal: the only input of every table, figure and page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation
from qra_bo.study.events import End
from qra_bo.study.gain import told_gain
from qra_bo.study.header import Header
from qra_bo.study.journal import JOURNAL_NAME, read_journal, session_seconds
from qra_bo.study.lines import MOST_SHOWN, decode
from qra_bo.study.state import Study
from qra_bo.study.verdict import Told, Verdict, told, verdict_of
from qra_bo.trials import Trial, rounding_of
from qra_bo.utils.errors import JournalError, OutputError, UserError

BREAKDOWN = {"weights": "quantised weights", "quant_metadata": "scales and zeros", "unquantised": "unquantised weights",
    "embeddings": "packed embedding and head", "adapters": "adapters", "gradients": "gradients",
    "optimizer": "optimiser states", "activations": "activations", "workspace": "workspace"}
"""Parts of the predicted memory, in the order of figures, with their labels."""


@dataclass(frozen=True)
class ReportData:
    """One run. ``Study`` decides which trials are points, which is incumbent and which wins.

    Args:
        study: The journal, folded; trials are in journal order.
        warnings: Messages of the journal's reader and of the run.
        wall_seconds: Sum over the sessions of a resumed run.
        ended_at: When the run ended; ``None`` before.
    """

    study: Study
    warnings: tuple[str, ...]
    wall_seconds: float
    ended_at: datetime | None

    @property
    def words(self) -> list[str]:
        """Flags and overrides of the run's command; ``+model=MODEL`` where a program composed it."""
        words = self.study.provenance.get("command")
        return [str(word) for word in words] if isinstance(words, Sequence) else ["+model=MODEL"]

    @property
    def header(self) -> Header:
        return self.study.header

    @cached_property
    def winner(self) -> Allocation | None:
        """The delivered allocation, or the one that would be delivered if the run ended now."""
        return self.study.winner

    @cached_property
    def verdict(self) -> Verdict:
        return verdict_of(self.study)

    @cached_property
    def told(self) -> Told:
        """The verdict in words."""
        return told(self.study, self.verdict)

    @property
    def ended(self) -> bool:
        return self.study.end is not None

    @property
    def state(self) -> str:
        """``"unfinished"`` until the journal's end event, then that event's status."""
        return "unfinished" if self.study.end is None else self.study.end.status

    @property
    def effort(self) -> str:
        """Name of the effort that the run was last started with."""
        return (self.study.effort or self.header).effort

    @property
    def stage(self) -> str:
        return "start" if self.study.stage is None else self.study.stage.stage

    @property
    def proxy_label(self) -> str | None:
        """Label of results without fine-tuning; ``None`` for real ones."""
        labels = {"synthetic": "SYNTHETIC: planted landscape, no model was trained"}
        kind = self.header.oracle
        return None if kind == "finetune" else labels.get(kind, f"PROXY: results of the oracle {kind!r}")

    @property
    def loss_text(self) -> str:
        """Name of the loss in figures and tables, with its unit where that is known."""
        return "loss in nats per token" if self.header.unit else "loss of the oracle"

    @cached_property
    def points(self) -> tuple[Trial, ...]:
        """Points of the search and references, in journal order."""
        references = [e for e in self.study.baselines if e.stage == "reference"]
        return tuple(sorted((*self.study.points, *references), key=lambda e: e.id))

    @property
    def winner_point(self) -> Trial | None:
        """The search's own full-fidelity trial of the winner."""
        return None if self.winner is None else self.point(self.winner)

    @property
    def rounding(self) -> str:
        """How the search chose codes: ``"rtn"`` or ``"gptq"``."""
        return rounding_of(self.header.config)

    def point(self, allocation: Allocation, codes: str | None = None) -> Trial | None:
        """The full-fidelity trial of ``allocation`` with ``codes`` (as in ``TrialSpec``), or ``None``."""
        return next((e for e in self.points if e.allocation == allocation and e.spec.codes == codes), None)

    def reference(self, fmt: str, rank: int) -> Trial | None:
        """The trial of a uniform allocation with round-to-nearest codes, e.g. ``("nf4", 16)`` for QLoRA."""
        return next((e for e in self.points
                     if set(e.allocation.formats) == {fmt} and set(e.allocation.ranks) == {rank}
                     and (self.rounding == "rtn" or e.spec.codes == "rtn" or fmt == "fp16")), None)

    def bits(self, allocation: Allocation) -> tuple[int, ...]:
        """Code bits of every unit, also of formats off the ladder."""
        return tuple(parse_format(f).bits for f in allocation.formats)

    def average_bits(self, allocation: Allocation) -> float:
        """Code bits weighted by parameters."""
        return self.header.average_bits(self.bits(allocation))

    @property
    def equivalents(self) -> float:
        """Cost of everything, failures and confirmation included, in full-trial equivalents."""
        return self.study.cost.tokens / self.header.full_trial_tokens


def parse_events(lines: Sequence[Mapping[str, Any]], warnings: Sequence[str] = ()) -> ReportData:
    """Check a journal's lines and fold them; ``warnings`` are messages of the journal's reader.

    Raises:
        JournalError: If there is no header, an event is malformed, the delivered allocation in none, or values clash.
    """
    study, ended_at = Study(), None
    try:  # a checksum does not say who wrote a line
        for event in map(decode, lines):
            study.add(event)
            if isinstance(event.record, End):
                ended_at = event.time
        data = ReportData(study, tuple(dict.fromkeys([*warnings, *study.warnings])), session_seconds(lines), ended_at)
        _ = data.header, data.winner, data.told, data.equivalents, told_gain(study)  # what every view needs
        if {len(study.header.unit_numel), *(len(e.allocation) for e in study.trials)} != {len(study.header.units)}:
            raise ValueError("an allocation or the sizes have another number of units")
    except JournalError:
        raise
    except (UserError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise JournalError("the journal holds values that do not go together and can't be read "
                           f"({repr(error)[:MOST_SHOWN]}); it was not written by this program") from error
    return data


def load_run(folder: Path | str) -> ReportData:
    """Read the journal in a run's folder.

    Raises:
        OutputError: If the folder holds no journal, or one that is no plain file.
        JournalError: If the journal can't be read.
    """
    path = Path(folder) / JOURNAL_NAME
    if not path.is_file():
        raise OutputError(f"{folder} is no run's folder: it holds no {JOURNAL_NAME}; give the out= folder of a run")
    content = read_journal(path)
    return parse_events(content.events, content.warnings)
