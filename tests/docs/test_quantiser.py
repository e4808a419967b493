"""The page on adding a storage format, followed step by step in a copy of the repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "research" / "quantiser.md").read_text(encoding="utf-8")
BLOCKS = [dedent(block) for block in re.findall(r"^ *```\w+\n(.*?)^ *```", PAGE, re.M | re.S)]


@pytest.mark.slow
def test_the_example_is_a_storage_format_in_the_four_files(tmp_path: Path) -> None:
    module, planning, suite, row, commands = BLOCKS
    for name in ("qra_bo", "tests", "docs", "bench"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conf", "scripts", "surrogates", "README.md", "pyproject.toml", "mkdocs.yml"):
        (tmp_path / name).symlink_to(ROOT / name)
    formats, begin = tmp_path / "qra_bo" / "memory" / "formats.py", "BACKENDS: Mapping[str, Backend] = {\n"
    (entry,) = re.findall(r'`("\w+": \w+)`', PAGE)
    text = formats.read_text(encoding="utf-8")
    assert text.count(begin) == 1
    formats.write_text(text.replace(begin, f"{planning}\n\n{begin}    {entry},\n"), encoding="utf-8")
    (formats.parents[1] / "finetune" / "quantization" / "fp4.py").write_text(module, encoding="utf-8")
    for name, added in (("tests/finetune/quantization/test_conformance.py", suite), ("docs/reference/memory.md", row)):
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(f"\n\n{added}")
    for command in commands.splitlines():
        words = [sys.executable, *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stdout + done.stderr
