"""``task=evaluate``: ask the model of a finished run the questions of ``eval.tasks``."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from qra_bo.config import RunConfig
from qra_bo.tasks.answers import ANSWERS, AnswerFile, interval, paired
from qra_bo.utils.device import resolve_device
from qra_bo.utils.errors import ConfigError
from qra_bo.utils.files import check_run_folder, read_object, user_path, write_json, writing

SCORES_NAME = "scores.json"
UNTUNED = "untuned"


def run(config: RunConfig) -> int:
    """Score the model of the run in ``out`` on the tasks of ``eval.tasks``; returns 0.

    Answers to a file's questions are kept in ``answers/`` as they come, and not asked for again. With ``eval.against``
    the same questions go to the base without its adapter (``untuned``), or their answers by another run are read, and
    the two are compared question by question.

    Raises:
        UserError: If a task is unknown or malformed, lm-eval is not installed, the folder holds no finished run, or
            can't be written, or the other run has not answered.
    """
    from qra_bo.export.load import keep_unpacked, load  # these load torch and transformers
    from qra_bo.finetune.evaluation import FILE_ENDINGS, check_tasks, score_named, scores_of
    from qra_bo.finetune.manifest import package_versions
    check_tasks(config.eval.tasks)
    folder, against = Path(str(config.out)), config.eval.against
    files = [user_path(t) for t in config.eval.tasks if t.endswith(FILE_ENDINGS)]
    others = _others(files, None if against in (None, UNTUNED) else Path(str(against)))
    model, tokenizer = load(folder, resolve_device(config.device),
                            trust_remote_code=bool(config.model["trust_remote_code"]))
    keep_unpacked(model)  # else every token of an answer unpacks every layer
    scores = score_named(model, tokenizer, [t for t in config.eval.tasks if not t.endswith(FILE_ENDINGS)],
                         batch=config.train.batch, limit=config.eval.limit)
    rows = [asdict(s) for s in scores]
    chat = asks_in_chats(folder, tokenizer)
    for path in files:
        asked = AnswerFile.of_run(folder, path.stem)
        answers = _ask(model, tokenizer, path, config, chat, asked, others.get(path))
        if against == UNTUNED:
            others[path] = AnswerFile.of_run(folder, path.stem, UNTUNED)
            with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
                _ask(model, tokenizer, path, config, chat, others[path])
        for score in scores_of(path.stem, answers):
            low, high = interval(score.value, score.questions)
            row: dict[str, Any] = {**asdict(score), "low": low, "high": high}
            if path in others:
                row["against"] = {"run": str(against), **asdict(paired(answers, others[path].answers, score.metric))}
            rows.append(row)
    for row in rows:
        print(_line(row))
    with writing(folder / SCORES_NAME, "ask again"):
        versions = {**package_versions(), "lm-eval": metadata.version("lm-eval")}
        write_json(folder / SCORES_NAME, {"schema_version": 2, "limit": config.eval.limit, "scores": rows,
                                          "versions": versions})
    print(f"Files: {folder / SCORES_NAME}" + (f", {folder / ANSWERS}" if files else ""))
    return 0


def _others(files: Sequence[Path], run: Path | None) -> dict[Path, AnswerFile]:
    """Return the answers of another run; raises ``ConfigError`` where it lacks some."""
    if run is not None:
        check_run_folder(run)
    found = {} if run is None else {path: AnswerFile.of_run(run, path.stem) for path in files}
    missing = [path.name for path, answers in found.items() if not answers.answers]
    if missing:
        raise ConfigError(f"eval.against={run} has answered no question of {', '.join(missing)}; ask it first: "
                          f"python -m qra_bo task=evaluate out={run} with the same eval.tasks")
    return found


def _ask(model: Any, tokenizer: Any, path: Path, config: RunConfig, chat: bool, asked: AnswerFile,
         other: AnswerFile | None = None) -> list[Any]:
    """Return the answers in the file's order, asking what lacks one; nothing is asked where ``other`` has none."""
    from qra_bo.finetune.evaluation import answer_file
    wanted: list[str] = []
    for wanted, answers in answer_file(model, tokenizer, path, batch=config.train.batch, limit=config.eval.limit,
                                       chat=chat, known=asked.known):
        if answers:
            asked.add(answers)
        elif other is not None and other.known.isdisjoint(wanted):
            raise ConfigError(f"eval.against={config.eval.against} answered none of the questions of {path.name} as "
                              "this run asks them; ask it with the same eval.tasks and chat template")
        known = asked.known
        print(f"{asked.path.parent.name}/{asked.path.stem}: {sum(q in known for q in wanted):,} of {len(wanted):,} "
              "questions answered", file=sys.stderr)
    by_question = {a.question: a for a in asked.answers}
    return [by_question[question] for question in wanted]


def _line(row: Mapping[str, Any]) -> str:
    text = f"{row['task']}: {row['metric']} {row['value']:.4f}"
    if "low" in row:
        text += f" (95 % {row['low']:.4f} to {row['high']:.4f})"
    elif row["stderr"] is not None:
        text += f" (standard error {row['stderr']:.4f})"
    text += f", {row['questions']} questions"
    if "against" in row:
        p = row["against"]
        text += (f"; {p['run']} {p['other']:.4f} on the {p['questions']} of both, difference {p['mean']:+.4f} "
                 f"({p['low']:+.4f} to {p['high']:+.4f}): only this one right {p['only_this']}, only the other "
                 f"{p['only_other']} (McNemar's p = {p['p']:.3f})")
    return text


def asks_in_chats(folder: Path, tokenizer: Any) -> bool:
    """Whether instructions are asked as chats: as the run in ``folder`` was trained on them, and where it had none by
    its tokenizer's template."""
    path = folder / "best.json"
    stated = read_object(path).get("provenance") if path.is_file() else None
    provenance = stated if isinstance(stated, dict) else {}
    rendered = provenance.get("data_render") or ("chat" if tokenizer.chat_template else "plain")
    return bool(provenance.get("data_chats")) or rendered == "chat"
