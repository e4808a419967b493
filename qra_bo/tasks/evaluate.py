"""``task=evaluate``: ask the model of a finished run the questions of ``eval.tasks``."""

from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig
from qra_bo.utils.device import resolve_device
from qra_bo.utils.files import read_object, write_json, writing

SCORES_NAME = "scores.json"


def run(config: RunConfig) -> int:
    """Score the model of the run in ``out`` on the tasks of ``eval.tasks``; returns 0.

    Raises:
        UserError: If a task is unknown or malformed, lm-eval is not installed, the folder holds no finished run, or
            can't be written; the scores have been printed by then.
    """
    from qra_bo.export.load import load  # these three load torch and transformers
    from qra_bo.finetune.evaluation import check_tasks, score_tasks
    from qra_bo.finetune.manifest import package_versions
    check_tasks(config.eval.tasks)
    folder = Path(str(config.out))
    model, tokenizer = load(folder, resolve_device(config.device),
                            trust_remote_code=bool(config.model["trust_remote_code"]))
    scores = score_tasks(model, tokenizer, config.eval.tasks, batch=config.train.batch, limit=config.eval.limit,
                         chat=asks_in_chats(folder, tokenizer))
    for s in scores:  # first: the folder may be someone else's
        error = "" if s.stderr is None else f" (standard error {s.stderr:.4f})"
        print(f"{s.task}: {s.metric} {s.value:.4f}{error}, {s.questions} questions")
    with writing(folder / SCORES_NAME, "ask again"):
        versions = {**package_versions(), "lm-eval": metadata.version("lm-eval")}
        write_json(folder / SCORES_NAME, {"schema_version": 1, "limit": config.eval.limit,
                                          "scores": [asdict(s) for s in scores], "versions": versions})
    print(f"Files: {folder / SCORES_NAME}")
    return 0


def asks_in_chats(folder: Path, tokenizer: Any) -> bool:
    """Whether instructions are asked as chats: as the run in ``folder`` was trained on them, and where it had none by
    its tokenizer's template."""
    path = folder / "best.json"
    provenance = read_object(path).get("provenance") if path.is_file() else None
    trained = provenance.get("data_render") if isinstance(provenance, dict) else None
    return trained == "chat" if trained else bool(tokenizer.chat_template)
