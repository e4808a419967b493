"""Ablations of the published search.

    python -m bench.ablations [--seeds 0 1 2] [--variants full no_stage_2 ...] [overrides ...]

Every variant is a search at equal cost in the engine of a run. Its incumbent, and the best allocation of its own
proposals (without the uniform baselines), are then trained on unseen seeds and evaluated on the test split. With
``oracle=synthetic`` (the default) nothing is trained, results are labelled, and one seed is one landscape;
``oracle=emulator oracle.table=bench/data/TASK`` emulates real trials, and ``oracle=finetune`` trains for hours.
Searches and finals are kept in ``--work``; the same command resumes them.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.methods import OPTIONS
from bench.optimum import optimum as planted_optimum
from bench.published import published_changes, scaled_autoqra
from bench.report import RESULTS, Target, publish
from bench.table1.limits import Limit
from bench.table1.recipe import Recipe
from bench.table1.search import UNIFORM as UNIFORM_ONLY
from bench.table1.search import search
from bench.table1.session import Session, table_session
from bench.table1.statistics import difference
from qra_bo.config import RunConfig, load_config
from qra_bo.config.groups import OwnOracleConfig
from qra_bo.oracle.synthetic import SyntheticOracle
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.space import Allocation
from qra_bo.study.setting import training_seeds

DEFAULTS = ("oracle=synthetic", "budget=uniform:4,16", "memory.scope=stored", "dtype=bfloat16", "search.length=trial",
            "quantizer.rounding=rtn")
"""The second reference budget, in which bits and ranks compete; overrides replace these."""
FINALS = 5
"""Unseen training seeds of every incumbent."""
UNIFORM, FULL, OURS = "best_uniform", "full", "qra_bo"
Row = dict[str, Any]
Changes = Callable[[RunConfig], Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """One search.

    Args:
        what: In words.
        method: Name of a search method, or ``UNIFORM_ONLY`` for the uniform baselines alone.
        params: Of the method, given what the full one has.
        changes: Keys of the configuration that differ.
    """

    what: str
    method: str
    params: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda full: full
    changes: Changes = lambda config: {}


def limit_of(config: RunConfig) -> Limit:
    """Return the budget of a configuration in its scope."""
    scope, budget = config.memory.scope, str(config.budget[0])
    return Limit(f"{scope} {budget}", scope, budget, None, None)


def _evolution(**changes: Any) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    return lambda full: {**full, "first": {**full["first"], **changes}}


VARIANTS: Mapping[str, Variant] = {
    UNIFORM: Variant("uniform choices alone", UNIFORM_ONLY, lambda full: {}),
    FULL: Variant("published AutoQRA", "autoqra"),
    "no_warm_start": Variant("first population at random", "autoqra", _evolution(warm=False)),
    "no_stage_1": Variant("trust region alone", "autoqra", lambda full: {**full, "share": 0.0}),
    "no_stage_2": Variant("evolution alone, as many generations as it may", "autoqra",
                          lambda full: {**_evolution(generations=1000)(full), "share": 1.0}),
    "bits_only": Variant("ranks are those of the budget", "autoqra",
                         changes=lambda c: {"ranks": (getattr(c.budget[0], "rank", 16),)}),
    "ranks_only": Variant("bits are those of the budget", "autoqra",
                          changes=lambda c: {"bits": (getattr(c.budget[0], "bits", 4),)}),
    "no_multi_fidelity": Variant("high fidelity alone", "autoqra",
                                 changes=lambda c: {"fidelity": c.fidelity.with_changes(low=None)}),
    "no_screening": Variant("the early loss promotes", "autoqra", _evolution(screening=False)),
    "sequential": Variant("bits first by quantisation sensitivity, then ranks", "sequential", lambda full: {}),
    OURS: Variant("the default method on its own ladder of ranks", "default", lambda full: {},
                  lambda c: {"ranks": c.ranks}),
    "qra_bo_published_ranks": Variant("the default method on the published ranks", "default", lambda full: {}),
    "random": Variant("random allocations near the budget", "random", lambda full: {}),
}


def run_seed(config: RunConfig, folder: Path, names: Sequence[str]) -> tuple[list[Row], Row]:
    """Return every variant at one seed, and the best known loss there."""
    limit = limit_of(config)
    with table_session(config, folder) as session:
        rows = []
        for name in names:
            variant = VARIANTS[name]
            changes = {**published_changes(config, session.options.published_ranks), **variant.changes(config)}
            outcome = search(session, name, limit, variant.method, variant.params(scaled_autoqra(config)), changes)
            study, found = outcome.study, outcome.found
            a, mixed = found.allocation, study.best_mixed
            scale = 1.0 if study.learning_rate is None else study.learning_rate / config.adapter.lr
            losses = finals(session, a, scale)
            own = None if mixed is None else finals(session, mixed.allocation, scale)
            rows.append({"variant": name, "what": variant.what, "seed": config.seed, "allocation": a.to_json(),
                         "test_loss": mean(losses), "test_losses": losses, "search_loss": found.loss,
                         "proposed": None if mixed is None else mixed.allocation.to_json(),
                         "proposed_loss": None if own is None else mean(own), "proposed_losses": own,
                         "equivalents": study.search_cost.tokens / study.header.full_trial_tokens})
            print(f"seed {config.seed}: {name} {rows[-1]['test_loss']:.4f}, of its own {rows[-1]['proposed_loss']}",
                  flush=True)
        known = min(loss for r in rows for loss in (r["test_loss"], r["proposed_loss"]) if loss is not None)
        planted = optimum(session, limit)
        if planted is not None:
            known = min(known, mean(finals(session, planted, 1.0)))
        against(rows)
        uniform_loss = next((r["test_loss"] for r in rows if r["variant"] == UNIFORM), None)
        for r in rows:
            span = None if uniform_loss is None else uniform_loss - known
            r["regret"] = (r["test_loss"] - known) / span if span else None
            own = r["proposed_loss"]
            r["proposed_regret"] = (own - known) / span if span and own is not None else None
        facts: Row = {"seed": config.seed, "best_known": known}
        return rows, facts


def kind(config: RunConfig) -> str:
    """What answers, for names of files: the oracle, or the table that is emulated."""
    oracle = config.oracle
    return Path(oracle.target["table"]).name if isinstance(oracle, OwnOracleConfig) else oracle.name


def finals(session: Session, allocation: Allocation, lr_scale: float) -> dict[int, float]:
    """Test loss by unseen training seed at the learning rate that the search calibrated; infinite for one without."""
    seeds = training_seeds(session.config.seed, FINALS)[1]
    recipe = Recipe(allocation, session.config.adapter.init)
    losses = {s: session.evaluate(recipe, lr_scale, s, "test")["loss"] for s in seeds}
    return {s: float("inf") if loss is None else float(loss) for s, loss in losses.items()}


def mean(losses: Mapping[int, float]) -> float:
    """Over training seeds."""
    return float(np.mean(list(losses.values())))


def against(rows: Sequence[Row]) -> None:
    """Add paired differences of one search seed: what a variant ends at less the best uniform choice, and the best that
    it proposed itself less that of the full method; none where either is missing or trained to no loss."""
    by_name = {r["variant"]: r for r in rows}
    for name, of, key in (("minus_uniform", UNIFORM, "test_losses"), ("proposed_minus_full", FULL, "proposed_losses")):
        other = by_name.get(of, {}).get(key)
        for r in rows:
            known = r[key] and other and np.isfinite([*r[key].values(), *other.values()]).all()
            found = difference(r[key], other) if known and r["variant"] != of else None
            r[name] = None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}


def optimum(session: Session, limit: Limit) -> Allocation | None:
    """The planted optimum; ``None`` for other oracles."""
    oracle = make_oracle(session.config.to_dict(), str(session.folder)) \
        if session.config.oracle.name == "synthetic" else None
    if not isinstance(oracle, SyntheticOracle):
        return None
    budget = session.budget_bytes(limit)
    costs = session.setting_of(limit).costs(budget)
    return session.space.decode(planted_optimum(oracle.landscape, costs, budget).row)


def targets_of(rows: Sequence[Row]) -> list[Target]:
    """Medians over seeds: every ablation against the full method, and ours against both."""
    out = []
    full = median(rows, FULL)
    for name in dict.fromkeys(r["variant"] for r in rows):
        value = median(rows, name)
        if name == UNIFORM:
            continue
        wanted, met = "below 1, the best uniform choice", value is not None and value < 1
        if name not in (FULL, OURS, "qra_bo_published_ranks"):
            wanted, met = f"above the full method's, {full}", value is not None and full is not None and value > full
        out.append(Target(f"median regret of {name} ({VARIANTS[name].what}), of its own proposals", wanted, value, met,
                          "" if value is not None else "it proposed nothing, or there is no uniform choice"))
    return out


def median(rows: Sequence[Row], name: str, key: str = "proposed_regret") -> float | None:
    """Over seeds."""
    values = [r[key] for r in rows if r["variant"] == name and r[key] is not None]
    return round(float(np.median(values)), 4) if values else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--work", type=Path, default=Path("outputs/ablations"), help="where searches are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("overrides", nargs="*", help="of the configuration, e.g. oracle=finetune")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    facts: list[Row] = []
    oracle = name = ""
    for seed in args.seeds:
        config = load_config([*DEFAULTS, *args.overrides, f"seed={seed}", "display=none"], str(OPTIONS))
        oracle, name = config.oracle.name, f"ablations_{kind(config)}"
        found, fact = run_seed(config, args.work / f"{kind(config)}-{config.model_name}-{seed}", args.variants)
        rows += found
        facts.append(fact)
    for r in (*rows, *facts):
        r["oracle"] = oracle
    table = [{"variant": v, "what": VARIANTS[v].what, "oracle": oracle,
              "median_regret": median(rows, v, "regret"), "median_proposed_regret": median(rows, v),
              "proposed_regrets": [r["proposed_regret"] for r in rows if r["variant"] == v]}
             for v in args.variants]
    publish("ablations" if oracle == "synthetic" else name, targets_of(rows), [*table, *rows, *facts],
            ("variant", "what", "oracle", "median_regret", "median_proposed_regret"), shown=table,
            folder=args.out)


if __name__ == "__main__":
    main()
