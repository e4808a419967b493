"""GGUF files of a finished run, tensor by tensor: the base as it was trained on, its adapter, both merged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGUFWriter
from gguf import GGMLQuantizationType as Form
from gguf.quants import quantize
from torch import Tensor

from qra_bo.export.gguf_blocks import BLOCK, Array, form_of, linear_blocks
from qra_bo.export.gguf_layout import Layout
from qra_bo.export.gguf_tokenizer import Vocabulary, add_vocabulary
from qra_bo.export.weights import LinearWeights, RunWeights
from qra_bo.space.decoder import stack_of

SAMPLING = {"temperature": ("temp", "temperature"), "top_k": ("top_k", "top_k"), "top_p": ("top_p", "top_p"),
            "min_p": ("min_p", "min_p"), "repetition_penalty": ("penalty_repeat", "repeat_penalty")}
"""Settings of transformers' generation configuration: the end of GGUF's key and Ollama's name of each."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its form, its shape (transformers' order) and a function that makes its bytes."""

    name: str
    form: Form
    shape: tuple[int, ...]
    make: Callable[[], Array]


@dataclass(frozen=True)
class Source:
    """What the files are made from: tensors of the run, layout of its decoder, its vocabulary."""

    weights: RunWeights
    layout: Layout
    vocabulary: Vocabulary
    title: str

    @property
    def name(self) -> str:
        """The model's name in the header."""
        return self.vocabulary.title(self.title)

    def write_model(self, path: Path, adapted: Form | None = None, dense: bool = False) -> None:
        """Write a model.

        Args:
            path: Of the file.
            adapted: Form of the linears that have an adapter, which is merged into them; ``None``: no adapter.
            dense: Whether every weight is unpacked to F32.
        """
        writer = GGUFWriter(None, MODEL_ARCH_NAMES[self.layout.architecture])
        writer.add_type("model")
        writer.add_name(self.name)
        writer.add_quantization_version(2)
        self.layout.add_keys(writer)
        ends = getattr(self.weights.generation_config, "eos_token_id", None)
        add_vocabulary(writer, self.vocabulary, self.weights.tokenizer, [ends] if isinstance(ends, int) else ends or ())
        for setting, (key, _) in SAMPLING.items():  # by their keys: gguf has methods for them from 0.18 on
            if (value := getattr(self.weights.generation_config, setting, None)) is not None:
                (writer.add_int32 if setting == "top_k" else writer.add_float32)(f"general.sampling.{key}", value)
        _write(writer, path, [*self._others(dense), *self._linears(adapted, dense)])

    def write_adapter(self, path: Path) -> None:
        """Write the adapter: ``lora_b`` holds alpha / rank, so that one scale of 1 is right for all ranks."""
        writer = GGUFWriter(None, MODEL_ARCH_NAMES[self.layout.architecture])
        writer.add_type("adapter")
        writer.add_name(f"{self.name}, adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 0.0)  # llama.cpp then multiplies by its own scale, 1, alone
        entries = []
        for name, stack, rows in self._stacks():
            if pairs := [linear.lora for linear in stack if linear.lora is not None]:
                down, up = [pair.down for pair in pairs], [pair.scale * pair.up[rows] for pair in pairs]
                entries += [_dense_entry(f"{name}.weight.lora_{part}", torch.stack(both).squeeze(0), Form.F32)
                            for part, both in (("a", down), ("b", up))]
        _write(writer, path, entries)

    def _others(self, dense: bool) -> Iterator[Entry]:
        for name, tensor in self.weights.others.items():
            if name == "lm_head.weight" and self.weights.config.tie_word_embeddings:
                continue
            packed = self.weights.tables.get(name.removesuffix(".weight"))
            if packed is not None and not dense:  # formats of embeddings have a form
                yield _packed_entry(self.layout.name(name), [packed], torch.arange(packed.shape[0]))
                continue
            value = self.layout.shifted(name, tensor)
            router = name.endswith(".mlp.gate.weight")  # rounded inputs would choose other experts
            form = Form.F32 if dense or router or value.ndim == 1 else half_form(value)
            yield _dense_entry(self.layout.name(name), value, form)
        for name, table in self.layout.tables().items():
            yield _dense_entry(name, table, Form.F32)

    def _linears(self, adapted: Form | None, dense: bool) -> Iterator[Entry]:
        for name, stack, rows in self._stacks():
            linear = stack[0]
            merged = adapted is not None and linear.lora is not None
            if merged or dense or linear.format.backend == "none":
                form = Form.F32 if dense else _dense_form(stack, adapted if merged else None)
                yield _entry(f"{name}.weight", form, stack, rows, partial(_dense_bytes, merged=merged, form=form))
            else:
                yield _packed_entry(f"{name}.weight", stack, rows)
            if linear.bias is not None:
                yield _dense_entry(f"{name}.bias", linear.bias[rows], Form.F32)

    def _stacks(self) -> Iterator[tuple[str, list[LinearWeights], Tensor]]:
        """Yield GGUF's tensors of linears: name, linear (of a mixture those of all experts), and the rows of each."""
        stacks: dict[str, list[LinearWeights]] = {}
        for module, linear in self.weights.linears.items():
            stacks.setdefault(stack_of(module), []).append(linear)
        for stack in stacks.values():
            assert len({linear.format for linear in stack}) == 1, "units hold all experts of a layer"
            for name, rows in self.layout.parts(stack[0].name, stack[0].shape[0]):
                yield name, stack, rows


def half_form(tensor: Tensor) -> Form:
    """Return the form of 16 bits of a tensor: BF16 where that holds its values and F16 does not, else F16."""
    whole = tensor.float()
    exact = {kind: torch.equal(whole.to(kind).float(), whole) for kind in (torch.float16, torch.bfloat16)}
    return Form.BF16 if exact[torch.bfloat16] and not exact[torch.float16] else Form.F16


def _dense_form(stack: Sequence[LinearWeights], adapted: Form | None) -> Form:
    if adapted is None:  # one form for all: BF16 where one of them needs it
        return max(half_form(linear.state["codes"]) for linear in stack)
    return Form.F16 if stack[0].shape[1] % BLOCK else adapted


def _dense_bytes(linear: LinearWeights, rows: Tensor, *, merged: bool, form: Form) -> Array:
    return _bytes((linear.merged(torch.float32) if merged else linear.dense(torch.float32))[rows], form)


def _packed_entry(name: str, stack: Sequence[LinearWeights], rows: Tensor) -> Entry:
    form = form_of(stack[0].format, stack[0].shape[1])
    assert form is not None, "formats without a form are refused before a file is written"
    return _entry(name, form, stack, rows, linear_blocks)


def _entry(name: str, form: Form, stack: Sequence[LinearWeights], rows: Tensor,
           make: Callable[[LinearWeights, Tensor], Array]) -> Entry:
    """Return the tensor of some rows of a linear, or of a stack of linears."""
    shape = (len(stack), len(rows), stack[0].shape[1])[len(stack) == 1:]
    return Entry(name, form, shape, lambda: np.concatenate([make(linear, rows) for linear in stack]))


def _dense_entry(name: str, tensor: Tensor, form: Form) -> Entry:
    return Entry(name, form, tuple(tensor.shape), partial(_bytes, tensor, form))


def _bytes(tensor: Tensor, form: Form) -> Array:
    """Return the bytes of a tensor in a dense form or in Q8_0, in its own shape but for the last side."""
    if form == Form.BF16:
        return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint8)
    found: Array = quantize(tensor.float().contiguous().numpy(), form)
    return found.view(np.uint8)


def _write(writer: GGUFWriter, path: Path, entries: list[Entry]) -> None:
    """Write a file; one tensor at a time is in memory."""
    for entry in entries:
        block, size = GGML_QUANT_SIZES[entry.form]
        byte_shape = (*entry.shape[:-1], entry.shape[-1] // block * size)
        writer.add_tensor_info(entry.name, byte_shape, np.dtype(np.uint8), int(np.prod(byte_shape)), entry.form)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        writer.write_tensor_data(entry.make())
    writer.close()
