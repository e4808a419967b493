"""Trials of finished runs as rows of a table, if model, data, trainer and fidelity agree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.collect.plan import CALIBRATION, Plan
from bench.collect.task import Setting, differences, touches
from bench.collect.writing import facts_to_json, is_known
from bench.emulator.table import TableRow, comparable_rate
from qra_bo.study.journal import JOURNAL_NAME, checksum, read_journal
from qra_bo.trials import Trial, TrialSpec, TrialState, embeddings_of, rounding_of
from qra_bo.utils.errors import JournalError


@dataclass(frozen=True)
class TakenUp:
    """What a run's journal gave.

    Args:
        rows: New rows.
        provenance: Where they come from, by the name of their batch.
        refused: How many evaluations were refused for each reason.
    """

    rows: list[TableRow]
    provenance: dict[str, dict[str, Any]]
    refused: Counter[str]


def take_up(run: Path, setting: Setting, plan: Plan, known: Sequence[TableRow]) -> TakenUp:
    """Rows from the journal of one run.

    Args:
        run: The run's folder.
        setting: Of the table.
        plan: Its plan: evaluations at other learning rates are taken where they decide the table's own.
        known: Its rows: nothing is taken twice.

    Raises:
        JournalError: If the journal can't be read.
    """
    events = read_journal(run / JOURNAL_NAME).events
    header, sessions = events[0], {e["session"]: e for e in events if e["event"] == "provenance"}
    taken = TakenUp([], {}, Counter())
    rate, deciding, first = plan.calibrated(known), set(plan.calibration()), setting.facts.train_seeds[0]
    for event in events:
        if event["event"] != "trial":
            continue
        provenance = sessions.get(event["session"])
        if provenance is None:
            raise JournalError(f"{run / JOURNAL_NAME}: session {event['session']} does not say where its evaluations "
                               "come from")
        evaluation = Trial.from_json(event)
        request = evaluation.spec
        factor = factor_of(request, setting)
        decides = request.train_seed == first and (request.allocation, factor) in deciding
        origin = CALIBRATION if decides else f"run {evaluation.stage}"
        reason = refusal(evaluation, header, provenance, setting)
        if reason is None and not decides:
            reason = rate_refusal(factor, rate)
        if reason is None and is_known(
                [row for row in (*known, *taken.rows) if (row.origin == CALIBRATION) == decides], request.allocation,
                request.train_seed, factor):
            reason = "the table has it already"
        if reason is not None:
            taken.refused[reason] += 1
            continue
        batch = batch_of(header, provenance)
        taken.provenance[batch] = origin_of(header, provenance)
        taken.rows.append(_row(evaluation, origin, setting, batch))
    return taken


def refusal(evaluation: Trial, header: Mapping[str, Any], provenance: Mapping[str, Any],
            setting: Setting) -> str | None:
    """Why an evaluation is not of this table, whatever its learning rate; ``None`` where it may be.

    Args:
        evaluation: Of a journal.
        header: The journal's first event.
        provenance: Of the evaluation's session.
        setting: Of the table.
    """
    facts, request, config = facts_to_json(setting.facts), evaluation.spec, header["config"]
    length = config["train"]["length"]
    theirs = {"model": header["model"], "model_sha256": provenance.get("model_sha256"),
              "data_sha256": provenance.get("data_sha256"), "granularity": header["granularity"],
              "units": header["units"], "dtype": provenance.get("dtype"),
              "trainer": {"lr": config["adapter"]["lr"], **provenance.get("train", {})},
              "adapter": {"init": header["init"], "alpha_over_rank": header["alpha_over_rank"]},
              "length": length, "eval_tokens": config["eval"]["sequences"] * length}
    wrong = differences({key: facts[key] for key in theirs}, theirs)
    if header["oracle"] != "finetune":
        return f"oracle={header['oracle']}: nothing was trained"
    if wrong:
        return "; ".join(wrong)
    if "rtn" not in (rounding_of(config), request.codes):
        return "codes of GPTQ, not round-to-nearest"
    if embeddings_of(config) != 16:
        return f"an embedding in {embeddings_of(config)} bits, not in 16"
    if config["train"]["packing"] != "joined":
        return "records that share a sequence were isolated"
    if (request.steps, request.schedule_steps) != (setting.facts.steps, setting.facts.steps):
        return f"{request.steps} steps of a schedule of {request.schedule_steps}, not {setting.facts.steps}"
    if request.init not in (None, setting.facts.adapter["init"]):
        return f"adapters started by {request.init}"
    if request.split != "validation":
        return f"evaluated on the {request.split} split"
    if not set(evaluation.allocation.formats) <= set(setting.facts.formats):
        return "formats off the ladder"
    if touches(setting.facts.train_blocks, setting.facts.calibration_blocks, setting.facts.step_sequences,
               setting.facts.steps, request.train_seed):
        return f"training seed {request.train_seed} sees text that sensitivities were measured on"
    if evaluation.result.state not in (TrialState.OK, TrialState.DIVERGED):
        return f"it ended as {evaluation.result.state.value}"
    return None


def rate_refusal(theirs: float, rate: float | None) -> str | None:
    """Why a factor on the learning rate is not the table's (``None`` where that is not known yet)."""
    if rate is None:
        return "the table's learning rate is not calibrated yet: collect a few rows first, then take this up"
    if not comparable_rate(theirs, rate):
        return f"a factor of {theirs:g} on the learning rate, where the table's is {rate:g}"
    return None


def batch_of(header: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Name of a batch of rows from a run: the same run gives the same."""
    return f"run-{checksum({'header': header['crc'], 'provenance': provenance['crc']})}"


def origin_of(header: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Where the rows of a run come from."""
    left_out = {"event", "crc", "session", "elapsed", "data"}  # the last may be a path of that machine
    return {"run": {"method": header["method"], "effort": header["effort"], "seed": header["seed"],
                    "budget": header["budget_text"], "scope": header["scope"],
                    "config_sha256": header["config_sha256"]},
            **{k: v for k, v in provenance.items() if k not in left_out}}


def factor_of(spec: TrialSpec, setting: Setting) -> float:
    """Return a trial's learning rate as a factor on that of the table's task, without the error of rounding."""
    return float(f"{spec.learning_rate / setting.facts.learning_rate:.12g}")


def _row(evaluation: Trial, origin: str, setting: Setting, batch: str) -> TableRow:
    m, allocation = evaluation.result, evaluation.allocation
    curve = dict(m.curve)
    return TableRow(allocation, origin, evaluation.spec.train_seed, factor_of(evaluation.spec, setting),
                    m.state, m.loss, m.loss_se, tuple(curve.get(step) for step in setting.facts.record_at),
                    setting.bytes_of(allocation), m.seconds, batch)
