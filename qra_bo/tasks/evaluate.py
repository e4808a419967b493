"""``task=evaluate``: fine-tune one given allocation at high fidelity and report its losses and bytes."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.execution.base import Executor
from qra_bo.export.run import read_object
from qra_bo.memory import format_size, parse_budget, parse_format
from qra_bo.memory.budget import format_for
from qra_bo.oracle.protocol import FINETUNE, Progress
from qra_bo.pipeline.folders import task_folder
from qra_bo.pipeline.run import make_setting, oracle_session
from qra_bo.report.text import describe_allocation
from qra_bo.space import Allocation, SearchSpace, uniform
from qra_bo.study.provenance import collect
from qra_bo.study.setting import training_seeds
from qra_bo.trials import TrialSpec, TrialState
from qra_bo.utils.device import resolve_device
from qra_bo.utils.errors import ConfigError, OutputError, SpaceError, TrainingError
from qra_bo.utils.files import write_json, writing

EVALUATION_NAME = "evaluation.json"
SCORES_NAME = "scores.json"
SPLITS = ("validation", "test")
LARGEST_LR = 10.0
"""Learning rates above this are refused as a mistake in the file."""


def run(config: RunConfig) -> int:
    """Evaluate on the validation and the test split; returns 0.

    The learning rate is ``adapter.lr``, or the calibrated one of a ``best.json``. With ``eval.tasks`` the model of the
    finished run in ``out`` answers these tasks instead, and nothing is trained.

    Raises:
        UserError: If the input or the environment can't work, or the training gave no loss.
    """
    if config.eval.tasks:
        return ask(config, Path(str(config.out)))
    setting = make_setting(config)
    allocation, lr = read_allocation(str(config.allocation), setting.space)
    predicted = setting.predictor(allocation)  # refuses what the model can't store
    path, scale = task_folder(config) / EVALUATION_NAME, 1.0 if lr is None else lr / config.adapter.lr
    with oracle_session(config) as (executor, progress):
        found = evaluate(config, allocation, scale, executor, progress)
    result = {"schema_version": 1, "model": config.model_name, "oracle": config.oracle.name,
              "granularity": config.granularity, "units": [u.name for u in setting.space.units],
              **allocation.to_json(), "bits": [parse_format(f).bits for f in allocation.formats],
              "learning_rate": config.adapter.lr * scale, "steps": config.fidelity.high, **found,
              "memory": {"scope": config.memory.scope, "predicted_bytes": predicted,
                         "measured_bytes": found.pop("measured_bytes"),
                         "breakdown": setting.predictor.breakdown(allocation)},
              "config": config.to_dict()}
    with writing(path, "evaluate again"):
        write_json(path, result)
    print_evaluation(result, Console(soft_wrap=True))
    print(f"Files: {path}")
    failed = next((result[split] for split in SPLITS if result[split]["loss"] is None), None)
    if failed is not None:
        raise TrainingError(f"the training gave no loss ({failed['state']}: {failed['message']}); {path} says so too. "
                            "Lower adapter.lr where it diverged, train.batch where memory ran out")
    return 0


def ask(config: RunConfig, folder: Path) -> int:
    """Score the model of the finished run in ``folder`` on the tasks of ``eval.tasks``; returns 0.

    Raises:
        UserError: If a task is unknown or malformed, lm-eval is not installed, or the folder holds no finished run.
    """
    from qra_bo.export.load import load  # these three load torch and transformers
    from qra_bo.finetune.evaluation import check_tasks, score_tasks
    from qra_bo.finetune.manifest import package_versions  # loads torch
    check_tasks(config.eval.tasks)
    model, tokenizer = load(folder, resolve_device(config.device),
                            trust_remote_code=bool(config.model["trust_remote_code"]))
    scores = score_tasks(model, tokenizer, config.eval.tasks, batch=config.train.batch, limit=config.eval.limit)
    with writing(folder / SCORES_NAME, "ask again"):
        versions = {**package_versions(), "lm-eval": metadata.version("lm-eval")}
        write_json(folder / SCORES_NAME, {"schema_version": 1, "limit": config.eval.limit,
                                          "scores": [asdict(s) for s in scores], "versions": versions})
    for s in scores:
        error = "" if s.stderr is None else f" (standard error {s.stderr:.4f})"
        print(f"{s.task}: {s.metric} {s.value:.4f}{error}, {s.questions} questions")
    print(f"Files: {folder / SCORES_NAME}")
    return 0


def evaluate(config: RunConfig, allocation: Allocation, lr_scale: float, executor: Executor,
             progress: Progress) -> dict[str, Any]:
    """Evaluate both splits with one training: the second goes on from the first's checkpoint."""
    train_seed, _ = training_seeds(config.seed, 0)
    steps = config.fidelity.high
    found = {split: executor.evaluate(TrialSpec(allocation, steps, steps, train_seed, split, lr_scale), progress)
             for split in SPLITS}
    measured = found["validation"].measured_bytes
    if config.oracle.trains and found["validation"].state is TrialState.OK:
        measured = executor.call("measure_peak", {"allocation": allocation.to_json(), "train_seed": train_seed},
                                 progress)["measured_bytes"]
    return {"train_seed": train_seed, **{split: result.to_json() for split, result in found.items()},
            "measured_bytes": measured, "provenance": collect(executor.describe())}


def read_allocation(text: str, space: SearchSpace) -> tuple[Allocation, float | None]:
    """Read ``uniform:BITS,RANK`` or a JSON file with ``formats`` and ``ranks``, such as a best.json.

    Returns:
        The allocation, and the learning rate where the file states one.

    Raises:
        ConfigError: If there is no such file or it does not fit the model's units.
        SpaceError: If it is malformed.
    """
    if text.strip().lower().startswith("uniform"):
        chosen = parse_budget(text)
        return uniform(space.n_units, format_for(int(chosen.bits or 0), space).name, int(chosen.rank or 0)), None
    path = Path(text).expanduser()
    try:
        data = read_object(path)
    except OutputError as error:
        raise ConfigError(f"allocation must be uniform:BITS,RANK or a JSON file like best.json; {error}") from error
    if not isinstance(data.get("formats"), list):
        raise SpaceError(f"allocation: {path} must be an object with the lists 'formats' (names) and 'ranks' "
                         "(integers)")
    names = [f["name"] if isinstance(f, dict) and "name" in f else f for f in data["formats"]]
    allocation = Allocation.from_json({"formats": names, "ranks": data.get("ranks")})
    units, lr = [u.name for u in space.units], data.get("learning_rate")
    if min(allocation.ranks) < 1:
        problem = (f"gives a unit the rank {min(allocation.ranks)}; every unit is fine-tuned through an adapter, so "
                   "ranks must be at least 1")
    elif data.get("units", units) != units or len(allocation) != len(units):
        problem = (f"is for {len(allocation)} units; this model has {len(units)} ({units[0]} ... {units[-1]}): use the "
                   "model and granularity of the file")
    elif lr is not None and (type(lr) not in (int, float) or not 0 < lr <= LARGEST_LR):
        problem = f"must give a learning_rate between 0 and {LARGEST_LR:g}; got {str(lr)[:40]}"
    else:
        return allocation, None if lr is None else float(lr)
    raise ConfigError(f"allocation: {path} {problem}")


def print_evaluation(result: Mapping[str, Any], console: Console) -> None:
    """Print losses and bytes in a few lines."""
    memory, lines = result["memory"], []
    if result["oracle"] != FINETUNE:
        lines.append(f"{result['oracle']} results: no model is trained")
    lines.append(f"Bits and ranks: {describe_allocation(result['units'], result['bits'], result['ranks'])}")
    for split in SPLITS:
        m = result[split]
        error = "" if m["loss_se"] is None else f" (standard error {m['loss_se']:.4f})"
        lines.append(f"{split} loss: {m['state']} ({m['message']})" if m["loss"] is None else
                     f"{split} loss: {m['loss']:.4f} nats per token{error} after {result['steps']} steps")
    measured = "not" if memory["measured_bytes"] is None else format_size(memory["measured_bytes"])
    lines.append(f"{memory['scope']} memory: {format_size(memory['predicted_bytes'])} predicted, {measured} measured")
    for line in lines:
        console.print(line, markup=False, highlight=False)
