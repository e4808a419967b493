"""A model of transformers over the codes of a GGUF file, or of a folder that a quantiser packed, as they are stored: no
packed matrix is ever made dense.

Linears, embedding and head of a GGUF file are views of the mapped file; norms and biases are dequantised. Llama's files
have the rows of q and k in another order than transformers: their blocks are copied in transformers' order. Of a folder
the linears alone are packed, of EXL3's the head too.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import gguf
import numpy as np
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

from qra_bo.finetune.models.files import bases_of
from qra_bo.finetune.models.gguf_header import ROPE, Header, check_rotary, stored_header, tensor_of
from qra_bo.finetune.models.gguf_reading import reading_gguf
from qra_bo.finetune.models.hub import is_on_hub
from qra_bo.finetune.models.load import gguf_config, gguf_of, load_tokenizer, packed_folder_of, without_dropout
from qra_bo.finetune.models.packed_folder import FLOATS, LEAVES, PackedFolder, format_in
from qra_bo.finetune.quantization.base import Packed, State, backend_of
from qra_bo.finetune.quantization.embeddings import embedding_modules, put_head, put_tables
from qra_bo.finetune.quantization.exl3 import Exl3Table
from qra_bo.finetune.quantization.folder_states import state_in, values
from qra_bo.finetune.quantization.stored import StoredTable, finite
from qra_bo.memory.file_formats import TYPES, in_strips
from qra_bo.memory.formats import parse_format
from qra_bo.space import StorageFormat
from qra_bo.space.decoder import check_sizes
from qra_bo.utils.errors import ModelError


def load_stored(model_cfg: Mapping[str, Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """Return the model of a node of ``conf/model`` whose codes are stored, on the CPU, and its tokenizer. Unpacked
    weights, norms and biases have the type ``dtype``, but for what a folder has in its own. Raises ``ModelError`` if a
    file is damaged or not read here."""
    with reading_gguf():
        return _model(bases_of(model_cfg)[0], dtype), load_tokenizer(model_cfg)


def load_others(model_cfg: Mapping[str, Any], dtype: torch.dtype) -> list[Any]:
    """Return the models of the files or folders beside the base of such a node, likewise."""
    return [_model(other, dtype) for other in bases_of(model_cfg)[1:]]


def _model(model_cfg: Mapping[str, Any], dtype: torch.dtype) -> Any:
    if model_cfg.get("gguf_file") is None:
        folder = packed_folder_of(model_cfg)
        path, config = folder.path, AutoConfig.from_pretrained(str(folder.path))
        del config.quantization_config  # a mark that refuses trainers and saving
        fill = partial(_fill_from_folder, folder=folder, dtype=dtype)
    else:
        path = gguf_of(model_cfg)
        with reading_gguf():
            header, config = stored_header(path), gguf_config(path)
        fill = partial(_fill, header=header, dtype=dtype)
    check_sizes(config)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()  # each became a tensor of its own
    fill(model)
    model.name_or_path = config._name_or_path = str(model_cfg["path"] if is_on_hub(model_cfg) else path)
    if is_on_hub(model_cfg):  # as of a dense base: what is saved names the repository, not this machine's cache
        config._commit_hash = (path if path.is_dir() else path.parent).name
    without_dropout(model.requires_grad_(False).eval())
    return model


def _fill_from_folder(model: Any, folder: PackedFolder, dtype: torch.dtype) -> None:
    """Put every tensor of a folder in its place in a model without weights."""
    left, tables = set(folder.tensors), embedding_modules(model)
    with suppress(OSError):  # not every folder has one
        model.generation_config = GenerationConfig.from_pretrained(str(folder.path))
    if folder.packs(head := tables[1]):
        rows, columns = model.get_output_embeddings().weight.shape
        fmt = parse_format(format_in(folder, head, rows, columns))
        put_head(model, Exl3Table(state_in(folder, head, fmt, (rows, columns)), fmt, (rows, columns), dtype))
        model.config.tie_word_embeddings = False
        left -= {f"{head}.{part}" for part in LEAVES}
    for name, parameter in list(model.named_parameters()):
        place, _, leaf = name.rpartition(".")
        module, shape = model.get_submodule(place), tuple(parameter.shape)
        if isinstance(module, nn.Linear) and leaf == "weight" and place not in tables:
            fmt = parse_format(format_in(folder, place, *shape))
            state = state_in(folder, place, fmt, shape)
            model.set_submodule(place, backend_of(fmt).build(state, fmt, shape, module.bias, dtype))
            left -= {name} if fmt.backend == "none" else {f"{place}.{part}" for part in LEAVES}
        else:
            folder.sides(name, FLOATS, *(map(in_strips, shape) if folder.packs(place) else shape))
            setattr(module, leaf, nn.Parameter(values(folder, name)[:shape[0]], requires_grad=False))
            left.discard(name)
    if model.config.tie_word_embeddings:
        model.get_output_embeddings().weight = shared = model.get_input_embeddings().weight
        left -= {name for name in left & {f"{head}.weight"} if torch.equal(values(folder, name), shared)}
    left = {name for name in left if not (name.endswith("rotary_emb.inv_freq")  # some hold it, and biases of zero
                                          or (name.endswith(".bias") and not values(folder, name).any()))}
    if left:
        raise ModelError(f"{folder.path} holds {min(left)}, for which transformers' {model.config.model_type} has no "
                         "place; choose another model")


def _fill(model: Any, header: Header, dtype: torch.dtype) -> None:
    """Put every tensor of a GGUF file in its place in a model without weights."""
    config, left = model.config, header.tensors.keys() - {ROPE}
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

    check_rotary(model, header)
    for name, parameter in list(model.named_parameters()):
        place, _, leaf = name.rpartition(".")
        module, shape, packed = model.get_submodule(place), tuple(parameter.shape), parameter.ndim == 2
        tensor = tensor_of(header, config.num_hidden_layers, name, shape, tuple(TYPES) if packed else FLOATS)
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
    """Return the packed tensors of a stored linear or table of this format; empty where the model has none."""
    module = dict(model.named_modules()).get(name)
    holder = getattr(module, "table", module)
    return holder.packed_state() if isinstance(holder, Packed) and holder.fmt == fmt else {}
