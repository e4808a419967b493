"""``best.json``, the result of a run, made from its journal alone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.memory.formats import parse_format
from qra_bo.space import Allocation, average_bits
from qra_bo.study.comparison import compared
from qra_bo.study.given import BY_RULE
from qra_bo.study.health import health
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.state import Study, is_uniform
from qra_bo.trials import SCHEMA_VERSION, Trial, embeddings_of, rounding_of
from qra_bo.utils.errors import JournalError
from qra_bo.utils.files import write_json, writing

BEST_NAME = "best.json"
PREDICTED = "predicted, not searched"
TRAINING = ("batch", "accumulate", "length", "packing", "warmup", "lr_floor", "weight_decay", "betas", "eps", "clip",
            "optimizer", "checkpointing")
"""Keys of ``train`` that the result states."""
_PROVENANCE = ("version", "git", "data_sha256", "data_render", "packages", "device", "dtype", "threads")


def load_study(folder: Path) -> Study:
    """Return the state of the run in ``folder``, from its journal.

    Raises:
        JournalError: If there is no journal, or it can't be read.
    """
    events = read_journal(folder / JOURNAL_NAME).events
    if not events:
        raise JournalError(f"the journal in {folder} is empty; the run did not begin")
    return Study(events)


def begun_study(folder: Path) -> Study | None:
    """Return the run in ``folder``, or ``None`` where none has begun: where its first line could not be written, an
    empty journal is left.

    Raises:
        JournalError: If there is a journal that can't be read.
    """
    path = folder / JOURNAL_NAME
    events = read_journal(path).events if path.exists() else ()
    return Study(events) if events else None


def write_best(folder: Path, study: Study | None = None) -> dict[str, Any]:
    """Write ``best.json`` of the run in ``folder``; returns its contents.

    Raises:
        JournalError: If the run has no result yet, or its journal can't be read.
        OutputError: If the file can't be written.
    """
    best = build_best(load_study(folder) if study is None else study)
    with writing(folder / BEST_NAME, "run the same command again"):
        write_json(folder / BEST_NAME, best)
    return best


def build_best(study: Study) -> dict[str, Any]:
    """Return the contents of ``best.json``.

    Raises:
        JournalError: If the run has not ended.
    """
    end, winner = study.last.get("end"), study.winner
    if end is None or winner is None:
        raise JournalError("the run has not ended, so that there is no best.json yet; run the same command again to "
                           "go on")
    header, formats = study.header, {f["name"]: f for f in study.header["formats"]}
    point, cost, full = study.point(winner), study.cost, float(header["full_trial_tokens"])
    if point is None and not ("prediction" in study.last or (study.given and "final" in study.last)):
        raise JournalError(f"the journal holds no full-fidelity trial of the winner {winner.fingerprint}")
    bits = [parse_format(f).bits for f in winner.formats]
    uniform = is_uniform(winner) if point is None else study.counts_as_uniform(point)
    return {"schema_version": SCHEMA_VERSION, "model": header["model"], "delivered": _delivered(study),
            "granularity": header["granularity"], "units": header["units"], "unit_numel": header["unit_numel"],
            "bits": bits, "ranks": list(winner.ranks),
            "average_bits": average_bits(bits, np.array(header["unit_numel"])),
            "metadata_bits": metadata_bits(end, header["unit_numel"]), "average_rank": sum(winner.ranks) / len(winner),
            "formats": [dict(formats[f]) for f in winner.formats], "alpha_over_rank": header["alpha_over_rank"],
            "init": header["init"], "codes": rounding_of(header["config"]),
            "embeddings": embeddings_of(header["config"]), "oracle": header["oracle"], "method": header["method"],
            "effort": study.last.get("extension", header)["effort"],
            "searched": not study.untried, "prediction": _prediction(study, winner), "one_seed": _one_seed(study),
            "winner_kind": "uniform" if uniform else "mixed",
            "learning_rate": study.last["calibration"]["learning_rate"], "learning_rate_source": _rate_source(study),
            "lr_rule": study.last["calibration"]["rule"], "training": _training(study),
            **_loss(study, point), "versus_best_uniform": _versus(study, winner),
            "objective": _objective(study, winner),
            "versus_best_uniform_at_rates": _at_rates(study, winner),
            "memory": _memory(study, winner, point, end), "baselines": [_baseline(study, e) for e in study.baselines],
            "cost": {
                "high_fidelity": cost.high_fidelity, "low_fidelity": cost.low_fidelity,
                "training_tokens": cost.training_tokens, "forward_tokens": cost.forward_tokens, "cost": cost.tokens,
                "full_trial_equivalents": cost.tokens / full,
                "search_full_trial_equivalents": study.search_cost.tokens / full,
                "evaluation_seconds": study.evaluation_seconds,
                "switch_seconds": sum(e.result.switch_seconds for e in study.trials),
                "wall_seconds": end["wall_seconds"], "overhead_seconds": end["overhead_seconds"]},
            "provenance": {**{k: study.last.get("provenance", {}).get(k) for k in _PROVENANCE}, "seed": header["seed"],
                           "train_seeds": list(dict.fromkeys(e.spec.train_seed for e in study.trials)),
                           "config_sha256": header["config_sha256"]},
            "checks": [asdict(card) for card in health(study)]}


def _rate_source(study: Study) -> str | None:
    """Say where the learning rate comes from; ``None`` where this run's trials chose it."""
    calibration = study.last["calibration"]
    return None if calibration["trials"] else str(calibration.get("source", BY_RULE))


def _training(study: Study) -> dict[str, Any]:
    """Return the trainer's settings, from which other trainers go on, and the steps of a trial and of the final
    fine-tune."""
    train = study.header["config"]["train"]
    return {"trial_steps": study.header["high_steps"], "steps": study.final_steps,
            **{key: train[key] for key in TRAINING}}


def metadata_bits(end: Mapping[str, Any], unit_numel: Sequence[int]) -> float:
    """Return the bits a parameter of scales and zeros of the delivered allocation."""
    return 8 * int(end["breakdown"].get("quant_metadata", 0)) / sum(unit_numel)


def _loss(study: Study, point: Trial | None) -> dict[str, Any]:
    """Return the reported loss: the mean test loss over unseen seeds, where the winner was confirmed; that of the final
    fine-tune, where nothing was searched; ``None`` where nothing was trained either."""
    if point is None:
        final = study.last.get("final", {})
        return {"loss": final.get("loss"), "loss_se": final.get("loss_se"), "fidelity": "high" if final else "none",
                "metric": "test_loss", "search_loss": None}
    confirmation = study.last.get("confirmation")
    fidelity = "high" if study.trains else "proxy"
    for side in ("candidate", "reference"):
        if confirmation and confirmation["train_seeds"] and confirmation[side] == point.allocation.to_json():
            losses = np.array(confirmation[f"{side}_losses"], dtype=np.float64)
            return {"loss": float(losses.mean()), "loss_se": float(losses.std(ddof=1) / np.sqrt(len(losses))),
                    "fidelity": fidelity, "metric": "test_loss", "search_loss": point.loss}
    return {"loss": point.loss, "loss_se": point.result.loss_se, "fidelity": fidelity,
            "metric": "validation_loss", "search_loss": point.loss}


def _prediction(study: Study, winner: Allocation) -> dict[str, Any] | None:
    """Return the predicted difference to the best uniform baseline, where the winner was predicted and not searched:
    ``None`` for its numbers where there is no such baseline, or another allocation is delivered."""
    found = study.last.get("prediction")
    if found is None:
        return None
    is_compared = found["reference"] is not None and winner.to_json() == found["allocations"][0]
    return {"label": PREDICTED, **{k: found[k] if is_compared else None for k in ("mean", "low", "high")},
            **{k: found[k] for k in ("steps", "sources", "reference")}}


def _one_seed(study: Study) -> dict[str, Any] | None:
    """Return the losses of what was trained beside a predicted allocation, on one training seed."""
    found = compared(study)
    return None if found is None else found.to_json()


def _delivered(study: Study) -> dict[str, Any] | None:
    """Return the delivered adapter's own test loss and steps; ``None`` without a final fine-tune."""
    final = study.last.get("final")
    return None if final is None else {**{k: final[k] for k in ("loss", "loss_se", "steps", "kept_step")},
                                       "metric": "test_loss"}


def _versus(study: Study, winner: Allocation) -> dict[str, Any] | None:
    """Return the winner's paired differences to the best uniform allocation: all zero where it is that allocation, and
    ``None`` where it was not confirmed (no confirmation, one without a pair of losses, or the next best that fits was
    taken)."""
    c = study.last.get("confirmation")
    if c is None or winner.to_json() not in (c["candidate"], c["reference"]):
        return None
    differs = winner.to_json() == c["candidate"] != c["reference"]
    if differs and not c["train_seeds"]:
        return None  # it was trained on no two seeds beside the uniform choice
    return {**{k: c[k] if differs else 0.0 for k in ("mean", "low", "high")}, "train_seeds": len(c["train_seeds"]),
            "steps": c["steps"]}


def _objective(study: Study, winner: Allocation) -> dict[str, Any]:
    """Return the steps of the training whose loss was minimised, those of a trial and of the confirmation (``None``
    without one), and what learned rates add beyond them to the winner's difference to the best uniform choice."""
    c, versus = study.last.get("confirmation"), _versus(study, winner)
    differs = c is not None and versus is not None and winner.to_json() == c["candidate"]
    return {"steps": study.objective_steps, "trial_steps": study.header["high_steps"],
            "confirmed_steps": None if c is None or versus is None else c["steps"],
            "predicted_beyond": c["ahead"] if c is not None and differs else None if versus is None else 0.0}


def _at_rates(study: Study, winner: Allocation) -> list[dict[str, Any]]:
    """Return the winner's paired differences at other learning rates, where the run checked them."""
    check = study.last.get("rate_check")
    if check is None or check["candidate"] != winner.to_json():
        return []
    return [{**{k: r[k] for k in ("factor", "mean", "low", "high")}, "train_seeds": len(r["train_seeds"])}
            for r in check["rates"]]


def _memory(study: Study, winner: Allocation, point: Trial | None, end: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predicted bytes of the winner, and the measured ones where they were measured."""
    measured = [m["measured_bytes"] for m in study.measured if m["allocation"] == winner.to_json()] \
        or [None if point is None else point.result.measured_bytes]
    return {"scope": study.header["scope"], "budget_bytes": study.budget_bytes,
            "max_average_bits": study.header.get("max_average_bits"),
            "predicted_bytes": end["predicted_bytes"], "measured_bytes": measured[-1],
            "file_bytes": end.get("file_bytes"), "breakdown": dict(end["breakdown"])}


def allocation_name(study: Study, allocation: Allocation, codes: str | None = None) -> str:
    """Return a name that no other allocation of the run has.

    ``uniform-4bit-r16``; ``uniform-4bit-r4-5-3fa9`` where ranks were filled, with digits of the fingerprint; and
    ``mixed-3fa9c1`` for all others. The format is named where several have these bits, and codes other than the run's.
    """
    filled = any(e.stage == "baseline" and e.allocation == allocation for e in study.points)
    if not filled and not is_uniform(allocation):
        name = [f"mixed-{allocation.fingerprint[:6]}"]
    else:
        fmt = allocation.formats[0]
        bits = parse_format(fmt).bits
        same = {f["name"] for f in study.header["formats"] if f["bits"] == bits} | {fmt}
        name = [f"uniform-{bits}bit", *([fmt] if len(same) > 1 else []),
                "r" + "-".join(map(str, sorted(set(allocation.ranks)))),
                *([] if is_uniform(allocation) else [allocation.fingerprint[:4]])]
    return "-".join([*name, *([] if codes is None else [codes])])


def _baseline(study: Study, e: Trial) -> dict[str, Any]:
    fmt, bits, ranks = e.allocation.formats[0], e.bits[0], e.allocation.ranks
    return {"name": allocation_name(study, e.allocation, e.spec.codes), "bits": bits,
            "ranks": ranks[0] if is_uniform(e.allocation) else list(ranks),
            "format": fmt, "codes": e.spec.codes, "loss": e.loss, "predicted_bytes": e.predicted_bytes,
            "feasible": e.within(study.budget_bytes) and study.admits(e.bits), "reference": e.stage == "reference"}
