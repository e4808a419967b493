"""A run as GGUF files: every weight as it was, and llama.cpp's own logits beside the run's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Form
from gguf import GGUFReader
from gguf.quants import dequantize, quantize

from qra_bo.export.gguf import FILES, FOLDER
from qra_bo.export.gguf_blocks import form_of, is_exact, linear_blocks
from qra_bo.export.gguf_file import half_form
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import LinearWeights, weights_of
from qra_bo.finetune.models.load import load_base
from qra_bo.finetune.quantization.base import backend_of
from qra_bo.finetune.quantization.integer import IntegerBackend
from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.serving import gguf_bytes
from qra_bo.space import Allocation, SearchSpace, make_units
from qra_bo.space.decoder import DecoderSpec, spec_from_model
from tests.export.allocations import Case, build, rows_of
from tests.export.finished import exported

EXACT = 1e-3
"""Largest difference of logits of an unpacked file; both sides compute in fp32, in other orders."""
KL = 0.01


def names(run: Path) -> dict[str, Any]:
    return {str(t.name): t for t in GGUFReader(run).tensors}


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    case = Case(4, "llama", True, 2, "float32", ("sym4-g64", "int3-g32", "sym8-g64", "hqq4"), (3, 0, 5, 8))
    run = replace(build(case, tmp_path_factory.mktemp("gguf")), gguf=tuple(FILES))
    exported(run.folder, ["gguf"], gguf=run.gguf)
    return run


def linear_of(name: str, rows: int, columns: int, seed: int = 0) -> LinearWeights:
    fmt = parse_format(name)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3
    return LinearWeights("x", fmt, (rows, columns), backend_of(fmt).pack(weight, fmt, torch.device("cpu")), None, None)


@pytest.mark.parametrize("name", sorted(n for n, fmt in FORMATS.items() if fmt.bits < 16 and form_of(fmt, 256)))
def test_blocks_hold_the_weights_of_each_format(name: str) -> None:
    linear = linear_of(name, 12, 256)
    form = form_of(linear.format, 256)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    found, wanted = dequantize(linear_blocks(linear, order), form), linear.dense(torch.float32)[order].numpy()
    if is_exact(linear.format):
        np.testing.assert_array_equal(found, wanted)
    else:  # an offset of fp16 is off by at most half its last place
        offset = (linear.state["scale"].float() * linear.state["zero"].float()).abs().max()
        assert np.abs(found - wanted).max() <= float(offset) * 2**-11 + 1e-7
        assert not np.array_equal(found, wanted)


def test_extreme_codes_and_zeros_survive() -> None:
    for name in (n for n, fmt in FORMATS.items() if n.endswith("-g32") and form_of(fmt, 64) and is_exact(fmt)):
        linear = linear_of(name, 4, 64)
        codes = torch.arange(4 * 64).view(4, 64) % (1 << linear.format.bits)
        state = IntegerBackend().recoded(linear.state, linear.format, codes)
        if "zero" in state:
            state = {**state, "zero": torch.tensor([[0, (1 << linear.format.bits) - 1]] * 4, dtype=torch.uint8)}
        extreme = replace(linear, state=state)
        form = form_of(linear.format, 64)
        np.testing.assert_array_equal(dequantize(linear_blocks(extreme, torch.arange(4)), form),
                                      extreme.dense(torch.float32).numpy())


@pytest.mark.parametrize(("file", "form"), [("base", None), ("merged-q8_0", Form.Q8_0), ("merged-f16", Form.F16)])
def test_files_hold_each_linear_in_its_form(run: FinishedRun, file: str, form: Form | None) -> None:
    weights, found = weights_of(run), names(run.folder / FOLDER / f"{file}.gguf")
    layout = layout_of(weights.config)
    for name, linear in weights.linears.items():
        (part, rows), = layout.parts(name, linear.shape[0])
        tensor = found[f"{part}.weight"]
        wanted, largest = linear.dense(torch.float32), 0 if is_exact(linear.format) else 1e-3
        if merged := form is not None and linear.lora is not None:
            wanted = torch.from_numpy(dequantize(quantize(linear.merged(torch.float32).numpy(), form), form))
            largest = 0
        assert np.abs(dequantize(tensor.data, tensor.tensor_type) - wanted[rows].numpy()).max() <= largest
        assert tensor.tensor_type == (form if merged else form_of(linear.format, linear.shape[1]))
    assert "output.weight" not in found  # tied


def check_logits(run: FinishedRun) -> None:
    """Compare what llama.cpp computes of all files of a run with the run's own logits."""
    rows = {row.what: row for row in rows_of(run, "gguf", torch.arange(1, 65))}
    assert list(rows) == ["gguf, base", "gguf, base with the adapter", "gguf, merged-f16", "gguf, merged-q8_0",
                          "gguf, base-f32", "gguf, base-f32 with the adapter"]
    for what, row in rows.items():
        assert row.largest is not None, row
        assert "f32" not in what or row.largest <= EXACT, row
        assert row.kl < KL, row


def test_llama_cpp_computes_the_runs_logits(run: FinishedRun) -> None:
    check_logits(run)


def test_16_bits_take_the_type_that_holds_them() -> None:
    small = torch.tensor([1e-6, 1.0])
    assert half_form(small.bfloat16()) == Form.BF16
    assert half_form(small.half()) == Form.F16
    assert half_form(torch.tensor([0.5, 3.0]).bfloat16()) == Form.F16
    assert half_form(torch.tensor([1 / 3])) == Form.F16


def check_planned_bytes(run: FinishedRun, spec: DecoderSpec, embeddings: int = 16) -> None:
    """Compare the bytes that a plan states for a run with those in its files, which are written. Units without an
    adapter, as experts may be, have a rank all the same."""
    units, records = make_units(spec, "module"), run.manifest.modules
    chosen = [records[unit.linears[0].name] for unit in units]
    formats = sorted({record.format for record in chosen}, key=lambda fmt: fmt.bits)
    space = SearchSpace(units, tuple(formats), (2, 3, 5, 8))
    allocation = Allocation(tuple(r.format.name for r in chosen), tuple(r.rank or 2 for r in chosen))
    stated = gguf_bytes(MemoryModel(spec, TrainShape(2, 32, embeddings=embeddings)), space, allocation)
    exported(run.folder, ["gguf"], gguf=tuple(FILES))
    for name, size in stated.items():
        path = run.folder / FOLDER / f"{name}.gguf"
        assert sum(int(t.n_bytes) for t in names(path).values()) == size
        assert size < path.stat().st_size < size + 20_000


@pytest.mark.parametrize("embeddings", [16, 6])
def test_plan_states_the_bytes_of_each_files_tensors(embeddings: int, tmp_path: Path) -> None:
    case = Case(3, "llama", True, 2, "float32", ("sym4-g64", "int3-g32", "sym8-g64", "fp16"), (3, 2, 5, 8), embeddings)
    run = build(case, tmp_path)
    check_planned_bytes(run, spec_from_model(load_base(run.manifest.model)[0], "llama"), embeddings)
