"""``best.json``, the result of a run, made from its journal alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.space import Allocation, average_bits
from qra_bo.study.journal import JOURNAL_NAME, read_journal
from qra_bo.study.state import Study, is_uniform
from qra_bo.trials import SCHEMA_VERSION, Trial, rounding_of
from qra_bo.utils.errors import JournalError, OutputError
from qra_bo.utils.files import write_json

BEST_NAME = "best.json"
_PROVENANCE = ("version", "git", "data_sha256", "packages", "device", "dtype", "threads")


def load_study(folder: Path) -> Study:
    """Return the state of the run in ``folder``, from its journal.

    Raises:
        JournalError: If there is no journal, or it can't be read.
    """
    events = read_journal(folder / JOURNAL_NAME).events
    if not events:
        raise JournalError(f"the journal in {folder} is empty; the run did not begin")
    return Study(events)


def write_best(folder: Path, study: Study | None = None) -> dict[str, Any]:
    """Write ``best.json`` of the run in ``folder``; returns its contents.

    Raises:
        JournalError: If the run has no result yet, or its journal can't be read.
        OutputError: If the file can't be written.
    """
    best = build_best(load_study(folder) if study is None else study)
    try:
        write_json(folder / BEST_NAME, best)
    except OSError as error:
        raise OutputError(f"{folder / BEST_NAME} can't be written ({error.strerror}); mend that and run the same "
                          "command again") from error
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
    point = study.point(winner)
    if point is None:
        raise JournalError(f"the journal holds no full-fidelity trial of the winner {winner.fingerprint}")
    return {"schema_version": SCHEMA_VERSION, "model": header["model"], "granularity": header["granularity"],
            "units": header["units"], "bits": list(point.bits), "ranks": list(winner.ranks),
            **_averages(study, point, end),
            "formats": [dict(formats[f]) for f in winner.formats], "alpha_over_rank": header["alpha_over_rank"],
            "init": header["init"], "codes": rounding_of(header["config"]), "oracle": header["oracle"],
            "method": header["method"], "effort": study.last.get("extension", header)["effort"],
            "winner_kind": "uniform" if study.counts_as_uniform(point) else "mixed",
            "learning_rate": study.last["calibration"]["lr"],
            **_loss(study, point), "versus_best_uniform": _versus(study, winner),
            "versus_best_uniform_at_rates": _at_rates(study, winner),
            "memory": _memory(study, winner, end), "baselines": [_baseline(study, e) for e in study.baselines],
            "cost": _cost(study, end), "provenance": _provenance(study)}


def _averages(study: Study, point: Trial, end: Mapping[str, Any]) -> dict[str, float]:
    """Return code bits a parameter, metadata bits a parameter, and the mean rank of a unit."""
    numel = np.array(study.header["unit_numel"])
    return {"average_bits": average_bits(point.bits, numel),
            "metadata_bits": metadata_bits(end, study.header["unit_numel"]),
            "average_rank": sum(point.allocation.ranks) / len(point.allocation)}


def metadata_bits(end: Mapping[str, Any], unit_numel: Sequence[int]) -> float:
    """Return the bits a parameter of scales and zeros of the delivered allocation."""
    return 8 * int(end["breakdown"].get("quant_metadata", 0)) / sum(unit_numel)


def _loss(study: Study, point: Trial) -> dict[str, Any]:
    """Return the reported loss: the mean test loss over unseen seeds, where the winner was confirmed."""
    confirmation = study.last.get("confirmation")
    fidelity = "high" if study.trains else "proxy"
    for side in ("candidate", "reference"):
        if confirmation is not None and Allocation.from_json(confirmation[side]) == point.allocation:
            losses = np.array(confirmation[f"{side}_losses"], dtype=np.float64)
            return {"loss": float(losses.mean()), "loss_se": float(losses.std(ddof=1) / np.sqrt(len(losses))),
                    "fidelity": fidelity, "metric": "test_loss", "search_loss": point.loss}
    return {"loss": point.loss, "loss_se": point.result.loss_se, "fidelity": fidelity,
            "metric": "validation_loss", "search_loss": point.loss}


def _versus(study: Study, winner: Allocation) -> dict[str, Any] | None:
    """Return the winner's paired differences to the best uniform allocation: all zero where it is that allocation, and
    ``None`` where it was not confirmed (no confirmation, or the next best that fits was taken)."""
    c = study.last.get("confirmation")
    if c is None:
        return None
    if Allocation.from_json(c["candidate"]) == winner:
        return {"mean": c["mean"], "low": c["low"], "high": c["high"], "train_seeds": len(c["train_seeds"])}
    if Allocation.from_json(c["reference"]) == winner:
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "train_seeds": len(c["train_seeds"])}
    return None


def _at_rates(study: Study, winner: Allocation) -> list[dict[str, Any]]:
    """Return the winner's paired differences at other learning rates, where the run checked them."""
    check = study.last.get("rate_check")
    if check is None or Allocation.from_json(check["candidate"]) != winner:
        return []
    return [{**{k: r[k] for k in ("factor", "mean", "low", "high")}, "train_seeds": len(r["train_seeds"])}
            for r in check["rates"]]


def _memory(study: Study, winner: Allocation, end: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predicted bytes of the winner, and the measured ones where they were measured."""
    measured = [m["measured_bytes"] for m in study.measured if Allocation.from_json(m["allocation"]) == winner]
    point = study.point(winner)
    if not measured and point is not None:
        measured = [point.result.measured_bytes]
    return {"scope": study.header["scope"], "budget_bytes": study.budget_bytes,
            "max_average_bits": study.header.get("max_average_bits"),
            "predicted_bytes": end["predicted_bytes"], "measured_bytes": measured[-1] if measured else None,
            "breakdown": dict(end["breakdown"])}


def _baseline(study: Study, e: Trial) -> dict[str, Any]:
    ranks = e.allocation.ranks
    return {"name": baseline_name(study, e), "bits": e.bits[0],
            "ranks": ranks[0] if is_uniform(e.allocation) else list(ranks), "format": e.allocation.formats[0],
            "codes": e.spec.codes, "loss": e.loss, "predicted_bytes": e.predicted_bytes,
            "feasible": e.predicted_bytes <= study.budget_bytes, "reference": e.stage == "reference"}


def baseline_name(study: Study, e: Trial) -> str:
    """Return ``uniform-4bit-r16`` or ``uniform-4bit-r4-5`` (filled ranks); with the format where several have these
    bits."""
    fmt, bits = e.allocation.formats[0], e.bits[0]
    same = {f["name"] for f in study.header["formats"] if f["bits"] == bits} | {fmt}
    ranks = "-".join(str(r) for r in sorted(set(e.allocation.ranks)))
    codes = "" if e.spec.codes is None else f"-{e.spec.codes}"
    return f"uniform-{bits}bit{f'-{fmt}' if len(same) > 1 else ''}-r{ranks}{codes}"


def _cost(study: Study, end: Mapping[str, Any]) -> dict[str, Any]:
    cost = study.cost
    return {"high_fidelity": cost.high_fidelity, "low_fidelity": cost.low_fidelity,
            "training_tokens": cost.training_tokens, "forward_tokens": cost.forward_tokens, "cost": cost.tokens,
            "full_trial_equivalents": cost.tokens / float(study.header["full_trial_tokens"]),
            "search_full_trial_equivalents": study.search_cost.tokens / float(study.header["full_trial_tokens"]),
            "evaluation_seconds": study.evaluation_seconds,
            "switch_seconds": sum(e.result.switch_seconds for e in study.trials),
            "wall_seconds": end["wall_seconds"], "overhead_seconds": end["overhead_seconds"]}


def _provenance(study: Study) -> dict[str, Any]:
    stored = study.last.get("provenance", {})
    seeds = {e.spec.train_seed: None for e in study.trials}
    return {**{k: stored.get(k) for k in _PROVENANCE}, "seed": study.header["seed"], "train_seeds": list(seeds),
            "config_sha256": study.header["config_sha256"]}
