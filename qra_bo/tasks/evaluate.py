"""``task=evaluate``: fine-tune one given allocation at high fidelity and tell its losses and bytes."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from qra_bo.config.schema import RunConfig
from qra_bo.execution.base import Executor
from qra_bo.memory.budget import format_for, format_size, parse_budget
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.pipeline.build import BytesPredictor
from qra_bo.report.text import describe_allocation
from qra_bo.space import Allocation, SearchSpace, uniform
from qra_bo.study.options import training_seeds
from qra_bo.study.provenance import collect
from qra_bo.trials import TrialResult, TrialSpec, TrialState, peaks_to_json
from qra_bo.utils.errors import ConfigError, OutputError, SpaceError, TrainingError
from qra_bo.utils.files import strict_json, write_json, writing

EVALUATION_NAME = "evaluation.json"
SCORES_NAME = "scores.json"
LARGEST_LR = 10.0
"""Beyond this a file does not mean a learning rate of adapters."""


def run(config: RunConfig) -> int:
    """Evaluate on the validation and the test split; returns 0.

    The learning rate is ``adapter.lr``, or the calibrated one of a ``best.json``. With ``eval.tasks`` the model of the
    finished run in ``out`` is asked these instead, and nothing is trained.

    Raises:
        UserError: If the input or the environment can't work, or the training gave no loss.
    """
    from qra_bo.pipeline.run import live_view, make_setting, oracle_session, task_folder

    if config.eval.tasks:
        return ask(config, Path(str(config.out)))
    setting = make_setting(config)
    allocation, lr = read_allocation(str(config.allocation), setting.space)
    predictor = BytesPredictor(setting.memory, setting.space)
    predicted, parts = predictor(allocation), predictor.breakdown(allocation)
    folder, scale = task_folder(config), 1.0 if lr is None else lr / config.adapter.lr
    with oracle_session(config) as executor:
        if config.display == "none":
            found = evaluate(config, allocation, scale, executor, lambda what, done, total: None)
        else:
            with live_view(config) as view:
                found = evaluate(config, allocation, scale, executor, view.progress)
    result = {"schema_version": 1, "model": config.model_name, "oracle": config.oracle.name,
              "granularity": config.granularity, "units": [u.name for u in setting.space.units],
              **allocation.to_json(), "bits": [parse_format(f).bits for f in allocation.formats],
              "learning_rate": config.adapter.lr * scale, "steps": config.fidelity.high, **found,
              "memory": {"scope": config.memory.scope, "predicted_bytes": predicted,
                         "measured_bytes": found.pop("measured_bytes"), "breakdown": parts},
              "config": config.to_dict()}
    try:
        write_json(folder / EVALUATION_NAME, result)
    except OSError as error:
        raise OutputError(f"{folder / EVALUATION_NAME} can't be written ({error.strerror})") from error
    print_evaluation(result, Console(soft_wrap=True))
    print(f"Files: {folder / EVALUATION_NAME}")
    failed = next((result[split] for split in ("validation", "test") if result[split]["loss"] is None), None)
    if failed is not None:
        raise TrainingError(f"the training gave no loss ({failed['state']}: {failed['message']}); "
                            f"{folder / EVALUATION_NAME} says so too. Lower adapter.lr where it diverged, train.batch "
                            "where memory ran out")
    return 0


def ask(config: RunConfig, folder: Path) -> int:
    """Ask the model of the finished run in ``folder`` the tasks of ``eval.tasks``; returns 0.

    Raises:
        UserError: If a task is unknown or malformed, lm-eval is not installed, or the folder holds no finished run.
    """
    from qra_bo.export.load import load
    from qra_bo.finetune.evaluation.harness import check_tasks, score_tasks
    from qra_bo.finetune.manifest import package_versions
    from qra_bo.utils.device import resolve_device

    check_tasks(config.eval.tasks)
    model, tokenizer = load(folder, resolve_device(config.device),
                            trust_remote_code=bool(config.model["trust_remote_code"]))
    scores = score_tasks(model, tokenizer, config.eval.tasks, batch=config.eval.batch, limit=config.eval.limit)
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
    """Both splits, one training: the second goes on from the first's checkpoint."""
    train_seed, _ = training_seeds(config.seed, 0)
    steps = config.fidelity.high
    losses = {split: executor.evaluate(TrialSpec(allocation, steps, steps, train_seed, split, lr_scale),
                                       progress) for split in ("validation", "test")}
    measured = losses["validation"].measured_bytes
    if config.oracle.name == "finetune" and losses["validation"].state is TrialState.OK:
        measured = executor.call("measure_peak", {"allocation": allocation.to_json(), "train_seed": train_seed},
                                 progress)["measured_bytes"]
    return {"train_seed": train_seed, **{split: _fields(m) for split, m in losses.items()},
            "measured_bytes": measured, "provenance": json.loads(json.dumps(collect(executor.describe())))}


def read_allocation(text: str, space: SearchSpace) -> tuple[Allocation, float | None]:
    """The allocation of ``uniform:BITS,RANK`` or of a JSON file with ``formats`` and ``ranks``, such as a best.json;
    and the learning rate that such a file states.

    Raises:
        ConfigError: If there is no such file or it does not fit the model's units.
        SpaceError: If it is malformed.
    """
    if text.strip().lower().startswith("uniform"):
        chosen = parse_budget(text)
        return uniform(space.n_units, format_for(int(chosen.bits or 0), space).name, int(chosen.rank or 0)), None
    path = Path(text).expanduser()
    try:
        data = strict_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"allocation must be uniform:BITS,RANK or a JSON file such as a best.json; {text!r} can't be "
                          f"read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"allocation: {path} is not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("formats"), list):
        raise SpaceError(f"allocation: {path} must be an object with the lists 'formats' (names) and 'ranks' "
                         "(integers)")
    names = [f["name"] if isinstance(f, dict) and "name" in f else f for f in data["formats"]]
    allocation = Allocation.from_json({"formats": names, "ranks": data.get("ranks")})
    if min(allocation.ranks) < 1:
        raise ConfigError(f"allocation: {path} gives a unit the rank {min(allocation.ranks)}; every unit is fine-tuned "
                          "through an adapter, so ranks must be at least 1")
    units = [u.name for u in space.units]
    if data.get("units", units) != units or len(allocation) != len(units):
        raise ConfigError(f"allocation: {path} is for {len(allocation)} units; this model has {len(units)} "
                          f"({units[0]} ... {units[-1]}): use the model and granularity that it was made for")
    lr = data.get("learning_rate")
    if lr is not None and (type(lr) not in (int, float) or not 0 < lr <= LARGEST_LR):
        raise ConfigError(f"allocation: the learning_rate of {path} must be a number between 0 and {LARGEST_LR:g}, "
                          f"got {str(lr)[:40]}")
    return allocation, None if lr is None else float(lr)


def print_evaluation(result: Mapping[str, Any], console: Console) -> None:
    """Losses and bytes in a few lines."""
    units, bits, memory = result["units"], result["bits"], result["memory"]
    lines = [f"Bits and ranks: {describe_allocation(units, bits, result['ranks'])}"]
    for split in ("validation", "test"):
        m = result[split]
        lines.append(f"{split} loss: {m['state']} ({m['message']})" if m["loss"] is None else
                     f"{split} loss: {m['loss']:.4f} nats per token"
                     f"{'' if m['loss_se'] is None else ' (standard error {:.4f})'.format(m['loss_se'])} after "
                     f"{result['steps']} steps")
    measured = memory["measured_bytes"]
    lines.append(f"{memory['scope']} memory: {format_size(memory['predicted_bytes'])} predicted, "
                 f"{'not measured' if measured is None else format_size(measured) + ' measured'}")
    if result["oracle"] != "finetune":
        lines.insert(0, f"{result['oracle']} results: no model is trained")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _fields(m: TrialResult) -> dict[str, Any]:
    return {"state": m.state.value, "loss": m.loss, "loss_se": m.loss_se, "curve": [list(p) for p in m.curve],
            "training_tokens": m.training_tokens, "forward_tokens": m.forward_tokens, "seconds": m.seconds,
            "message": m.message, "peaks": peaks_to_json(m.peaks)}
