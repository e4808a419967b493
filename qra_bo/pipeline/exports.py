"""Exports of a run in its folder: written, loaded again, and told in a line each."""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.memory.serving import CONSUMERS
from qra_bo.report.tables import print_line
from qra_bo.utils.errors import ConfigError, UserError, from_lack_of_memory
from qra_bo.utils.files import write_json, writing

if TYPE_CHECKING:
    from qra_bo.export.run import FinishedRun

log = logging.getLogger(__name__)
CHECKS = Path("export") / "checks.json"
QUICK_WEIGHTS = 500_000_000
"""Largest base, by the weights of its linears, that ``export.check=auto`` loads again: a matter of seconds."""


def write_exports(config: RunConfig, folder: Path, console: Console | None) -> list[Path]:
    """Write the exports of a run that has just ended, check them as ``export.check`` says, and return the files.

    These are all that copy no model, those in ``export.targets``, and those that the program of ``serve`` loads.
    Nothing that fails here, for want of memory too, takes anything from the run or from the other exports: the reason
    is a warning of the log, which is shown with every ``display``.
    """
    from qra_bo.export.registry import SMALL, export_all  # these load torch, which a simulation does without
    from qra_bo.export.run import FinishedRun
    run = FinishedRun.read(folder, config.model["trust_remote_code"], config.export.gguf)
    files = export_all(run, SMALL)

    def attempt(action: Callable[[], list[Path]], what: str) -> None:
        try:
            files.extend(action())
        except Exception as error:
            known = error if isinstance(error, UserError) else from_lack_of_memory(error)
            if known is None:
                raise
            log.warning("%s, and the run's other files are complete: %s", what, known)

    for target in dict.fromkeys((*(config.export.targets or ()), *CONSUMERS[config.serve].exports)):
        if target not in SMALL:
            attempt(partial(export_all, run, [target]), f"the export {target} was not written")
    attempt(partial(checked, config, run, console), "the exports were not checked")
    warn_of_stale(run)
    if console is not None:
        for line in commands(run):
            print_line(console, line)
    return files


def refuse_base(config: RunConfig, model: Any, tokenizer: Any) -> None:
    """Refuse a base model, before it is trained, whose result could not be exported as asked.

    Raises:
        ConfigError: With every reason.
    """
    from qra_bo.export.registry import TARGETS  # loads torch
    named, problems = config.export.targets or (), []
    for name in dict.fromkeys((*named, *CONSUMERS[config.serve].exports)):
        try:
            if (refuse := TARGETS[name].refuse_base) is not None:
                refuse(model, tokenizer)
        except ConfigError as error:
            why = "" if name in named else f"; serve={config.serve} writes this export, and serve=any none"
            problems += [f"{problem}{why}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)


def commands(run: "FinishedRun") -> list[str]:
    """Return a line with the command of every server that the exports in a run's folder are for."""
    from qra_bo.export.registry import TARGETS, stale_exports  # loads torch
    stale = stale_exports(run)
    return [f"Talk to it ({server}): {command}" for target in TARGETS.values()
            if target.start is not None and target.name not in stale and (run.folder / target.path).exists()
            for server, command in target.start(run).items()]


def warn_of_stale(run: "FinishedRun") -> None:
    """Warn, with every ``display``, of exports in a run's folder that are not of its present result."""
    from qra_bo.export.registry import stale_exports  # loads torch
    from qra_bo.export.run import export_command
    if stale := stale_exports(run):
        log.warning("the exports %s are unfinished, or of an earlier result of this run; write them again: %s",
                    ", ".join(stale), export_command(run, stale))


def checked(config: RunConfig, run: "FinishedRun", console: Console | None) -> list[Path]:
    """Load the exports of a run again, where ``export.check`` says so, print a line for each, and write
    ``export/checks.json``. That file is removed where it is of an earlier adapter.

    Args:
        config: Its ``export.check`` decides.
        run: The run.
        console: Where the lines are printed; ``None``: nowhere.

    Returns:
        The file; nothing where nothing was checked.

    Raises:
        UserError: If the run itself can't be loaded.
    """
    from qra_bo.export.registry import check_exports  # loads torch
    from qra_bo.finetune.manifest import N_TOKENS, package_versions
    path = run.folder / CHECKS
    with writing(path, "check again"):
        if CHECKS.name not in run.current_exports:
            path.unlink(missing_ok=True)
    weights = sum(math.prod(record.shape) for record in run.manifest.modules.values())
    if config.export.check is False or (config.export.check == "auto" and weights > QUICK_WEIGHTS):
        return []
    if console is not None:
        print_line(console, "loading the exports again, to compare them (export.check=false: not)")
    rows = check_exports(run)
    if console is not None:
        print_line(console, f"Exports, loaded again and compared on {N_TOKENS} held-out tokens:")
        for row in rows:
            said = ", ".join(text for text in (row.result, row.note) if text)
            print_line(console, f"  {row.what} ({row.loaded_by}): {said}")
    with writing(path, "check again"), run.recorded(CHECKS.name):
        write_json(path, {"schema_version": 1, "rows": [asdict(row) for row in rows], "versions": package_versions()})
    return [path]
