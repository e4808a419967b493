"""One run from a checked configuration: what ``python -m qra_bo`` does, as a function."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.build import BytesPredictor, make_memory, make_space, make_spec, prepare_worker_environment
from qra_bo.config import NOT_OF_THE_RESULT, RunConfig
from qra_bo.errors import OutputError
from qra_bo.memory.budget import check_budget, free_bytes, parse_budget, parse_size, resolve_budget
from qra_bo.memory.formats import default_format
from qra_bo.memory.model import MemoryModel
from qra_bo.methods import make_searcher
from qra_bo.report.live import LiveView
from qra_bo.report.tables import PlanRow, print_plan, print_result
from qra_bo.report.write import load_run, write_report
from qra_bo.searcher import SearchProblem
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import SearchSpace, uniform
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.executor import Executor, InProcessExecutor, OracleSpec, SubprocessExecutor
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.options import Delivery, EngineConfig, FinalTask, Parts, training_seeds

STARTUP_SECONDS = 1800.0
MEASURED_CANDIDATES = 5
"""How many allocations may be measured at the end, from the winner down, before the run gives up."""


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Args:
        folder: The run's folder.
        best: The contents of ``best.json``.
        exit_status: 0, or 3 where the first winner measured over the budget.
    """

    folder: Path
    best: Mapping[str, Any]
    exit_status: int


def search(config: RunConfig) -> Result:
    """Find the best allocation within the (single) budget of ``config``, fine-tune it and write everything down.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    folder = run_folder(config)
    device = _device_type(config)
    spec = make_spec(config)
    space = make_space(config, spec)
    memory = make_memory(config, spec, device)
    budget = resolve_budget(config.budget[0], memory, space, headroom=parse_size(config.memory.headroom),
                            free=free_bytes(config.device if device == "cuda" else "cpu")
                            if parse_budget(config.budget[0]).auto else None)
    check_budget(budget, memory.table(space), space)
    engine_config = engine_settings(config, folder, space, budget)
    with ExitStack() as stack:
        view = stack.enter_context(LiveView()) if config.display != "none" else None
        if view is not None and not (folder / JOURNAL_NAME).exists():
            print_plan(view.console, f"{config.model_name} within {budget / 1e6:,.1f} MB, effort={config.effort.name}",
                       plan_rows(config, engine_config), engine_config.equivalent_tokens)
        outcome = Engine(engine_config, _parts(config, folder, space, memory, budget, view)).run()
    return _written(config, folder, outcome)


def run_folder(config: RunConfig) -> Path:
    """The run's folder: ``out``, or a new one below ``outputs``.

    Raises:
        OutputError: If it holds something that is not a run.
    """
    if config.out is None:
        name = f"{config.model_name}-{config.budget[0]}-{datetime.now():%Y%m%d-%H%M%S}"
        return Path("outputs") / "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out={folder} is a file; give a folder that is new, empty or holds a run")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL_NAME).exists():
        raise OutputError(f"out={folder} holds files and no {JOURNAL_NAME}: it is not the folder of a run, and nothing "
                          "in it is touched; give a folder that is new, empty or holds a run")
    if config.resume and not (folder / JOURNAL_NAME).exists():
        raise OutputError(f"resume=true and out={folder} holds no {JOURNAL_NAME}, so there is nothing to go on from; "
                          "give the folder of a run, or leave resume out")
    return folder


def engine_settings(config: RunConfig, folder: Path, space: SearchSpace, budget: int) -> EngineConfig:
    """The engine's view of the configuration."""
    train_seed, confirm = training_seeds(config.seed, config.confirm.seeds)
    tokens = config.fidelity.high * config.train.batch * config.train.length + config.eval.tokens / 3
    n = space.n_units
    references = (uniform(n, "fp16", 16), uniform(n, default_format(4).name, 16)) if config.effort.references else ()
    return EngineConfig(
        folder=folder, config=config.to_dict(), config_sha256=config.config_sha256,
        may_differ=frozenset(NOT_OF_THE_RESULT), model=config.model_name, granularity=config.granularity,
        oracle=config.oracle.name, method=config.method.name, scope=config.memory.scope, budget_bytes=budget,
        budget_text=config.budget[0], effort=config.effort.name,
        high_equivalents=float(config.effort.high_equivalents), equivalent_tokens=tokens,
        high_steps=config.fidelity.high, low_steps=config.fidelity.low, seed=config.seed, train_seed=train_seed,
        confirm_seeds=confirm, anchors=config.effort.anchors,
        max_rank=min(min(m.out_features, m.in_features) for u in space.units for m in u.linears),
        base_lr=config.adapter.lr, lr_rule=config.adapter.lr_rule, lr_scales=config.calibrate.lr_scales,
        alpha_over_rank=config.adapter.alpha_over_rank, init=config.adapter.init, references=references,
        ranking_top=config.effort.ranking_top, ranking_factor=config.confirm.ranking_factor,
        max_hours=config.max_hours)


def plan_rows(config: RunConfig, engine: EngineConfig) -> list[PlanRow]:
    """What lies ahead, by cost; times are told once an evaluation has been seen."""
    each = engine.equivalent_tokens
    final = (config.final.steps or 0) * config.train.batch * config.train.length
    rows = [PlanRow("profile, calibration, anchors and search", engine.planned_cost, None),
            PlanRow(f"references ({len(engine.references)})", len(engine.references) * each, None),
            PlanRow(f"confirmation ({len(engine.confirm_seeds)} seeds, 2 allocations)",
                    2 * len(engine.confirm_seeds) * each, None),
            PlanRow(f"ranking check ({engine.ranking_top} allocations, {engine.ranking_factor} times as long)",
                    engine.ranking_top * engine.ranking_factor * each, None)]
    if config.oracle.name == "finetune":
        what = f"final fine-tune ({config.final.steps} steps)" if final else \
            f"final fine-tune ({config.final.epochs:g} epochs; its tokens are known once the data is read)"
        rows.append(PlanRow(what, final, None))
    return [row for row in rows if row.cost or row.what.startswith("final")]


def _device_type(config: RunConfig) -> str:
    """``"cuda"`` or ``"cpu"``: where fine-tuning would run; a simulation plans for the GPU that it stands in for."""
    from qra_bo.tasks.memory import planned_device

    if config.oracle.name != "finetune":
        return planned_device(config)
    from qra_bo.device import resolve_device

    return "cuda" if resolve_device(config.device).startswith("cuda") else "cpu"


def _parts(config: RunConfig, folder: Path, space: SearchSpace, memory: MemoryModel, budget: int,
           view: LiveView | None) -> Parts:
    predictor, table = BytesPredictor(memory, space), memory.table(space)

    def make_problem(profile: SensitivityProfile) -> SearchProblem:
        return SearchProblem(space, table, budget, profile, config.fidelity.high, config.fidelity.low, config.seed)

    real = config.oracle.name == "finetune"
    return Parts(
        space=space, predict_bytes=predictor, breakdown=predictor.breakdown, executor=make_executor(config, folder),
        make_problem=make_problem,
        make_searcher=lambda problem, equivalents: make_searcher(config.method.name, problem, config.method.params,
                                                                 equivalents),
        finalise=(lambda task: finalise(config, folder, predictor, budget, task)) if real else None,
        progress=view.progress if view is not None else lambda what, done, total: None,
        listeners=(view,) if view is not None else ())


def make_executor(config: RunConfig, folder: Path) -> Executor:
    """A worker process for real fine-tuning; what costs nothing runs in this one."""
    kwargs: dict[str, Any] = {"config": config.to_dict(), "out": str(folder)}
    if config.oracle.name == "finetune":
        prepare_worker_environment()
        return SubprocessExecutor(OracleSpec("qra_bo.build:make_oracle", kwargs), config.worker.deadline_seconds,
                                  STARTUP_SECONDS)
    from qra_bo.build import make_oracle

    return InProcessExecutor(make_oracle(**kwargs))


def finalise(config: RunConfig, folder: Path, predictor: BytesPredictor, budget: int, task: FinalTask) -> Delivery:
    """Measure the winner, take the next best where it is over the budget, then train and save it.

    Raises:
        OutputError: If none of the best allocations measured within the budget.
    """
    train_seed, _ = training_seeds(config.seed, 0)
    for allocation in task.ranked[:MEASURED_CANDIDATES]:
        measured = task.executor.call("measure_peak", {"allocation": allocation.to_json(), "train_seed": train_seed},
                                      task.progress)["measured_bytes"]
        fits = measured is None or measured <= budget
        task.record("measured", {"allocation": allocation.to_json(), "predicted_bytes": predictor(allocation),
                                 "measured_bytes": measured, "scope": config.memory.scope, "fits": fits})
        if not fits:
            task.record("warning", {"message": f"{allocation.fingerprint} was predicted to need "
                                               f"{predictor(allocation):,} bytes and measured {measured:,}: over the "
                                               f"budget of {budget:,}; the next best is taken"})
            continue
        final = task.executor.call("finalise", {
            "allocation": allocation.to_json(), "steps": config.final.steps, "epochs": config.final.epochs,
            "train_seed": train_seed, "lr_scale": task.lr_scale, "out": str(folder), "model_cfg": config.model},
            task.progress)
        return Delivery(allocation, final["steps"], final["loss"], final["loss_se"], "adapter")
    raise OutputError(f"the {MEASURED_CANDIDATES} best allocations all measured over the budget of {budget:,} bytes; "
                      "the journal holds what each needs: raise the budget by that, or lower train.batch")


def _written(config: RunConfig, folder: Path, outcome: RunOutcome) -> Result:
    """Report and exports of a finished run, and its answer on the terminal."""
    from qra_bo.export.registry import export_all

    files = write_report(folder)
    if (folder / "adapter").is_dir():
        files += export_all(folder)
    if config.display != "none":
        shown = [str(path) for path in (folder / "best.json", *files) if path.suffix != ".png"]
        print_result(Console(), load_run(folder), shown)
    return Result(folder, outcome.best, outcome.exit_status)
