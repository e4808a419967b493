"""A model of transformers over the tensors of a GGUF file as they are stored: no weight matrix is ever made dense.

Linears, embedding and head are views of the mapped file; norms and biases are dequantised. Llama's files have the rows
of q and k in another order than transformers: their blocks are copied in transformers' order.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from qra_bo.finetune.models.gguf_header import Header, stored_header, tensor_of
from qra_bo.finetune.models.gguf_reading import reading_gguf
from qra_bo.finetune.models.load import gguf_config, gguf_of, load_tokenizer, without_dropout
from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.finetune.quantization.embeddings import embedding_modules, put_tables
from qra_bo.finetune.quantization.stored import StoredLinear, StoredTable, finite
from qra_bo.memory.formats import parse_format
from qra_bo.memory.stored import TYPES
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ModelError

ROPE = "rope_freqs.weight"
"""Divisors of the rotary embedding's frequencies, by which llama.cpp stretches Llama 3.1's context."""
_PLAIN = ("F32", "F16", "BF16")
"""Types of norms and biases."""


def load_stored(model_cfg: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model of a node of ``conf/model`` that names a GGUF file, on the CPU, and its tokenizer. Unpacked
    weights, norms and biases have the type ``dtype``. Raises ``ModelError`` if the file is damaged or not read here."""
    path = gguf_of(model_cfg)
    with reading_gguf():
        header, config, tokenizer = stored_header(path), gguf_config(path), load_tokenizer(model_cfg)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    _fill(model, header, dtype)
    model.name_or_path = config._name_or_path = str(path)
    without_dropout(model.requires_grad_(False).eval())
    return model, tokenizer


def _fill(model: Any, header: Header, dtype: torch.dtype) -> None:
    """Put every tensor of a file in its place in a model on the meta device."""
    config, left, decoder = model.config, set(header.tensors), model.get_decoder()
    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=config.to_dict())
    tables, (embedding, head) = {}, embedding_modules(model)

    def taken(tensor: Any, array: Any, whole: Callable[[Tensor], Any]) -> Tensor:
        left.remove(tensor.name)
        values = torch.from_numpy(processor.process(array, tensor.name).weights)
        if not whole(values):
            raise ModelError(f"{tensor.name} of {header.path} has numbers that are not finite: the file is damaged; "
                             "copy or download it again")
        return values

    def dense(tensor: Any) -> Tensor:
        return taken(tensor, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32),
                     lambda values: torch.isfinite(values).all())

    decoder.rotary_emb = type(decoder.rotary_emb)(config)  # its tables, which the meta device emptied
    frequencies, scaling = decoder.rotary_emb.inv_freq, header.value("rope.scaling.type", "none")
    turned = header.value("rope.dimension_count", 2 * len(frequencies))
    if turned != 2 * len(frequencies) or scaling != "none":
        raise ModelError(f"{header.path} turns {turned} columns of a head, scaled by {scaling!r}, and transformers' "
                         f"{config.model_type} {2 * len(frequencies)} without scaling; choose another model")
    if ROPE in left:
        frequencies /= dense(header.tensors[ROPE])
    for name, parameter in list(model.named_parameters()):
        place, _, leaf = name.rpartition(".")
        module, shape, packed = model.get_submodule(place), tuple(parameter.shape), parameter.ndim == 2
        tensor = tensor_of(header, config.num_hidden_layers, name, shape, tuple(TYPES) if packed else _PLAIN)
        if not packed:
            setattr(module, leaf, nn.Parameter(dense(tensor).to(dtype), requires_grad=False))
            continue
        fmt = parse_format(tensor.tensor_type.name)
        state = {"codes": taken(tensor, tensor.data.view(np.uint8).reshape(shape[0], -1), partial(finite, fmt=fmt))}
        if place in (embedding, head):
            tables[place] = StoredTable(state, fmt, shape, dtype)
        else:
            model.set_submodule(place, backend_of(fmt).build(state, fmt, shape, module.bias, dtype))
    if left:
        raise ModelError(f"{header.path} holds {min(left)}, for which transformers' {config.model_type} has no place; "
                         "choose another file of this model")
    put_tables(model, tables[embedding], tables.get(head, tables[embedding]))


def stored_state(model: Any, name: str, fmt: StorageFormat) -> State:
    """Return the blocks of a stored linear or table of this type; empty where the model has none."""
    module = dict(model.named_modules()).get(name)
    holder = getattr(module, "table", module)
    return holder.packed_state() if isinstance(holder, StoredLinear | StoredTable) and holder.fmt == fmt else {}
