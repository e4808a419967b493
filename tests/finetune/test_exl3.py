"""EXL3: tiles against a decode by plain loops over the bits of the published layout; folders against dense models of
the same weights, trained, saved and loaded again; damaged folders."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qra_bo
from qra_bo.config import load_config
from qra_bo.export.registry import check_exports, export_all
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.memory_probe import PeakTracker
from qra_bo.finetune.quantization import exl3, fused_unpack
from qra_bo.finetune.quantization.base import PackedLinear, backend_of, storage_bytes
from qra_bo.finetune.quantization.exl3 import Exl3Table
from qra_bo.finetune.quantization.stored_model import load_stored
from qra_bo.memory.formats import matrix_bytes, parse_format, scratch_bytes
from qra_bo.pipeline.pricing import make_plan
from qra_bo.pipeline.run import run
from qra_bo.utils.errors import ConfigError, ModelError
from tests.executors import work_in_this_process
from tests.finetune.kernels import run_with_triton
from tests.finetune.packed_folders import Packed, write
from tests.finetune.quantization.test_stored import assert_head
from tests.finetune.test_packed_folders import assert_equal, cut, formats, mutated, node, scaled
from tests.pipeline.test_stored_run import overrides

MARKS = {"mul1": 0x83DCD12D, "mcg": 0xCBAC1FED}
NAMES = [f"exl3-{book}-{half / 2:g}" for book in ("mul1", "mcg", "3inst") for half in range(2, 17)
         if half % 2 == 0 or book == "mul1"]


@cache
def value(book: str, state: int) -> Any:
    """Decode one state as ``decode_3inst`` of ``codebook.cuh`` does."""
    def half(bits: int) -> Any:
        return np.array([bits], np.uint16).view(np.float16)[0]

    if book == "mul1":
        octets = (state * MARKS[book] % 2**32).to_bytes(4, "little")
        return np.float16(float(half(0x6400 + sum(octets))) * float(half(0x1EEE)) + float(half(0xC931)))
    product = (state * MARKS["mcg"] if book == "mcg" else state * 89226354 + 64248484) % 2**32
    both = product & 0x8FFF8FFF ^ 0x3B603B60
    return half(both & 0xFFFF) + half(both >> 16)


def inner(trellis: Tensor, book: str) -> Any:
    """Return the values of tiles, ``in x out``: the ring of each is read bit by bit."""
    words = trellis.numpy().view(np.uint32)
    whole, half = divmod(words.shape[2] // 4, 2)
    out = np.empty((16 * words.shape[0], 16 * words.shape[1]), np.float32)
    for i, j in np.ndindex(*words.shape[:2]):
        ring = "".join(f"{word:032b}" for word in words[i, j])
        end = 0
        for lane in range(32):
            for part in range(8):
                end += whole + (half and part % 2)
                state = (ring[-16:] + ring)[end:end + 16]
                row = lane % 4 * 2 + part % 2 + (8 if part & 2 else 0)
                out[16 * i + row, 16 * j + lane // 4 + (8 if part & 4 else 0)] = value(book, int(state, 2))
    return out


def hadamard(matrix: Any) -> Any:
    """Multiply blocks of 128 rows by the natural-order Hadamard matrix, unscaled, a pair of rows at a time."""
    out = matrix.copy()
    for step in (1, 2, 4, 8, 16, 32, 64):
        for row in (row for row in range(len(out)) if not row & step):
            out[row], out[row + step] = out[row] + out[row + step], out[row] - out[row + step]
    return out


def plain(state: Mapping[str, Tensor], book: str, rows: int, width: int) -> Tensor:
    """Return the weight, ``rows x width``, by loops alone."""
    turned = hadamard(hadamard(inner(state["codes"], book)).T)
    weight = turned * state["suh"].float().numpy() * (state["svh"].float().numpy() / 128)[:, None]
    return torch.from_numpy(weight[:rows, :width])


def drawn(name: str, rows: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Return random packed tensors."""
    empty, draw = backend_of(parse_format(name)).empty_state(parse_format(name), (rows, width), torch.float32), \
        torch.Generator().manual_seed(seed)
    codes = torch.randint(-2**15, 2**15, empty["codes"].shape, generator=draw).short()
    return {"codes": codes, **{key: ((torch.rand(empty[key].shape, generator=draw) - 0.5) / 4).half()
                               for key in ("suh", "svh")}}


def layer_of(name: str, rows: int, width: int, dtype: torch.dtype = torch.float32) -> PackedLinear:
    fmt = parse_format(name)
    return backend_of(fmt).build(drawn(name, rows, width), fmt, (rows, width), torch.ones(rows), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_weights_equal_plain_loops_bit_for_bit(name: str) -> None:
    layer = layer_of(name, 120, 100)
    assert torch.equal(layer.unpack(), plain(layer.packed_state(), name.split("-")[1], 120, 100))


def test_tiles_of_a_head_are_rows_of_the_whole() -> None:
    name = "exl3-mul1-2.5"
    state, fmt = drawn(name, 700, 200), parse_format(name)
    table, dense = Exl3Table(state, fmt, (700, 200), torch.float32), plain(state, "mul1", 700, 200)
    assert torch.equal(table.unpack(), dense)
    assert torch.equal(table.tile(130, 515), dense[130:515])
    assert_head(table, dense)


@pytest.mark.parametrize("name", ["exl3-mul1-3.5", "exl3-mcg-8", "exl3-3inst-1"])
@pytest.mark.parametrize("shape", [(2000, 300), (120, 4096)])
def test_bytes_and_scratch_are_predicted(name: str, shape: tuple[int, int]) -> None:
    layer, fmt = layer_of(name, *shape, dtype=torch.bfloat16), parse_format(name)
    assert sum(matrix_bytes(fmt, *shape)) == storage_bytes(layer.packed_state().values())
    with PeakTracker() as tracker:
        tracker.track(layer.packed_state().values())
        before = tracker.live_bytes
        dense = layer.unpack()
    assert scratch_bytes(fmt, *shape, "cpu", 2) == pytest.approx(tracker.peak_bytes - before - dense.nbytes, abs=2**15)
    layer.target = torch.device("cpu")
    assert layer.to("meta").unpack().shape == shape
    with pytest.raises(ConfigError, match="codes=stored"):  # they are read and never made
        backend_of(fmt).pack(dense, fmt, torch.device("cpu"))


INTERPRETED = """
import torch
from qra_bo.finetune.quantization.exl3 import Exl3Backend, unpacked
from qra_bo.finetune.quantization.exl3_kernel import fused_unpack
from qra_bo.memory.file_formats import EXL3
from qra_bo.memory.formats import parse_format

draw = torch.Generator().manual_seed(3)
for fmt in map(parse_format, EXL3):
    for shape, rows, dtype in (((120, 100), range(120), torch.float32), ((300, 260), range(130, 290), torch.float16)):
        empty = Exl3Backend().empty_state(fmt, shape, dtype)
        state = {name: torch.randn(tensor.shape, generator=draw).half() for name, tensor in empty.items()}
        state["codes"] = torch.randint(-2**15, 2**15, empty["codes"].shape, generator=draw).short()
        found = fused_unpack(state, fmt, rows, shape[1], dtype)
        assert torch.equal(found, unpacked(state, fmt, rows, shape[1], dtype)), (fmt.name, shape)
"""
COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from qra_bo.finetune.quantization.exl3_kernel import WARPS, unpack_kernel
from qra_bo.memory.file_formats import CODEBOOKS, EXL3, STRIP

types = {"codes": "*u32", "suh": "*fp16", "svh": "*fp16", "out": "*bf16", "first": "i32", "last": "i32",
         "width": "i32", "tiles": "i32"}
for name in ("exl3-mul1-2.5", "exl3-mul1-4", "exl3-mcg-3", "exl3-3inst-8"):
    book, half_bits = EXL3[name]
    fixed = {"HALF_BITS": half_bits, "BOOK": book, "FACTOR": CODEBOOKS[book], "STRIP": STRIP}
    source = ASTSource(unpack_kernel, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed)
    for capability in (75, 80, 86, 89, 90):
        made = compile(source, GPUTarget("cuda", capability, 32), options={"num_warps": WARPS})
        assert made.asm["cubin"], (name, capability)
        assert made.metadata.shared <= 64 * 1024, (name, capability)  # what every such card gives a program
"""


@pytest.mark.parametrize(("code", "interpret"), [
    (INTERPRETED, "1"), pytest.param(COMPILED, "0", marks=pytest.mark.slow)])
def test_kernel_has_the_bits_of_the_operators_and_compiles(code: str, interpret: str) -> None:
    run_with_triton(code, interpret)


def test_kernel_is_compared_on_few_strips_and_runs_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device, entered, calls = torch.device("cuda", 1), list[torch.device](), list[tuple[str, range]]()

    @contextmanager
    def enter(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    def path(name: str, _state: Any, _fmt: Any, rows: range, *_more: Any) -> Tensor:
        calls.append((name, rows))
        return torch.zeros(len(rows))

    kernel: Any = SimpleNamespace(fused_unpack=partial(path, "kernel"))
    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setitem(sys.modules, "qra_bo.finetune.quantization.exl3_kernel", kernel)
    monkeypatch.setattr(exl3, "_by_operators", partial(path, "operators"))
    monkeypatch.setattr(fused_unpack, "compared", {})
    state: Any = {"codes": SimpleNamespace(device=device)}
    for _ in range(2):
        weight = exl3.unpacked(state, parse_format("exl3-mul1-3"), range(130, 700), 16000, torch.float32)
        assert len(weight) == 570
    few = range(130, 130 + 256)  # what operators unpack at a time
    assert calls == [("operators", few), ("kernel", few), ("kernel", range(130, 700)), ("kernel", range(130, 700))]
    assert set(entered) == {device}


KINDS = {"q_proj": "mul1-4", "k_proj": "mul1-2.5", "v_proj": "mcg-5", "gate_proj": "3inst-3", "up_proj": "mul1-1",
         "down_proj": "mul1-8", "lm_head": "mul1-6"}


def pack(name: str, weight: Tensor, generator: torch.Generator, kinds: Mapping[str, str] = KINDS) -> Packed:
    """Pack a linear by its name; ``o_proj`` stays dense."""
    kind = kinds.get(name.rpartition(".")[2])
    if kind is None:
        return {"weight": weight}, weight.float()
    book, state = kind.partition("-")[0], drawn(f"exl3-{kind}", *weight.shape, seed=generator.initial_seed())
    mark = {book: torch.tensor(MARKS[book] - 2**32, dtype=torch.int32)} if book in MARKS else {}
    dense = plain(state, book, *weight.shape)
    return {"trellis": state.pop("codes"), **state, **mark}, dense


def write_exl3(folder: Path, tied: bool = False, kinds: Mapping[str, str] = KINDS) -> Any:
    """Write a folder as exllamav3 does: the head is packed, also where it shares weights, and biases are padded."""
    marks = {"quant_method": "exl3", "version": "1.6", "bits": 3.4, "head_bits": 6}
    dense = write(folder, marks, partial(pack, kinds=kinds), tied)
    found = load_file(folder / "model.safetensors")
    head, weight = pack("lm_head", dense.lm_head.weight, torch.Generator())
    dense.lm_head.weight = nn.Parameter(weight, requires_grad=False)
    found |= {f"lm_head.{key}": tensor for key, tensor in head.items()}
    found.pop("lm_head.weight", None)
    found |= {name: nn.functional.pad(bias, (0, -len(bias) % 128)) for name, bias in found.items()
              if name.endswith(".bias") and f"{name[:-5]}.trellis" in found}
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return dense


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exl3") / "m"
    write_exl3(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_gradients_equal_those_of_the_weights(tmp_path: Path, tied: bool) -> None:
    dense = write_exl3(tmp_path / "m", tied)
    stored = load_stored(node(tmp_path / "m"), torch.float32)[0].float()
    assert formats(stored) == {"fp16", *(f"exl3-{kind}" for part, kind in KINDS.items() if part != "lm_head")}
    assert stored.lm_head.table.fmt.name == "exl3-mul1-6"
    assert not stored.config.tie_word_embeddings
    assert_equal(stored, dense)


@pytest.mark.parametrize(("ends", "said"), [
    ({"mlp.up_proj.trellis": cut}, "trellis"), ({"mlp.up_proj.trellis": lambda t: t.int()}, "trellis"),
    ({"mlp.gate_proj.trellis": lambda t: t[..., :17]}, "trellis"), ({"mlp.up_proj.trellis": lambda _: None}, "trellis"),
    ({"mlp.gate_proj.trellis": lambda t: t[..., :40]}, "exl3-3inst-2.5"),
    ({"mlp.up_proj.suh": lambda _: None}, "suh"), ({"mlp.up_proj.suh": scaled}, "finite"),
    ({"mlp.up_proj.svh": cut}, "svh"), ({"mlp.up_proj.svh": lambda t: t.float()}, "svh"),
    ({"mlp.up_proj.svh": lambda t: t * float("nan")}, "finite"), ({"mlp.up_proj.mul1": lambda t: t + 1}, "mul1"),
    ({"mlp.up_proj.mul1": lambda t: t.view(1)}, "mul1"), ({"self_attn.v_proj.mcg": lambda t: t.long()}, "mcg"),
    ({"self_attn.k_proj.bias": lambda t: t[:64]}, "bias")])
def test_damaged_folders_are_refused_in_one_sentence(whole: Path, tmp_path: Path, ends: Mapping[str, Any],
                                                     said: str) -> None:
    shutil.copytree(whole, tmp_path / "m")
    mutated(tmp_path / "m", {}, ends)
    with pytest.raises(ModelError, match=said) as caught:
        load_stored(node(tmp_path / "m"), torch.float32)
    assert "\n" not in str(caught.value)


def test_tensors_of_another_codebook_or_place_are_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "m")
    found = load_file(tmp_path / "m" / "model.safetensors")
    for more, said in (("mlp.up_proj.mcg", "mul1 and mcg"), ("mlp.up_proj.su", "mlp.up_proj.su")):
        extra = {f"model.layers.0.{more}": found["model.layers.0.self_attn.v_proj.mcg"].clone()}
        save_file(found | extra, tmp_path / "m" / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=said):
            load_stored(node(tmp_path / "m"), torch.float32)


def test_plan_counts_padding_and_the_head(whole: Path) -> None:
    facts = json.loads(json.dumps(make_plan(load_config(overrides(whole, "task=memory"))).to_json()))["stored"]
    found = load_file(whole / "model.safetensors")
    sizes = [t.nbytes for name, t in found.items() if name.rpartition(".")[2] in ("trellis", "suh", "svh")
             or name.endswith("o_proj.weight")]
    (own,) = facts["files"].values()
    assert sum(own["unit_bytes"]) == sum(sizes) - sum(found[f"lm_head.{x}"].nbytes for x in ("trellis", "suh", "svh"))
    assert facts["tables"] == ["exl3-mul1-6"]


def test_runs_are_trained_saved_and_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_in_this_process(monkeypatch)
    write_exl3(tmp_path / "m", tied=True)
    best = run(load_config(overrides(tmp_path / "m", f"out={tmp_path / 'run'}"))).best
    (own,) = best["stored"]["files"].values()
    assert formats(qra_bo.load(tmp_path / "run")[0]) == set(own["types"].values())
    assert not (tmp_path / "run" / "packed.safetensors").exists()
    assert best["memory"]["measured_bytes"] == pytest.approx(best["memory"]["predicted_bytes"], rel=0.03)
    export_all(FinishedRun.read(tmp_path / "run"), ["merged", "vllm"])
    assert str(tmp_path / "m") not in (tmp_path / "run" / "export" / "vllm" / "serve.txt").read_text()  # it has no EXL3
    rows = {row.what: row for row in check_exports(FinishedRun.read(tmp_path / "run"))}
    assert rows["manifest and adapter"].largest == 0
    assert rows["merged"].kl is not None and rows["merged"].kl <= 0.01  # noqa: PT018
    tensors = load_file(file := tmp_path / "m" / "model.safetensors")
    for name in ("lm_head.trellis", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.suh"):
        changed = tensors[name].clone()
        changed.view(-1)[3:5] = changed.view(-1)[3:5].flip(0) + 1
        save_file({**tensors, name: changed}, file, {"format": "pt"})
        with pytest.raises(ModelError, match=r"lm_head|embeddings|up_proj"):
            qra_bo.load(tmp_path / "run")
