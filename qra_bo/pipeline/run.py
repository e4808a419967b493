"""One run from a checked configuration: what ``python -m qra_bo`` does, as a function."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config import NOT_OF_THE_RESULT, RunConfig, load_config, make_space, make_spec
from qra_bo.execution.base import Executor
from qra_bo.finetune.data.hub import check_package
from qra_bo.memory.allowance import Allowance
from qra_bo.memory.budget import check_budget, free_bytes, parse_budget, parse_size, resolve_budget
from qra_bo.memory.formats import default_format
from qra_bo.memory.model import MemoryModel
from qra_bo.pipeline.build import BytesPredictor, make_memory
from qra_bo.pipeline.device_allowance import allowance_for, make_fold
from qra_bo.pipeline.estimate import check_ram, seconds_per_training_token, training_tokens
from qra_bo.pipeline.executors import is_remote, make_executor
from qra_bo.report.data import load_run
from qra_bo.report.html import write_report
from qra_bo.report.live import LiveView
from qra_bo.report.mirror import OptunaMirror, storage_url
from qra_bo.report.tables import PlanRow, print_plan, print_result
from qra_bo.report.trackers import Listener, make_listener
from qra_bo.searchers import SearchProblem, make_searcher
from qra_bo.searchers.priors import prior_sha256
from qra_bo.sensitivity.io import given_profile
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.sensitivity.rehearsal import rehearsal_profile
from qra_bo.space import CostTable, SearchSpace, limit_average_bits, uniform
from qra_bo.study.engine import Engine, RunOutcome
from qra_bo.study.journal import JOURNAL_NAME
from qra_bo.study.options import Delivery, EngineConfig, FinalTask, Parts, training_seeds
from qra_bo.study.results import load_study
from qra_bo.study.signals import RunInterrupted
from qra_bo.trials import TrialState
from qra_bo.utils.device import planned_device, resolve_device, resolve_dtype
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder

MEASURED_CANDIDATES = 5
"""How many allocations may be measured at the end, from the winner down, before the run gives up."""
FINAL_FILES = ("adapter/adapter_model.safetensors", "quant_manifest.json")
"""What the final fine-tune leaves in the run's folder; it is trained again where one of these is gone."""


@dataclass(frozen=True)
class Result:
    """What a finished run came to.

    Args:
        folder: The run's folder.
        best: The contents of ``best.json``; of several budgets those of ``budgets.json``.
        exit_status: 0, or 3 where the first winner measured over the budget; the worst of several budgets.
        runs: The runs of several budgets that ended well, in the order of the budgets; else empty.
    """

    folder: Path
    best: Mapping[str, Any]
    exit_status: int
    runs: "tuple[Result, ...]" = ()


@dataclass(frozen=True)
class Setting:
    """What a configuration comes to, whatever its budget.

    Args:
        space: Units and ladders.
        memory: The memory model.
        device: ``"cuda"`` or ``"cpu"``: what memory is predicted for.
        profile: The profile that was given, or ``None`` to measure one.
        max_average_bits: Limit on code bits averaged over parameters, or ``None``.
    """

    space: SearchSpace
    memory: MemoryModel
    device: str
    profile: SensitivityProfile | None
    max_average_bits: float | None = None

    def costs(self, budget: int) -> CostTable:
        """What decides whether an allocation may be used within ``budget`` bytes: memory, and the limit on bits."""
        table, limit = self.memory.table(self.space), self.max_average_bits
        return table if limit is None else limit_average_bits(table, self.space, budget, limit)


def search(config: RunConfig | Sequence[str]) -> Result:
    """Find the best allocation within every budget of ``config``, fine-tune it and write everything down.

    Args:
        config: A configuration, or overrides as on the command line, e.g. ``["+model=tiny", "budget=uniform:4,4"]``.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    if not isinstance(config, RunConfig):
        config = load_config(config)
    if len(config.budget) > 1:
        from qra_bo.pipeline.budgets import search_budgets

        return search_budgets(config)
    folder = run_folder(config)
    setting = make_setting(config, (folder,))
    budget = budget_bytes(config, setting, folder)
    check_budget(budget, setting.costs(budget), setting.space, setting.memory)
    return run_one(config, folder, setting, budget, make_executor(config, folder, setting.profile))


def make_setting(config: RunConfig, begun: Sequence[Path] = ()) -> Setting:
    """Space, memory model and given profile of a configuration.

    Args:
        config: The configuration.
        begun: Folders of runs that may have begun: they go on with the allowance that they began with.

    Raises:
        DeviceError: If fine-tuning on a CPU needs more RAM than is available.
        MissingExtraError: If the data comes from the hub and the package that fetches it is not installed.
        UserError: If the model's shapes are not to be had, or the given profile lacks what is needed.
    """
    device, spec = _device_type(config), make_spec(config)
    space = make_space(config, spec)
    if config.oracle.name == "finetune" and not is_remote(config):
        if config.task != "profile" or config.sensitivity.path is None:  # a given profile needs no data
            check_package(config.data)
        if device == "cpu":
            check_ram(config, spec, space)
    path = config.sensitivity.path
    profile = None if path is None else given_profile(Path(path).expanduser(), space.units, config.format_names)
    memory = make_memory(config, spec, device, allowance_for(config, device, begun))
    return Setting(space, memory, device, profile, config.max_average_bits)


def budget_bytes(config: RunConfig, setting: Setting, folder: Path) -> int:
    """Bytes of the (single) budget of ``config``; ``auto`` keeps what it came to when the run in ``folder`` began.

    Raises:
        BudgetError: If it can't be met by the device.
        JournalError: If the run's journal can't be read.
    """
    text, auto = config.budget[0], parse_budget(config.budget[0]).auto
    if auto and (folder / JOURNAL_NAME).exists():
        return load_study(folder).budget_bytes
    free = free_bytes(config.device if setting.device == "cuda" else "cpu") if auto else None
    return resolve_budget(text, setting.memory, setting.space, headroom=parse_size(config.memory.headroom), free=free)


def run_one(config: RunConfig, folder: Path, setting: Setting, budget: int, executor: Executor) -> Result:
    """One run within ``budget`` bytes, begun or gone on with; closes ``executor``.

    Raises:
        UserError: If the input or the environment can't work.
        RunInterrupted: On SIGINT or SIGTERM, after a clean journal.
    """
    engine_config = engine_settings(config, folder, setting.space, budget, setting.memory.allowance)
    with ExitStack() as stack:
        tracker = make_listener(config.logger.target, folder)
        if tracker is not None:
            stack.callback(tracker.close)
        view = stack.enter_context(live_view(config)) if config.display != "none" else None
        mirror = None if config.mirror is None else stack.enter_context(
            OptunaMirror(storage_url(config.mirror, folder), folder))
        parts = run_parts(config, folder, setting, budget, executor, view, tracker, mirror)
        # Wrong options, and a given profile that lacks what the method needs, are told before anything is measured.
        parts.make_searcher(parts.make_problem(setting.profile or rehearsal_profile(setting.space)),
                            engine_config.max_full_trials)
        if view is not None and not (folder / JOURNAL_NAME).exists():
            print_plan(view.console, f"{config.model_name} within {budget / 1e6:,.1f} MB, effort={config.effort.name}; "
                       "times are rough, for idle cores",
                       plan_rows(config, engine_config, token_seconds(config, setting)),
                       engine_config.full_trial_tokens)
        try:
            outcome = Engine(engine_config, parts).run()
        except RunInterrupted as stop:
            raise RunInterrupted(stop.signum, folder if len(config.budget) == 1 else folder.parent) from stop
    return _written(config, folder, outcome)


def live_view(config: RunConfig) -> LiveView:
    """What people see meanwhile: a panel on a terminal, lines elsewhere and with ``display=plain``."""
    return LiveView(Console(stderr=True, force_terminal=False) if config.display == "plain" else None)


def run_folder(config: RunConfig) -> Path:
    """The run's folder: ``out``, or a new one below ``outputs``.

    Raises:
        OutputError: If it holds something that is not a run, or links.
    """
    if config.out is None:
        return new_folder(config, config.budget[0])
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out={folder} is a file; give a folder that is new, empty or holds a run")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL_NAME).exists():
        raise OutputError(f"out={folder} holds files and no {JOURNAL_NAME}: it is not the folder of a run, and nothing "
                          "in it is touched; give a folder that is new, empty or holds a run")
    check_run_folder(folder)
    if config.resume and not (folder / JOURNAL_NAME).exists():
        raise OutputError(f"resume=true and out={folder} holds no {JOURNAL_NAME}, so there is nothing to go on from; "
                          "give the folder of a run, or leave resume out")
    return folder


def new_folder(config: RunConfig, what: str) -> Path:
    """A folder below ``outputs`` that is named after the model, ``what`` and the time."""
    return Path("outputs") / path_name(f"{config.model_name}-{what}-{datetime.now():%Y%m%d-%H%M%S}")


def path_name(text: str) -> str:
    """``text`` as the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def engine_settings(config: RunConfig, folder: Path, space: SearchSpace, budget: int,
                    allowance: Allowance | None = None) -> EngineConfig:
    """The engine's view of the configuration."""
    train_seed, confirm = training_seeds(config.seed, config.confirm.seeds)
    tokens = config.fidelity.high * config.train.batch * config.train.length + config.eval.tokens / 3
    n = space.n_units
    lora, qlora = uniform(n, "fp16", 16), uniform(n, default_format(4).name, 16)
    nearest = () if config.quantizer.rounding == "rtn" else (qlora,)  # its codes are those whatever a search has
    references = (lora,) if nearest else (lora, qlora)
    return EngineConfig(
        folder=folder, config=config.to_dict(), config_sha256=config.config_sha256,
        may_differ=frozenset(NOT_OF_THE_RESULT), model=config.model_name, granularity=config.granularity,
        oracle=config.oracle.name, method=config.method.name, scope=config.memory.scope, budget_bytes=budget,
        budget_text=config.budget[0], effort=config.effort.name,
        max_full_trials=float(config.effort.max_full_trials), full_trial_tokens=tokens,
        high_steps=config.fidelity.high, low_steps=config.fidelity.low, seed=config.seed, train_seed=train_seed,
        confirm_seeds=confirm, uniform_baselines=config.effort.uniform_baselines,
        calibration_baselines=config.effort.calibration_baselines,
        max_rank=min(min(m.out_features, m.in_features) for u in space.units for m in u.linears),
        base_lr=config.adapter.lr, lr_rule=config.adapter.lr_rule, lr_scales=config.calibrate.lr_scales,
        alpha_over_rank=config.adapter.alpha_over_rank, init=config.adapter.init,
        references=references if config.effort.references else (),
        rtn_references=nearest if config.effort.references else (),
        ranking_top=config.effort.ranking_top, ranking_factor=config.confirm.ranking_factor,
        rate_factors=config.effort.rate_factors if config.confirm.seeds else (),
        max_hours=config.max_hours, max_average_bits=config.max_average_bits,
        allowance=None if allowance is None else asdict(allowance), prior_sha256=prior_sha256(config.surrogate.prior))


def token_seconds(config: RunConfig, setting: Setting) -> float | None:
    """Rough seconds of a training token on a CPU; ``None`` where training costs nothing or a GPU does it."""
    if config.oracle.name != "finetune" or setting.device != "cpu":
        return None
    import torch

    return seconds_per_training_token(setting.memory.spec, resolve_dtype(config.dtype, "cpu"), torch.get_num_threads())


def plan_rows(config: RunConfig, engine: EngineConfig, seconds: float | None = None) -> list[PlanRow]:
    """What lies ahead, by cost, and by time where ``seconds`` says what a training token takes."""
    each = engine.full_trial_tokens
    costs = {"profile, calibration, uniform baselines and search": engine.planned_cost,
             f"references ({len(engine.references) + len(engine.rtn_references)})":
                 (len(engine.references) + len(engine.rtn_references)) * each,
             f"confirmation ({len(engine.confirm_seeds)} seeds, 2 allocations)": 2 * len(engine.confirm_seeds) * each,
             f"the same at {len(engine.rate_factors)} other learning rates":
                 2 * len(engine.confirm_seeds) * len(engine.rate_factors) * each,
             f"ranking check ({engine.ranking_top} allocations, {engine.ranking_factor} times as long)":
                 engine.ranking_top * engine.ranking_factor * each}
    rows = [PlanRow(what, cost, None if seconds is None else seconds * cost) for what, cost in costs.items() if cost]
    return [*rows, _final_row(config, seconds)] if config.oracle.name == "finetune" else rows


def _final_row(config: RunConfig, seconds: float | None) -> PlanRow:
    final = config.final
    what, cost = f"{final.steps} steps", (final.steps or 0.0) * config.train.batch * config.train.length
    if final.steps is None:
        tokens = training_tokens(config)
        if tokens is None:
            return PlanRow(f"final fine-tune ({final.epochs:g} epochs; its tokens are known once the data is read)",
                           0.0, None)
        what, cost = f"{final.epochs:g} epochs, tokens estimated from the text", final.epochs * tokens
    return PlanRow(f"final fine-tune ({what})", cost, None if seconds is None else seconds * cost)


def _device_type(config: RunConfig) -> str:
    """``"cuda"`` or ``"cpu"``: where fine-tuning would run; a simulation plans for the GPU that it stands in for."""
    if config.oracle.name != "finetune":
        return planned_device(config.device)
    if is_remote(config) and config.device != "auto":
        return config.device.partition(":")[0]
    return "cuda" if resolve_device(config.device).startswith("cuda") else "cpu"


def run_parts(config: RunConfig, folder: Path, setting: Setting, budget: int, executor: Executor,
              view: LiveView | None, tracker: Listener | None = None, mirror: OptunaMirror | None = None) -> Parts:
    """What a run is connected to."""
    space = setting.space
    predictor, table = BytesPredictor(setting.memory, space), setting.costs(budget)

    def make_problem(profile: SensitivityProfile) -> SearchProblem:
        return SearchProblem(space, table, budget, profile, config.fidelity.high, config.fidelity.low, config.seed)

    target = config.method.target
    real = config.oracle.name == "finetune"
    return Parts(
        space=space, predict_bytes=predictor, breakdown=predictor.breakdown, executor=executor,
        make_problem=make_problem,
        make_searcher=lambda problem, limit: make_searcher(target, replace(problem, max_full_trials=limit)),
        finalise=(lambda task: finalise(config, folder, predictor, budget, task)) if real else None,
        is_kept=lambda: all((folder / name).is_file() for name in FINAL_FILES),
        fold=make_fold(config, setting.memory, space) if real else None,
        progress=view.progress if view is not None else lambda what, done, total: None,
        listeners=tuple(listener for listener in (view, tracker, mirror) if listener is not None))


@contextmanager
def oracle_session(config: RunConfig) -> Iterator[Executor]:
    """An executor for a task that is no run: its checkpoints last as long as it does."""
    with tempfile.TemporaryDirectory(prefix="qra_bo-") as folder:
        executor = make_executor(config, Path(folder))
        try:
            yield executor
        finally:
            executor.close()


def task_folder(config: RunConfig) -> Path:
    """``out`` for a task that writes one file there, or a new folder below ``outputs``; made if it is absent.

    Raises:
        OutputError: If it can't be made.
    """
    folder = new_folder(config, config.task) if config.out is None else Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"out={folder} can't be made a folder ({error.strerror}); choose another") from error
    return folder


def finalise(config: RunConfig, folder: Path, predictor: BytesPredictor, budget: int, task: FinalTask) -> Delivery:
    """Measure the winner, take the next best where it is over the budget, then train and save it.

    Raises:
        OutputError: If none of the best allocations measured within the budget.
        TrainingError: If the final training did not end well.
    """
    train_seed, _ = training_seeds(config.seed, 0)
    for allocation in task.ranked[:MEASURED_CANDIDATES]:
        found = task.executor.call("measure_peak", {"allocation": allocation.to_json(), "train_seed": train_seed},
                                   task.progress)
        measured, ran_out = found["measured_bytes"], found["state"] == TrialState.OOM.value
        fits = not ran_out and (measured is None or measured <= budget)
        task.record("measured", {"allocation": allocation.to_json(), "predicted_bytes": predictor(allocation),
                                 "measured_bytes": measured, "scope": config.memory.scope, "fits": fits,
                                 "peaks": found["peaks"]})
        if not fits:
            how = f"did not fit on the device ({found['message']})" if ran_out else \
                f"measured {measured:,}: over the budget of {budget:,}"
            task.record("warning", {"message": f"{allocation.fingerprint} was predicted to need "
                                               f"{predictor(allocation):,} bytes and {how}; the next best is taken"})
            continue
        final = task.executor.call("finalise", {
            "allocation": allocation.to_json(), "steps": config.final.steps, "epochs": config.final.epochs,
            "train_seed": train_seed, "lr_scale": task.lr_scale, "out": str(folder), "model_cfg": config.model},
            task.progress)
        return Delivery(allocation, final["steps"], final["loss"], final["loss_se"], "adapter")
    raise OutputError(f"none of the {MEASURED_CANDIDATES} best allocations measured within the budget of {budget:,} "
                      "bytes; the journal holds what each needs: raise the budget by that, or lower train.batch")


def _written(config: RunConfig, folder: Path, outcome: RunOutcome) -> Result:
    """Report and exports of a finished run, and its answer on the terminal."""
    from qra_bo.export.registry import export_all

    files = write_report(folder)
    if (folder / "adapter").is_dir():
        files += export_all(folder)
    if config.display != "none":
        parts = [path.relative_to(folder).parts for path in (folder / "best.json", *files)]
        shown = dict.fromkeys(p[0] + "/" * (len(p) > 1) for p in parts)
        print_result(Console(), load_run(folder), folder, list(shown))
    return Result(folder, outcome.best, outcome.exit_status)
