"""``task=export``: write a finished run for other trainers, quantisers and servers."""

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from qra_bo.config import RunConfig
from qra_bo.export.registry import SMALL, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.report.tables import print_table
from qra_bo.report.text import DASH
from qra_bo.utils.files import write_json, writing


def run(config: RunConfig) -> int:
    """Export the run in ``out`` and print the files written; returns 0.

    With ``export.check`` the folder's exports are loaded again, and the differences of logits are printed and written
    to ``export/checks.json``.

    Raises:
        UserError: If the folder holds no finished run with an adapter, or a target lacks its inputs.
    """
    folder, trust = Path(str(config.out)), bool(config.model["trust_remote_code"])
    for path in export_all(folder, config.export.targets or SMALL, config.export.merged_base, trust,
                           config.export.gguf):
        print(path)
    if config.export.check:
        print_checks(folder, trust)
    return 0


def print_checks(folder: Path, trust_remote_code: bool) -> None:
    """Print a line for every export: its loader, and how far its logits are from the run's own."""
    from qra_bo.export.check import check_exports  # loads torch
    from qra_bo.finetune.manifest import package_versions
    rows = check_exports(FinishedRun.read(folder, trust_remote_code))
    print_table(Console(), ("export", "loaded by", "result", "note"),
                [(r.what, r.loaded_by, r.result or DASH, r.note) for r in rows])
    path = folder / "export" / "checks.json"
    with writing(path, "check again"):
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"schema_version": 1, "rows": [asdict(r) for r in rows], "versions": package_versions()})
    print(path)
