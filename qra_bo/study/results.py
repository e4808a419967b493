"""``best.json``, the result of a run, made from its journal alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.memory.file_formats import STORED
from qra_bo.memory.formats import parse_format
from qra_bo.space.space import BLIND_RULE
from qra_bo.study.events import Compared, End
from qra_bo.study.gain import gain_of
from qra_bo.study.header import BY_RULE
from qra_bo.study.health import Card, health
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.lines import study_of
from qra_bo.study.state import FRACTIONAL, Study, is_uniform
from qra_bo.study.verdict import verdict_card, verdict_of
from qra_bo.trials import SCHEMA_VERSION, Trial, embeddings_of, rounding_of
from qra_bo.utils.errors import JournalError, OutputError
from qra_bo.utils.files import write_json, writing

BEST_NAME = "best.json"
PREDICTED = "predicted, not searched"
TRAINING = ("batch", "accumulate", "length", "packing", "warmup", "lr_floor", "weight_decay", "betas", "eps", "clip",
            "optimizer", "checkpointing")
"""Keys of ``train`` that the result states."""
_PROVENANCE = ("version", "git", "data_sha256", "data_render", "packages", "device", "dtype", "threads")


def checks(study: Study) -> list[Card]:
    """Return the health cards of a run, its verdict first."""
    return [verdict_card(study), *health(study)]


def write_best(folder: Path, study: Study) -> dict[str, Any]:
    """Write ``best.json`` of the run in ``folder``; returns its contents.

    Raises:
        JournalError: If the run has no result yet.
        OutputError: If the file can't be written.
    """
    best = build_best(study)
    with writing(folder / BEST_NAME, "run the same command again"):
        write_json(folder / BEST_NAME, best)
    return best


def check_best(folder: Path, best: Mapping[str, Any]) -> None:
    """Compare the contents of ``best.json`` with the journal beside it, where that is at hand and ended; raises
    ``OutputError`` where they differ. The checks are passed over: another release may word them otherwise."""
    try:
        known = json.loads(json.dumps(build_best(study_of(read_journal(folder / JOURNAL_NAME).events))))
    except JournalError:
        return
    if {**known, "checks": None} != {**best, "checks": None}:
        raise OutputError(f"{folder / BEST_NAME} is not what the run's trials.jsonl says: it was changed; run the "
                          "search's command again, which writes it from the journal, or copy it again")


def build_best(study: Study) -> dict[str, Any]:
    """Return the contents of ``best.json``. Raises ``JournalError`` if the run has not ended."""
    end, winner, final = study.end, study.winner, study.final
    if end is None or winner is None:
        raise JournalError("the run has not ended, so that there is no best.json yet; run the same command again to "
                           "go on")
    header, formats = study.header, {f.name: asdict(f) for f in study.header.formats}
    point, measured = study.point(winner), study.measurement(winner)
    cost, full, c = study.cost, header.full_trial_tokens, study.confirmation
    calibration = study.calibration
    if calibration is None or (point is None and not (study.prediction or (study.given and final))):
        raise JournalError(f"the journal holds no full-fidelity trial of the winner {winner.fingerprint}")
    bits = [parse_format(f).bits for f in winner.formats]
    return {"schema_version": SCHEMA_VERSION, "model": header.model, "delivered": final and {
                "metric": "test_loss", **{k: getattr(final, k) for k in ("loss", "loss_se", "steps", "kept_step")}},
            "untuned": _untuned(study),
            "granularity": header.granularity, "units": list(header.units), "unit_numel": list(header.unit_numel),
            "bits": bits, "ranks": list(winner.ranks),
            "average_bits": header.average_bits(bits), "stored": header.stored,
            "metadata_bits": metadata_bits(end, header.unit_numel), "average_rank": sum(winner.ranks) / len(winner),
            "formats": [formats[f] for f in winner.formats], "alpha_over_rank": header.alpha_over_rank,
            "init": "kaiming", "codes": STORED if header.stored else rounding_of(header.config),
            "embeddings": embeddings_of(header.config), "oracle": header.oracle, "method": header.method,
            "base_origin": study.provenance.get("base_origin"), "effort": (study.effort or header).effort,
            "searched": not study.untried, "prediction": _prediction(study),
            "winner_kind": study.kind_of(winner), "rule": BLIND_RULE if study.kind_of(winner) == FRACTIONAL else None,
            "learning_rate": calibration.learning_rate, "lr_rule": calibration.rule,
            "learning_rate_source": calibration.source or (None if calibration.trials else BY_RULE),
            "training": {"trial_steps": header.high_steps, "steps": study.final_steps,
                         **{key: header.config["train"][key] for key in TRAINING}},
            **_loss(study, point), "verdict": verdict_of(study).kind.value,
            "versus_best_simple": _versus(study, "reference"), "versus_best_uniform": _versus(study, "uniform"),
            "mixed_versus_simple": None if c is None or c.candidate == c.reference or not c.train_seeds else
            {f.name: list(v) if isinstance(v := getattr(c, f.name), tuple) else v for f in fields(Compared)},
            "objective": _objective(study),
            "memory": {
                "scope": header.scope, "budget_bytes": header.budget_bytes, "max_average_bits": header.max_average_bits,
                "predicted_bytes": end.predicted_bytes, "file_bytes": end.file_bytes, "breakdown": dict(end.breakdown),
                "measured_bytes": measured.measured_bytes if measured else point and point.result.measured_bytes},
            "baselines": [_baseline(study, e) for e in study.baselines],
            "cost": {
                "high_fidelity": cost.high_fidelity, "low_fidelity": cost.low_fidelity,
                "training_tokens": cost.training_tokens, "forward_tokens": cost.forward_tokens, "cost": cost.tokens,
                "full_trial_equivalents": cost.tokens / full,
                "search_full_trial_equivalents": study.search_cost.tokens / full,
                "evaluation_seconds": study.evaluation_seconds,
                "switch_seconds": sum(e.result.switch_seconds for e in study.trials),
                "wall_seconds": end.wall_seconds, "overhead_seconds": end.overhead_seconds},
            "provenance": {**{k: study.provenance.get(k) for k in _PROVENANCE}, "seed": header.seed,
                           "train_seeds": list(dict.fromkeys(e.spec.train_seed for e in study.trials)),
                           "config_sha256": header.config_sha256},
            "checks": [asdict(card) for card in checks(study)]}


def metadata_bits(end: End, unit_numel: Sequence[int]) -> float:
    """Return the bits a parameter of scales and zeros of the delivered allocation."""
    return 8 * end.breakdown.get("quant_metadata", 0) / sum(unit_numel)


def _untuned(study: Study) -> dict[str, Any] | None:
    """Return the model before any training: its test loss, what the final fine-tune changed (nats), and how both go on
    from a held-out prompt."""
    untuned, final, gain = study.untuned, study.final, gain_of(study)
    return None if untuned is None else {"metric": "test_loss", "loss": untuned.loss, "loss_se": untuned.loss_se,
                        "verdict": gain and gain.kind.value, "versus": gain and gain.versus and asdict(gain.versus),
                        "sample": {"prompt": untuned.prompt, "before": untuned.text, "after": final and final.text}}


def _loss(study: Study, point: Trial | None) -> dict[str, Any]:
    """Return the reported loss: the mean test loss over unseen seeds, where the winner was confirmed; that of the final
    fine-tune, where nothing was searched; ``None`` where nothing was trained either."""
    if point is None:
        final = study.final
        return {"loss": final and final.loss, "loss_se": final and final.loss_se,
                "fidelity": "high" if final else "none", "metric": "test_loss", "search_loss": None}
    fidelity, c = "high" if study.header.trains else "proxy", study.confirmation
    losses = np.array(() if c is None else c.losses_of(point.allocation))
    if len(losses):
        return {"loss": float(losses.mean()), "loss_se": float(losses.std(ddof=1) / np.sqrt(len(losses))),
                "fidelity": fidelity, "metric": "test_loss", "search_loss": point.loss}
    return {"loss": point.loss, "loss_se": point.result.loss_se, "fidelity": fidelity,
            "metric": "validation_loss", "search_loss": point.loss}


def _prediction(study: Study) -> dict[str, Any] | None:
    """Return the predicted difference to the best uniform baseline; without numbers where another is delivered."""
    p = study.prediction
    if p is None:
        return None
    known = p.reference is not None and study.winner == p.allocations[0]
    versus = asdict(p.versus_simple) if p.simple is not None and study.winner == p.allocations[0] else None
    return {"label": PREDICTED, **{k: getattr(p, k) if known else None for k in ("mean", "low", "high")},
            "steps": p.steps, "sources": list(p.sources), "reference": p.reference and p.reference.to_json(),
            "simple": p.simple and p.simple.to_json(), "versus_simple": versus,
            "mixed": p.mixed and asdict(p.mixed), "checked_steps": p.checked_steps}


def _versus(study: Study, side: str) -> dict[str, Any] | None:
    """Return the winner's paired differences on unseen seeds to the ``"reference"`` (the best simple choice) or the
    ``"uniform"`` of the confirmation: all zero where it is that allocation, and ``None`` where it was not confirmed."""
    c, winner = study.confirmation, study.winner
    if c is None or winner not in (c.candidate, c.reference, c.uniform):
        return None  # the next best that fits was taken
    other = getattr(c, side)
    known = c if winner == other or (winner == c.candidate and other == c.reference) else \
        c.versus_uniform if winner == c.winner and other == c.uniform else None
    if known is None or (winner != other and not known.train_seeds):
        return None  # it was trained on no two seeds beside the other
    return {**{k: getattr(known, k) if winner != other else 0.0 for k in ("mean", "low", "high")},
            "train_seeds": len(known.train_seeds), "steps": c.steps, "over_text": known.over_text, "level": known.level}


def _objective(study: Study) -> dict[str, Any]:
    """Return the steps of the training whose loss was minimised, those of a trial and of the confirmation (``None``
    without one), and what learned rates add beyond them to the winner's difference to the best simple choice."""
    c, versus = study.confirmation, _versus(study, "reference")
    differs = c is not None and versus is not None and study.winner == c.candidate
    return {"steps": study.objective_steps, "trial_steps": study.header.high_steps,
            "confirmed_steps": versus and versus["steps"],
            **{key: value if c is not None and differs else None if versus is None else 0.0 for key, value in (
                ("predicted_beyond", c and c.ahead), ("predicted_beyond_sd", c and c.ahead_sd))}}


def _baseline(study: Study, e: Trial) -> dict[str, Any]:
    fmt, ranks = e.allocation.formats[0], e.allocation.ranks
    bits, uniform = study.header.average_bits(e.bits), is_uniform(e.allocation)
    return {"name": study.name(e.allocation, e.spec.codes), "bits": e.bits[0] if uniform else bits,
            "reference": e.stage == "reference", "ranks": ranks[0] if len(set(ranks)) == 1 else list(ranks),
            "format": fmt if uniform else None, "codes": e.spec.codes, "loss": e.loss,
            "predicted_bytes": e.predicted_bytes,
            "feasible": e.within(study.header.budget_bytes) and study.admits(e.bits)}
