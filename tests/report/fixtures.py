"""A plausible journal of a whole run, made from a planted landscape: 12 layers, 25 search evaluations."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.space import Allocation, StorageFormat, uniform
from qra_bo.study.journal import JOURNAL_NAME, Journal
from qra_bo.trials import Fidelity, Trial, TrialResult, TrialSpec, TrialState

L = 12
FORMATS = (StorageFormat("hqq2", "hqq", 2, 64), StorageFormat("hqq3", "hqq", 3, 64),
           StorageFormat("nf4", "bitsandbytes", 4, 64, True), StorageFormat("int8", "bitsandbytes", 8, 0))
RANKS = (1, 2, 4, 6, 8, 12, 16)
NUMEL = 3_500_000
BITS = {"hqq2": 2, "hqq3": 3, "nf4": 4, "int8": 8, "fp16": 16}
STORED_BITS = {"hqq2": 2.5, "hqq3": 3.5, "nf4": 4.127, "int8": 8.02, "fp16": 16.0}
UNIT_DAMAGE = np.array([.9, .5, .3, .22, .2, .18, .17, .2, .24, .3, .45, .8])
FORMAT_DAMAGE = {"hqq2": 4.0, "hqq3": .7, "nf4": .14, "int8": .004, "fp16": 0.0}
HIGH, LOW, TOKENS_A_STEP = 48, 12, 256
OTHER_BYTES = 56_000_000
START = 1_760_000_000


def breakdown(a: Allocation) -> dict[str, int]:
    weights = sum(int(NUMEL * BITS[f] / 8) for f in a.formats)
    stored = sum(int(NUMEL * STORED_BITS[f] / 8) for f in a.formats)
    adapters = sum(r * 9_000 * 4 for r in a.ranks)
    return {"weights": weights, "quant_metadata": stored - weights, "unquantised": OTHER_BYTES, "adapters": adapters,
            "gradients": adapters, "optimizer": 2 * adapters, "activations": 21_000_000, "workspace": 9_400_000}


def predicted(a: Allocation) -> int:
    return sum(breakdown(a).values())


def true_loss(a: Allocation) -> float:
    damage = sum(UNIT_DAMAGE[u] * FORMAT_DAMAGE[f] * (1 - .04 * np.log2(1 + r))
                 for u, (f, r) in enumerate(zip(a.formats, a.ranks, strict=True)))
    gain = sum(.002 * np.log2(1 + r) for r in a.ranks)
    return float(4.02 + .25 * damage + .02 * damage**2 - gain)


class Script:
    """Collects events with a clock that runs on by each event's seconds."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.events: list[dict[str, Any]] = []
        self.clock = 0.0
        self.next_id = 1

    def add(self, event: str, fields: Mapping[str, Any], seconds: float = 0.2) -> None:
        self.clock += seconds
        time = datetime.fromtimestamp(START + self.clock, UTC).isoformat()
        self.events.append({"event": event, "time": time, "session": 1, "elapsed": self.clock, **fields})

    def evaluate(self, a: Allocation, stage: str, fidelity: Fidelity = Fidelity.HIGH, *, steps: int | None = None,
                 train_seed: int = 0, split: str = "validation", lr_scale: float = 1.0,
                 state: TrialState = TrialState.OK, done_steps: int = 0) -> float:
        steps = steps or (HIGH if fidelity is Fidelity.HIGH else LOW)
        loss = (true_loss(a) + .9 * np.exp(-steps / 14) + .012 * np.random.default_rng(train_seed).normal()
                + .0025 * self.rng.normal() + .02 * np.log2(lr_scale)**2)
        curve = tuple((s, float(loss + .9 * (np.exp(-s / 14) - np.exp(-steps / 14)))) for s in range(12, steps + 1, 12))
        new = steps - done_steps
        ok = state is TrialState.OK
        measurement = TrialResult(
            state, float(loss) if ok else None, .004 if ok else None, curve if ok else (), new, new * TOKENS_A_STEP,
            6_000, predicted(a) - 1_200_000 if ok else None, .42 * new + 1.5, .05,
            "" if ok else "the loss became NaN at step 7")
        e = Trial(self.next_id, a, tuple(BITS[f] for f in a.formats), stage, fidelity,
                       TrialSpec(a, steps, HIGH, train_seed, 2e-3 * lr_scale, split), 0, measurement, predicted(a))
        self.next_id += 1
        self.add("trial", {**{k: v for k, v in e.to_json().items() if k != "event"}, "overhead_seconds": .3},
                 measurement.seconds + .3)
        return float(loss)


def profile_fields(rng: np.random.Generator) -> dict[str, Any]:
    damage = np.array([[UNIT_DAMAGE[u] * FORMAT_DAMAGE[f.name] * .5 for f in FORMATS] for u in range(L)])
    gain = np.cumsum(np.sort(rng.gamma(2., .02, (L, 16)), axis=1)[:, ::-1], axis=1)
    return {"source": "measured on 4096 calibration tokens", "units": [f"model.layers.{u}" for u in range(L)],
            "formats": [f.name for f in FORMATS], "quantization_sensitivity": damage.tolist(),
            "quantization_kl": (damage * .8).tolist(), "rank_sensitivity": gain.tolist(), "base_loss": 4.67,
            "training_tokens": 2_048, "forward_tokens": 60_000,
            "seconds": 31.0}


def make_events(seed: int = 0, *, oracle: str = "finetune", finished: bool = True, wins: bool = True,
                model: str = "smollm2_135m") -> list[dict[str, Any]]:
    """Events of one run; ``wins`` decides whether the mixed allocation beats the best uniform on the test split."""
    s = Script(seed)
    budget = predicted(uniform(L, "nf4", 4))
    s.add("header", {
        "schema_version": 3, "config": {"model": {"name": model}, "budget": "uniform:4,4", "effort": "normal"},
        "config_sha256": "c0ffee" + "0" * 58, "version": "0.1.0", "seed": seed, "model": model,
        "granularity": "layer", "units": [f"model.layers.{u}" for u in range(L)],
        "formats": [asdict(f) for f in FORMATS], "ranks": list(RANKS), "unit_numel": [NUMEL] * L,
        "budget_bytes": budget, "budget_text": "uniform:4,4", "scope": "peak", "oracle": oracle, "train_seed": 0,
        "full_trial_tokens": HIGH * TOKENS_A_STEP + 2_000, "uniform_baselines": 3, "alpha_over_rank": 2,
        "max_full_trials": 30.0, "references": True, "max_average_bits": None, "rates_sha256": None,
        "high_steps": HIGH, "low_steps": LOW, "effort": "normal",
        "planned_cost": 30.0 * (HIGH * TOKENS_A_STEP + 2_000),
        "method": "autoqra"})
    s.add("provenance", {"version": "0.1.0", "git": "f99649c", "packages": {"torch": "2.13.0", "peft": "0.21.2"},
                         "device": "cpu", "dtype": "float32", "threads": 2, "data_sha256": "ab" * 32,
                         "python": "3.12.3"})
    s.add("untuned", {"loss": 4.401, "loss_se": .006, "sequences": [[438.0, 100], [442.2, 100]], "forward_tokens": 256,
                      "prompt": "The first thing that he did was to", "text": " the the the"})
    s.add("stage", {"stage": "profile", "state": "start"})
    s.add("profile", profile_fields(s.rng), 31.0)
    s.add("stage", {"stage": "profile", "state": "end"})
    nf4 = [uniform(L, "nf4", 4), uniform(L, "nf4", 2)]
    trials = [{"learning_rate": 2e-3 * scale, "loss": s.evaluate(nf4[0], "calibration", lr_scale=scale)}
              for scale in (.5, 1., 2.)]
    s.add("calibration", {"learning_rate": 2e-3, "rule": "constant", "trials": trials, "tried": [1e-3, 2e-3, 4e-3]})
    s.add("stage", {"stage": "baseline", "state": "start"})
    fractional = Allocation(("nf4", *("hqq3",) * 10, "nf4"), (5,) * L)
    for a in (nf4[1], fractional, uniform(L, "hqq3", 5), uniform(L, "hqq3", 4), uniform(L, "hqq2", 8)):
        s.evaluate(a, "baseline")
    for a in (uniform(L, "fp16", 16), uniform(L, "nf4", 16)):
        s.evaluate(a, "reference")
    s.add("stage", {"stage": "baseline", "state": "end"})
    s.add("stage", {"stage": "global", "state": "start"})
    best = search(s, budget)
    if not finished:
        return s.events
    conclude(s, best, nf4[0], wins)
    return s.events


def search(s: Script, budget: int) -> Allocation:
    """25 evaluations: sensitive layers get 8 bits first, ranks are drawn; returns the best that was found."""
    seen: list[tuple[float, Allocation]] = []
    order = np.argsort(-UNIT_DAMAGE)
    while len(seen) < 14:
        formats = ["nf4"] * L
        for u in order[: int(s.rng.integers(1, 3))]:
            formats[u] = "int8"
        for u in s.rng.choice(order[5:], int(s.rng.integers(0, 4)), replace=False):
            formats[u] = "hqq3"
        a = Allocation(tuple(formats), tuple(int(r) for r in s.rng.choice(RANKS[:4], L)))
        if predicted(a) > budget:
            continue
        stage = "evolution" if len(seen) < 8 else "trust_region"
        low = s.evaluate(a, stage, Fidelity.LOW) if len(seen) < 8 else None
        loss = s.evaluate(a, stage, done_steps=LOW if low else 0)
        seen.append((loss, a))
    wrecked = Allocation(("hqq2",) * L, (16,) * L)
    s.evaluate(wrecked, "evolution", state=TrialState.DIVERGED)
    s.evaluate(uniform(L, "hqq2", 12), "evolution", Fidelity.LOW)
    s.evaluate(uniform(L, "hqq2", 8), "evolution", Fidelity.LOW, state=TrialState.OOM)
    return min(seen, key=lambda pair: pair[0])[1]


def conclude(s: Script, best: Allocation, reference: Allocation, wins: bool) -> None:
    truth = [true_loss(best) + .01 * i for i in range(15)]
    guess = [t + .004 * float(s.rng.normal()) for t in truth]
    s.add("surrogate_check", {"predicted": guess, "observed": truth, "sd": [.004] * 15, "n": 15, "spearman": .97,
                              "spearman_good": .9, "nll": -3.9, "coverage_50": .6, "coverage_90": .8667})
    s.add("warning", {"message": "the low fidelity ranks good allocations with Spearman 0.61 only"})
    s.add("stage", {"stage": "confirmation", "state": "start"})
    seeds = [101, 102, 103, 104, 105]
    pairs = [(s.evaluate(best, "confirmation", train_seed=t, split="test"),
              s.evaluate(reference, "confirmation", train_seed=t, split="test")) for t in seeds]
    candidate = [c if wins else r + .004 * (-1)**i for i, (c, r) in enumerate(pairs)]
    differences = np.array([c - r for c, (_, r) in zip(candidate, pairs, strict=True)])
    half = 2.776 * differences.std(ddof=1) / np.sqrt(len(seeds))
    s.add("confirmation", {
        "candidate": best.to_json(), "reference": reference.to_json(), "uniform": reference.to_json(),
        "train_seeds": seeds,
        "candidate_losses": candidate, "reference_losses": [r for _, r in pairs],
        "mean": float(differences.mean()),
        "low": float(differences.mean() - half), "high": float(differences.mean() + half),
        "winner_kind": "mixed" if wins else "uniform", "candidate_failed": False, "steps": 64,
        "ahead": 0.0, "ahead_sd": 0.0, "over_text": False, "level": 0.95})
    chosen = best if wins else reference
    s.add("measured", {"allocation": chosen.to_json(), "predicted_bytes": predicted(chosen),
                       "measured_bytes": predicted(chosen) - 1_100_000, "scope": "peak", "fits": True, "peaks": {}})
    s.add("final", {"steps": 320, "planned_steps": 400, "kept_step": 240, "curve": [
        [40, 4.12], [80, 4.02], [120, 3.95], [160, 3.91], [200, 3.89], [240, 3.874], [280, 3.877], [320, 3.882]],
                    "loss": 3.871, "loss_se": .004, "sequences": [[385.0, 100], [389.2, 100]],
                    "text": " asked the question.", "winner": (best if wins else reference).fingerprint,
                    "delivered": (best if wins else reference).fingerprint}, 170.0)
    s.add("end", {"status": "done", "best": chosen.fingerprint, "wall_seconds": 300.0, "overhead_seconds": 9.0,
                  "predicted_bytes": predicted(chosen),
                  "breakdown": breakdown(chosen)})


def event(kind: str, **fields: Any) -> dict[str, Any]:
    """A line of a journal at the end of a run."""
    return {"event": kind, "time": datetime.fromtimestamp(START + 9_000, UTC).isoformat(), "session": 1,
            "elapsed": 9_000.0, **fields}


NOTHING_COMPARED = {"train_seeds": [], "candidate_losses": [], "reference_losses": [], "mean": 0.0,
                    "low": 0.0, "high": 0.0}


def failed_alone(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events with a mixed allocation that gave fewer than two losses on unseen seeds, where the uniform one gave
    all."""
    return [{**e, **NOTHING_COMPARED, "candidate_failed": True} if e["event"] == "confirmation" else e for e in events]


def without_mixed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of a search that found no mixed allocation to confirm."""
    return [{**e, **NOTHING_COMPARED, "candidate": e["reference"]} if e["event"] == "confirmation" else e
            for e in events]


def minimised_at(events: list[dict[str, Any]], steps: int, per_doubling: float = 0.001) -> list[dict[str, Any]]:
    """The events of a run that minimises the loss after ``steps`` steps, where a doubling of a rank changes so much."""
    change = {"formats": [f.name for f in FORMATS], "by_format": np.zeros((L, len(FORMATS))).tolist(),
              "per_doubling": [per_doubling] * L}
    fields = {"event": "objective", "session": 1, "elapsed": 0.0, "steps": steps, "before": HIGH, "change": change}
    return [events[0], {"time": events[0]["time"], **fields}, *events[1:]]


def write_run(folder: Path, events: list[dict[str, Any]], anew: bool = False) -> Path:
    """A run's folder with these events in its journal, as the program itself writes them; ``anew`` without those that
    are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if anew:
        (folder / JOURNAL_NAME).unlink(missing_ok=True)
    clock = [0.0]
    with Journal(folder, clock=lambda: clock[0]) as journal:
        for e in events:
            clock[0] = e["elapsed"]
            journal.append(e["event"], {k: v for k, v in e.items() if k not in ("event", "time", "session", "elapsed")})
    return folder
