"""Folders that runs and tasks write to."""

from datetime import datetime
from pathlib import Path

from qra_bo.config import RunConfig
from qra_bo.study.journal import JOURNAL_NAME, LOCK_NAME
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import check_run_folder


def run_folder(config: RunConfig) -> Path:
    """Return ``out``, or a new folder below ``outputs``.

    Raises:
        OutputError: If it holds anything else, or links, or nothing where a run is to be resumed.
    """
    if config.out is None and config.resume:
        raise OutputError("resume=true needs out=FOLDER, the run to go on with; python -m qra_bo.runs list outputs "
                          "shows them. Without both a new run begins")
    if config.out is None:
        return new_folder(config, str(config.budget[0]))
    folder, wanted = Path(config.out), "give a folder that is new, empty or holds a run"
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"out={folder} is a file; {wanted}")
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    begun = JOURNAL_NAME in names
    foreign = [] if begun else [name for name in names if name != LOCK_NAME]  # a run that failed before its journal
    if foreign:
        raise OutputError(f"out={folder} holds {foreign[0]!r} and is not the folder of a run: nothing in it is "
                          f"touched; {wanted}")
    check_run_folder(folder)
    if config.resume and not begun:
        raise OutputError(f"resume=true and out={folder} holds no {JOURNAL_NAME} of a run, so there is nothing to go "
                          "on from; give the folder of a run, or leave resume out")
    return folder


def new_folder(config: RunConfig, what: str) -> Path:
    """Return a folder below ``outputs`` named after the model, ``what`` and the time to the microsecond: jobs of a
    scheduler begin in the same second."""
    return Path("outputs") / path_name(f"{config.model_name}-{what}-{datetime.now():%Y%m%d-%H%M%S-%f}")


def path_name(text: str) -> str:
    """Return ``text`` as the name of a folder."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
