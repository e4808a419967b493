"""EXL3 codes that are chosen here: GPTQ's feedback, runs that are saved and loaded again, and the folder that exllamav3
is to load, read again bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qra_bo
from qra_bo.config import load_config
from qra_bo.export.registry import check_exports, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.finetune.quantization.exl3 import Exl3Backend
from qra_bo.finetune.quantization.stored_model import load_stored
from qra_bo.memory.formats import parse_format
from qra_bo.memory.serving import CONSUMERS
from qra_bo.utils.errors import ConfigError
from tests.export.allocations import Case, build
from tests.export.finished import finish
from tests.finetune.test_exl3 import plain
from tests.finetune.test_packed_folders import node

CPU, SHAPE = torch.device("cpu"), (100, 120)
FMT = parse_format("exl3-mul1-2")


def weights(state: State) -> Tensor:
    return backend_of(FMT).build(state, FMT, SHAPE, None, torch.float32).unpack()


def test_feedback_lowers_the_error_of_outputs() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, mix = torch.randn(SHAPE, generator=draw), torch.randn(120, 120, generator=draw) / 6 + torch.eye(120)
    weight[3] = 0
    x = torch.randn(500, 120, generator=draw) @ mix
    backend, moments = Exl3Backend(), x.T @ x
    before = moments.clone()
    states = [backend.pack(weight, FMT, CPU), backend.compensated(weight, FMT, backend.inputs(moments))]
    assert torch.equal(moments, before)
    nearest, chosen = ((x @ (weights(state) - weight).T).norm() / (x @ weight.T).norm() for state in states)
    assert chosen < 0.85 * nearest
    assert nearest < 0.27  # 0.25 is the least of any code of two bits on normal numbers
    for state in states:
        assert torch.equal(weights(state), plain(state, "mul1", *SHAPE))
        assert not weights(state)[3].any()


def test_feedback_leaves_what_later_inputs_make_up_for() -> None:
    """Error of a tile of inputs, in rotated terms, moves into the targets of later ones by the factor's rule."""
    weight = torch.randn(128, 32, generator=torch.Generator().manual_seed(1))
    backend = Exl3Backend()
    plain_moments = backend.inputs(torch.eye(128))
    states = backend.pack(weight.repeat(1, 4), FMT, CPU), backend.compensated(weight.repeat(1, 4), FMT, plain_moments)
    assert torch.equal(states[0]["codes"], states[1]["codes"])  # independent inputs make up for nothing


def test_formats_of_files_alone_are_neither_chosen_nor_made() -> None:
    with pytest.raises(ConfigError, match=r"exl3-mul1-2\.5"):
        load_config(["budget=1GB", "bits=[3]", "quantizer.formats.3=[exl3-mul1-2.5]"])
    fmt = parse_format("exl3-mcg-2")
    with pytest.raises(ConfigError, match="codes=stored"):
        backend_of(fmt).pack(torch.ones(8, 8), fmt, CPU)


def test_preset_searches_what_the_program_loads() -> None:
    config = load_config(["budget=1GB", "serve=exllamav3", "+model=tiny"])
    assert config.bits == (2, 3, 4)
    assert all(CONSUMERS["exllamav3"].loads(parse_format(config.quantizer.formats[b][0])) for b in config.bits)
    with pytest.raises(ConfigError, match="exl3-mul1-2"):
        load_config(["budget=1GB", "serve=exllamav3", "+model=tiny", "quantizer.formats.2=[sym2-g64]"])


def assert_read_again(run: FinishedRun) -> None:
    """Export a run, and compare every packed tensor and what the folder says of itself."""
    folder = export_all(run, ["exl3"])[0].parent
    own = qra_bo.load(run.folder)[0]
    read = load_stored(node(folder), getattr(torch, run.manifest.compute_dtype))[0]
    for name, record in run.manifest.modules.items():
        layer = read.get_submodule(name)
        ours = own.get_base_model().get_submodule(name)
        ours = getattr(ours, "base_layer", ours)
        assert layer.fmt == record.format
        assert all(torch.equal(tensor, layer.packed_state()[key]) for key, tensor in ours.packed_state().items())
        assert ours.bias is None or torch.equal(ours.bias, layer.bias)
    facts, config = (json.loads((folder / f"{name}.json").read_text()) for name in ("quantization_config", "config"))
    tensors = load_file(folder / "model.safetensors")
    listed = {name: (part["shape"], part["n_bytes"]) for module in facts.pop("tensor_storage").values()
              for name, part in module["stored_tensors"].items()}
    assert listed == {name: (list(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()}
    assert facts == config["quantization_config"]
    assert facts["quant_method"] == "exl3"


@pytest.mark.parametrize("rounding", ["rtn", pytest.param("gptq", marks=pytest.mark.slow)])
def test_trained_run_is_loaded_exported_and_compared(tmp_path: Path, rounding: str) -> None:
    formats = ("exl3-mul1-2", "fp16", "t2" if rounding == "gptq" else "fp16", "fp16")
    run = FinishedRun.read(finish(tmp_path, formats, (2, 4, 4, 8), f"quantizer.rounding={rounding}"))
    if rounding == "gptq":  # two backends of rings, each with moments of its own, which one folder can't hold
        assert check_exports(run)[0].largest == 0
        return
    assert_read_again(run)
    rows = {row.what: row for row in check_exports(run)}
    assert {rows[what].largest for what in ("manifest and adapter", "exl3, base", "exl3, with the adapter")} == {0}


@pytest.mark.parametrize(("family", "compute"), [("llama", "float32"), ("qwen2", "bfloat16")])
def test_other_decoders_biases_and_types_are_read_again(tmp_path: Path, family: str, compute: str) -> None:
    formats = ("exl3-mul1-2", "fp16", "exl3-mul1-3", "exl3-mul1-4", *["fp16"] * 10)
    case = Case(1, family, family == "qwen2", 2, compute, formats, (4, 0, 2, 8, 0, 1, 3) * 2)
    assert_read_again(build(case, tmp_path))
