"""Runs for one consumer: bytes as its files hold them, and its export beside the run's own files."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import qra_bo
from qra_bo.config import load_config, make_space, make_spec
from qra_bo.export.run import FinishedRun
from qra_bo.memory.formats import parse_format
from qra_bo.memory.serving import CONSUMERS
from qra_bo.pipeline.exports import commands
from qra_bo.pipeline.given import read_allocation
from qra_bo.utils.errors import ConfigError
from tests.executors import work_in_this_process

TINY = ["+model=tiny", "model.intermediate_size=192", "data=tiny", "device=cpu"]
SHORT = ["data.max_records=64", "train.batch=2", "train.length=32", "eval.sequences=4", "fidelity.high=2",
         "fidelity.low=1", "final.steps=3", "dtype=float32", "display=none", "quantizer.rounding=rtn",
         "method=random", "effort=quick", "effort.max_full_trials=1", "effort.uniform_baselines=1", "confirm.seeds=0",
         "calibrate.lr_scales=[1.0]", "bits=[3,4,8]", "budget=uniform:4,4"]


def test_stored_bytes_and_export_are_those_of_mlx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in_this_process(monkeypatch)
    run = tmp_path / "run"
    best: Any = qra_bo.search([*TINY, *SHORT, "serve=mlx", "memory.scope=stored", f"out={run}"]).best
    modules = json.loads((run / "quant_manifest.json").read_text())["modules"]
    packed = sum(sum(CONSUMERS["mlx"].matrix_bytes(parse_format(m["name"]), *m["shape"])) for m in modules.values())
    adapters = sum(2 * m["rank"] * sum(m["shape"]) for m in modules.values())
    assert best["memory"]["predicted_bytes"] == packed + adapters
    assert best["memory"]["measured_bytes"] is None  # training shows nothing of files that are written later
    written = load_file(run / "mlx" / "model.safetensors")
    assert packed == sum(t.nbytes for name, t in written.items() if ".layers." in name and "norm" not in name)
    said = commands(FinishedRun.read(run))
    mlx = run / "mlx"
    assert said == [f"Talk to it (mlx): mlx_lm.server --model {mlx} --adapter-path {mlx / 'adapter'} --port 8080"]


@pytest.mark.parametrize(("allocation", "said"), [
    ("uniform:4,2", "the export gguf has no form for nf4, which the allocation has: use serve=llamacpp"),
    ("mix.json", "the export gguf has no form for int8, which the allocation has")])
def test_an_allocation_that_an_export_can_not_hold_is_refused_before_it_is_trained(allocation: str, said: str,
                                                                                   tmp_path: Path) -> None:
    file = tmp_path / "mix.json"
    file.write_text(json.dumps({"formats": ["sym4-g64", "int8", "sym4-g64", "fp16"], "ranks": [1, 2, 3, 4]}))
    chosen = allocation.replace("mix.json", str(file))
    words = [*TINY, "task=finetune", f"allocation={chosen}", "budget=1GB", "export.targets=[gguf,merged]"]

    def read(*more: str) -> Any:
        config = load_config([*words, *more])
        return read_allocation(config, make_space(config, make_spec(config)))

    with pytest.raises(ConfigError, match=said):
        read()
    assert read("export.targets=[merged]")
    assert "mix" in allocation or read("serve=llamacpp")
