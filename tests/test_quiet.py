"""What a fresh process prints that loads, exports or evaluates: its results, and no library's notices."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import gguf
import pytest

from qra_bo.finetune.models import gguf_reading
from qra_bo.utils.errors import ModelError
from tests.export.finished import SETTINGS, finish

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", name="finished")
def make_finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("quiet") / "run", ("hqq2", "nf4", "int8", "fp16"), (1, 4, 2, 3))


def stderr_of(*arguments: str) -> str:
    """What ``python ARGUMENTS`` prints on stderr; it must end well."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_loading_exports_and_training_print_nothing(finished: Path, tmp_path: Path) -> None:
    """In one process, whose imports are the longest part."""
    export = ["task=export", f"out={finished}", "export.check=true", "export.targets=[card,merged]"]
    train = ["task=finetune", "allocation=uniform:4,2", *SETTINGS, f"out={tmp_path / 'run'}", "final.steps=4",
             "display=none"]
    code = (f"import qra_bo\nqra_bo.load({str(finished)!r})\nfrom qra_bo.cli.app import main\n"
            f"if __name__ == '__main__':\n    assert main({export!r}) == main({train!r}) == 0\n")
    (tmp_path / "quiet.py").write_text(code)  # a file, for the worker imports it again
    assert stderr_of(str(tmp_path / "quiet.py")) == ""


def test_a_gguf_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(gguf_reading, "QuickReader", parsed.append)
    original = gguf.GGUFReader
    with suppress(ModelError), gguf_reading.reading_gguf():
        gguf.GGUFReader("a.gguf")
        gguf.GGUFReader("a.gguf")
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        raise ModelError("the file is malformed")
    assert parsed == ["a.gguf"]
    assert gguf.GGUFReader == original
