"""Streams that can be lost without harm."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from qra_bo.utils.process import interpreter, prepare, tolerant


@contextmanager
def lost(stream: TextIO) -> Iterator[TextIO]:
    """Close a stream that can't be flushed."""
    yield stream
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize(("shell", "read"), [
    ("printf 'caf\\351'", "'caf\\ufffd'"), ("printf 'caf\\303\\251'", "'caf\\xe9'"),
    ("printf '\\377\\376'", "'\\ufffd\\ufffd'"), ("true", "''"), ("", "''")])
def test_any_input_is_read(shell: str, read: str) -> None:
    program = "from qra_bo.utils.process import prepare; prepare(); print(ascii(sys.stdin.read()))"
    tied = f"{shell} | exec \"$0\" \"$@\"" if shell else 'exec "$0" "$@" <&-'
    found = subprocess.run(["bash", "-c", tied, *interpreter(program)], capture_output=True, text=True, check=False,
                           env={**os.environ, "PYTHONUTF8": "1"})
    assert (found.stdout.strip(), found.stderr) == (read, "")


STOP = """import os, signal
signal.signal(2, signal.default_int_handler)  # a shell's background job ignores it
class Stop:
    def find_spec(self, name, *_):
        if name == {name!r}: os.kill(os.getpid(), 2)
sys.meta_path.insert(0, Stop())
from qra_bo.__main__ import main; main()"""


@pytest.mark.parametrize("name", ["qra_bo.cli.app", "hydra", "omegaconf", "pydantic", "qra_bo.config.schema"])
def test_a_stop_of_imports_prints_nothing(name: str) -> None:
    found = subprocess.run(interpreter(STOP.format(name=name)), capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (-2, "", "")


def test_files_of_libraries_are_read_where_the_locale_and_utf8_mode_are_of_ascii(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("\N{MINUS SIGN}", encoding="utf-8")
    off = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    program = f"{{}}; print(ascii(open({str(tmp_path / 'f')!r}).read()))"
    found = [subprocess.run(interpreter(program.format(before)), capture_output=True, text=True, env=off).stdout
             for before in ("pass", "from qra_bo.utils.process import prepare; prepare()")]
    assert found == ["", "'\\u2212'\n"]


@pytest.mark.parametrize("text", ["\N{MINUS SIGN}0.25", "[\N{MINUS SIGN}1, \N{MINUS SIGN}2]", "\N{EN DASH}",
                                  "1\N{EN DASH}3", "\N{EURO SIGN}\N{MINUS SIGN}1"])
def test_signs_of_numbers_are_kept_in_any_encoding(text: str) -> None:
    raw = io.BytesIO()
    stream = tolerant(io.TextIOWrapper(raw, encoding="ascii"))
    assert stream.write(text) == len(text)
    stream.flush()
    assert raw.getvalue().decode() == text.translate(str.maketrans("\N{MINUS SIGN}\N{EN DASH}\N{EURO SIGN}", "--?"))


def check_it_takes_everything(stream: TextIO) -> None:
    stream.write("x" * 100_000)
    Console(file=stream).print("x")
    stream.flush()


def test_reader_that_is_gone_and_closed_stream_are_no_errors() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    closed = io.StringIO()
    closed.close()
    with lost(os.fdopen(writing, "w")) as raw:
        for stream in map(tolerant, (raw, closed, None)):
            check_it_takes_everything(stream)
            assert not stream.isatty()


def test_installed_modules_come_before_those_of_the_working_directory(monkeypatch: pytest.MonkeyPatch,
                                                                      tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    prepare()
    assert sys.path[-1] == str(tmp_path)
    assert tolerant(sys.stdout) is sys.stdout
    assert os.environ["MPLBACKEND"] == "agg"


@pytest.mark.parametrize("words", [["task=memory"], ["--help"], ["+model=tiny", "out=x"], ["task=report", "out=/tmp"],
                                   ["-m", "seed=1,2"], ["nonsense"], []])
def test_a_working_folder_that_is_gone_is_one_message(words: list[str], tmp_path: Path) -> None:
    code = (f"import os, sys; os.chdir({str(tmp_path)!r}); os.rmdir(os.getcwd()); sys.argv[1:] = {words}; "
            "from qra_bo.__main__ import main; main()")
    done = subprocess.run(interpreter(code), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "qra_bo: the working folder is gone; change to another one\n")
