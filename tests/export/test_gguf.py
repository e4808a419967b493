"""A run as GGUF files: every weight as it was, and llama.cpp's own logits beside the run's."""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Form
from gguf import GGUFReader
from gguf.quants import dequantize, quantize

from qra_bo.config import load_config, make_spec
from qra_bo.export.comparison import Reference
from qra_bo.export.gguf import FILES, FOLDER, LOADER, modelfile
from qra_bo.export.gguf_blocks import form_of, is_exact, linear_blocks
from qra_bo.export.gguf_file import half_form
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.llamacpp import LlamaCpp
from qra_bo.export.registry import SMALL
from qra_bo.export.run import FinishedRun
from qra_bo.export.weights import LinearWeights, RunWeights, weights_of
from qra_bo.finetune.quantization.base import backend_of
from qra_bo.memory import MemoryModel, TrainShape
from qra_bo.memory.formats import FORMATS, parse_format
from qra_bo.memory.serving import gguf_bytes
from qra_bo.pipeline.exports import commands
from qra_bo.space import Allocation, Ladder, SearchSpace, make_units
from tests.export.allocations import Case, build
from tests.export.finished import SETTINGS, exported, finish

RTN = "quantizer.rounding=rtn"
FP32 = "dtype=float32"
EXACT = 1e-3
"""Largest difference of logits of an unpacked file; both sides compute in fp32, in other orders."""
KL = 0.01


def names(run: Path) -> dict[str, Any]:
    return {str(t.name): t for t in GGUFReader(run).tensors}


@pytest.fixture(scope="module", name="run")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = finish(tmp_path_factory.mktemp("gguf") / "run", ("sym4-g64", "int3-g32", "sym8-g64", "hqq4"), (3, 0, 5, 8),
                    RTN, FP32)
    exported(folder, ["gguf"], gguf=list(FILES))
    return FinishedRun.read(folder, gguf=list(FILES))


@pytest.fixture(scope="module", name="reference")
def make_reference(run: FinishedRun) -> Reference:
    return Reference(run, torch.arange(1, 65))


def linear_of(name: str, rows: int, columns: int, seed: int = 0) -> LinearWeights:
    fmt = parse_format(name)
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) ** 3
    return LinearWeights("x", fmt, (rows, columns), backend_of(fmt).pack(weight, fmt, torch.device("cpu")), None, None)


@pytest.mark.parametrize("name", sorted(n for n, fmt in FORMATS.items() if fmt.bits < 16 and form_of(fmt, 256)))
def test_blocks_hold_the_weights_of_each_format(name: str) -> None:
    linear = linear_of(name, 12, 256)
    form = form_of(linear.format, 256)
    assert form is not None
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    found, wanted = dequantize(linear_blocks(linear, order), form), linear.dense(torch.float32)[order].numpy()
    if is_exact(linear.format):
        np.testing.assert_array_equal(found, wanted)
    else:  # an offset of fp16 is off by at most half its last place
        offset = (linear.state["scale"].float() * linear.state["zero"].float()).abs().max()
        assert np.abs(found - wanted).max() <= float(offset) * 2**-11 + 1e-7
        assert not np.array_equal(found, wanted)


@pytest.mark.parametrize(("name", "bits"), [("sym2-g64", 4.5), ("sym4-g128", 4.5), ("int3-g64", 4.5), ("sym5-g32", 5.5),
                                            ("int4-g64", 5.5), ("sym6-g64", 8.5), ("sym8-g32", 8.5), ("hqq3", 5.0),
                                            ("hqq5-g128", 6.0)])
def test_blocks_take_the_bits_of_their_form(name: str, bits: float) -> None:
    assert linear_blocks(linear_of(name, 4, 256), None).nbytes * 8 == bits * 4 * 256


def test_extreme_codes_and_zeros_survive() -> None:
    for name in (n for n, fmt in FORMATS.items() if n.endswith("-g32") and form_of(fmt, 64) and is_exact(fmt)):
        linear = linear_of(name, 4, 64)
        codes = torch.arange(4 * 64).view(4, 64) % (1 << linear.format.bits)
        state = backend_of(linear.format).recoded(linear.state, linear.format, codes)
        if "zero" in state:
            state = {**state, "zero": torch.tensor([[0, (1 << linear.format.bits) - 1]] * 4, dtype=torch.uint8)}
        extreme = replace(linear, state=state)
        form = form_of(linear.format, 64)
        assert form is not None
        np.testing.assert_array_equal(dequantize(linear_blocks(extreme, None), form),
                                      extreme.dense(torch.float32).numpy())


def test_files_hold_each_linear_in_its_form(run: FinishedRun) -> None:
    found, weights = names(run.folder / FOLDER / "base.gguf"), weights_of(run)
    layout = layout_of(weights.config)
    assert {t.tensor_type for n, t in found.items() if ".0." in n and "norm" not in n} == {Form.Q4_0}
    for name, linear in weights.linears.items():
        tensor, rows = found[f"{layout.name(name)}.weight"], layout.rows(name)
        dense = linear.dense(torch.float32)
        wanted = (dense if rows is None else dense[rows]).numpy()
        largest = 0 if is_exact(linear.format) else 1e-3
        assert np.abs(dequantize(tensor.data, tensor.tensor_type) - wanted).max() <= largest
    assert "output.weight" not in found  # tied


def test_llama_cpp_computes_the_runs_logits(run: FinishedRun, reference: Reference) -> None:
    rows = {row.what: row for row in LOADER.rows("gguf", run, reference)}
    assert list(rows) == ["gguf, base", "gguf, base with the adapter", "gguf, merged-f16", "gguf, merged-q8_0",
                          "gguf, base-f32", "gguf, base-f32 with the adapter"]
    for what, row in rows.items():
        assert row.largest is not None, row
        assert "f32" not in what or row.largest <= EXACT, row
        assert row.kl is not None
        assert row.kl < KL, row


def test_other_files_differ_from_these_logits(run: FinishedRun, reference: Reference) -> None:
    folder, ids = run.folder / FOLDER, reference.ids.tolist()
    with LlamaCpp(folder / "base-f32.gguf", length=64, exact=True) as model:
        without = torch.from_numpy(model.logits(ids))
    assert (without - reference.own).abs().max() > 10 * EXACT  # so the adapter counts


def test_16_bits_take_the_type_that_holds_them() -> None:
    small = torch.tensor([1e-6, 1.0])
    assert half_form(small.bfloat16()) == Form.BF16
    assert half_form(small.half()) == Form.F16
    assert half_form(torch.tensor([0.5, 3.0]).bfloat16()) == Form.F16
    assert half_form(torch.tensor([1 / 3])) == Form.F16


def test_rows_that_are_no_whole_blocks_have_no_form() -> None:
    fmt = parse_format("hqq4")
    assert form_of(fmt, 96) == Form.Q4_1
    assert form_of(fmt, 80) is None
    assert form_of(parse_format("fp16"), 80) == Form.F16


def test_card_says_how_to_serve_and_what_changes(run: FinishedRun) -> None:
    text = (run.folder / FOLDER / "README.md").read_text()
    for part in ("llama-server -m base.gguf --lora adapter.gguf", "ollama create", "lms import merged-f16.gguf",
                 "offsets of hqq4 are rounded", "in F16 instead of their searched form", "base-f32.gguf"):
        assert part in text
    assert "None" not in text


def test_modelfile_has_the_generation_settings() -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9)
    weights = RunWeights(None, {}, {}, None, settings, None)  # type: ignore[arg-type]
    assert modelfile("m.gguf", weights).splitlines()[:2] == ["FROM ./m.gguf", "PARAMETER temperature 0.6"]
    assert "PARAMETER top_p 0.9" in modelfile("m.gguf", weights)


def test_files_are_those_that_were_asked_for(tmp_path: Path) -> None:
    run = build(Case(1, "llama", True, 2, "float32", ("fp16", "sym5-g64", "sym2-g64", "sym6-g64"), (1,)), tmp_path)
    written = exported(run.folder, ["gguf"], gguf=["base"])
    assert [p.name for p in written] == ["base.gguf", "README.md"]
    assert "llama-server" not in written[1].read_text()


def built(number: int, folder: Path) -> Path:
    return build(Case(number, "llama", True, 2, "float32", ("sym4-g64",), (number,)), folder).folder


def test_files_of_an_earlier_adapter_do_not_stay_beside_new_ones(tmp_path: Path) -> None:
    folder = built(1, tmp_path)
    exported(folder, ["gguf"])
    (folder / FOLDER / "notes.txt").touch()
    exported(built(2, tmp_path), ["gguf"], gguf=["base", "adapter"])
    assert {path.name for path in (folder / FOLDER).iterdir()} == {"base.gguf", "adapter.gguf", "README.md",
                                                                  "notes.txt"}


def test_a_file_that_is_added_leaves_the_others_and_their_commands(tmp_path: Path) -> None:
    folder = built(1, tmp_path)
    exported(folder, ["gguf"], gguf=["base", "adapter", "merged-q8_0"])
    exported(folder, ["gguf"], gguf=["base-f32"])
    text = (folder / FOLDER / "README.md").read_text()
    for part in ("`merged-q8_0.gguf`", "`base-f32.gguf`", "llama-server -m base.gguf --lora adapter.gguf", "ollama"):
        assert part in text
    printed = commands(FinishedRun.read(folder))
    assert [line.partition("):")[0] for line in printed] == ["Talk to it (gguf", "Talk to it (Ollama"]


def test_commands_name_files_that_are_there(tmp_path: Path) -> None:
    folder = built(1, tmp_path)
    exported(folder, ["gguf"], gguf=["merged-q8_0"])
    server, _ = commands(FinishedRun.read(folder))  # whose export.gguf lists other files
    named = [Path(word) for word in shlex.split(server) if word.endswith(".gguf")]
    assert [path.name for path in named] == ["merged-q8_0.gguf"]
    assert all(path.is_file() for path in named)


def test_the_check_of_the_readme_leaves_the_files(tmp_path: Path) -> None:
    folder = built(1, tmp_path)
    files = {path: path.read_bytes() for path in exported(folder, ["gguf"], gguf=["merged-q8_0"])}
    [check] = re.findall("`python -m qra_bo (task=export .*)` measures", (folder / FOLDER / "README.md").read_text())
    config = load_config(shlex.split(check))
    assert config.export.check is True
    exported(folder, config.export.targets or SMALL, gguf=config.export.gguf)
    assert {path: path.read_bytes() for path in (folder / FOLDER).iterdir()} == files


def merged_values(linear: LinearWeights, form: Form) -> Any:
    return dequantize(quantize(linear.merged(torch.float32).numpy(), form), form)


def test_merged_file_keeps_linears_without_adapter(run: FinishedRun) -> None:
    weights, layout = weights_of(run), layout_of(weights_of(run).config)
    found = names(run.folder / FOLDER / "merged-q8_0.gguf")
    for name, linear in weights.linears.items():
        tensor, rows = found[f"{layout.name(name)}.weight"], layout.rows(name)
        wanted = torch.from_numpy(merged_values(linear, Form.Q8_0)) if linear.lora else linear.dense(torch.float32)
        values = dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(values, (wanted if rows is None else wanted[rows]).numpy())
        assert (tensor.tensor_type == Form.Q8_0) == (linear.lora is not None or linear.format.bits > 5)


@pytest.mark.parametrize("embeddings", [16, 6])
def test_plan_states_the_bytes_of_each_files_tensors(embeddings: int, tmp_path: Path) -> None:
    formats, ranks = ("sym4-g64", "int3-g32", "sym8-g64", "fp16"), (3, 2, 5, 8)
    folder = finish(tmp_path / "run", formats, ranks, RTN, FP32, f"embeddings={embeddings}")
    spec = make_spec(load_config([*SETTINGS, RTN]))
    space = SearchSpace(make_units(spec, "layer"), tuple(sorted(map(parse_format, formats), key=lambda f: f.bits)),
                        Ladder("ranks", (2, 3, 5, 8)))
    memory = MemoryModel(spec, TrainShape(2, 32, embeddings=embeddings))
    stated = gguf_bytes(memory, space, Allocation(formats, ranks))
    exported(folder, ["gguf"], gguf=list(stated))
    for name, size in stated.items():
        path = folder / FOLDER / f"{name}.gguf"
        assert sum(int(t.n_bytes) for t in names(path).values()) == size
        assert size < path.stat().st_size < size + 20_000
