"""The exports at the end of a run: what fails takes nothing from the others."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from qra_bo.config import load_config
from qra_bo.pipeline import exports
from qra_bo.pipeline.exports import write_exports
from qra_bo.utils.errors import OutputError

CONFIG = load_config(["+model=tiny", "data=tiny", "export.targets=[merged,packed]"])


@pytest.mark.parametrize("error", [OutputError("no"), MemoryError("no"), torch.OutOfMemoryError("no"),
                                   RuntimeError("CUDA driver error: out of memory: no")])
def test_an_export_that_fails_leaves_the_others(error: Exception, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    def export_all(folder: Path, targets: Sequence[str], *_: Any) -> list[Path]:
        if "merged" in targets:
            raise error
        return [folder / target for target in targets if target == "packed"]

    monkeypatch.setattr("qra_bo.export.registry.export_all", export_all)
    monkeypatch.setattr(exports, "checked", lambda config, folder, console: [folder / "checks"])
    monkeypatch.setattr(exports, "commands", lambda config, folder: [])
    said = StringIO()
    assert write_exports(CONFIG, tmp_path, Console(file=said, width=1000)) == [tmp_path / "packed", tmp_path / "checks"]
    assert said.getvalue().startswith("Warning: the export merged was not written, and the run's other files are")
    assert "no" in said.getvalue().partition("complete: ")[2]


def test_a_bug_in_an_export_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export_all(folder: Path, targets: Sequence[str], *_: Any) -> list[Path]:
        if "merged" in targets:
            raise RuntimeError("shapes differ")
        return []

    monkeypatch.setattr("qra_bo.export.registry.export_all", export_all)
    with pytest.raises(RuntimeError, match="shapes differ"):
        write_exports(CONFIG, tmp_path, None)
