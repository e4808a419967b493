"""Packing of a model's embedding and head, in place; a head that shares the embedding's weights shares its table."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qra_bo.finetune.quantization.base import State, backend_of
from qra_bo.finetune.quantization.tables import PackedEmbedding, PackedHead, PackedTable
from qra_bo.memory.embeddings import embedding_format
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ModelError


def pack_embeddings(model: Any, bits: int, compute_dtype: torch.dtype, device: torch.device, *,
                    keep_dense: bool = False) -> None:
    """Replace the embedding and the head of a dense model by packed ones; nothing is changed in 16 bits, or where a
    file's codes are in place.

    Args:
        model: On the host, with its parameters in the compute type.
        bits: One of ``memory.embeddings.WIDTHS``.
        compute_dtype: Type of unpacked weights.
        device: Where weights are packed and stay.
        keep_dense: Keep unpacked tables too: faster on a CPU, equal bit for bit. Memory is then measured within
            ``LayerBank.only_packed``.

    Raises:
        SpaceError: If no group divides a row.
        ModelError: If the model's embedding or head is not one that can be packed.
    """
    embedding = model.get_input_embeddings()
    fmt = embedding_format(bits, embedding.embedding_dim)
    if fmt is not None:
        weights = {name: module.weight.detach() for name, module in dense_tables(model).items()}
        states = {name: backend_of(fmt).pack(weight, fmt, device) for name, weight in weights.items()}
        install_embeddings(model, states, fmt, compute_dtype)
    for table in packed_tables(model).values():
        table.dense = table.unpack() if keep_dense else None


def install_embeddings(model: Any, states: Mapping[str, State], fmt: StorageFormat, compute_dtype: torch.dtype) -> None:
    """Put packed tables (by the names of ``dense_tables``) in the place of a dense model's; raises ``ModelError`` if
    its embedding or head is not one that can be packed."""
    shapes = {name: (module.weight.shape[0], module.weight.shape[1]) for name, module in dense_tables(model).items()}
    tables = [PackedTable(states[name], fmt, shape, compute_dtype) for name, shape in shapes.items()]
    put_tables(model, tables[0], tables[-1])


def put_tables(model: Any, table: PackedTable, own: PackedTable) -> None:
    """Put packed tables in place of embedding and head; raises ``ModelError`` if these can't be packed."""
    multiplier, name, embedding = _multiplier(model), embedding_modules(model)[0], model.get_input_embeddings()
    put_head(model, own)
    model.set_submodule(name, PackedEmbedding(table, multiplier, embedding.padding_idx))


def put_head(model: Any, table: PackedTable) -> None:
    """Put a packed table in the place of a model's head; raises ``ModelError`` if that can't be packed."""
    name, head = embedding_modules(model)[1], model.get_output_embeddings()
    if type(head).forward is not nn.Linear.forward:
        raise ModelError("embeddings packs a head that is a linear layer, and this model's is a "
                         f"{type(head).__name__}; use embeddings=16")
    model.set_submodule(name, PackedHead(table, head.bias))
    model.tie_weights = lambda *_, **__: None  # evaluation harnesses call it, and it looks for dense weights


def dense_tables(model: Any) -> dict[str, Any]:
    """Return the embedding and, where it has weights of its own, the head of a dense model by name."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    modules = [embedding] if head.weight is embedding.weight else [embedding, head]
    return {_name_of(model, module): module for module in modules}


def embedding_modules(model: Any) -> tuple[str, str]:
    """Return the names of a model's embedding and head."""
    return _name_of(model, model.get_input_embeddings()), _name_of(model, model.get_output_embeddings())


def packed_tables(model: nn.Module) -> dict[str, PackedTable]:
    """Return a model's packed tables by the name of the embedding or, of its own, head; empty in 16 bits."""
    found: dict[str, PackedTable] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedEmbedding | PackedHead) and module.table not in found.values():
            found[name] = module.table
    return found


def _name_of(model: Any, wanted: Any) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]


def _multiplier(model: Any) -> Tensor | None:
    """Return the factor that an embedding applies to its rows, ``None`` for none; ``ModelError`` if it does more."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"embeddings packs an nn.Embedding, and this model's is a {type(embedding).__name__}; use "
                         "embeddings=16")
    scale = getattr(embedding, "embed_scale", None)
    multiplier = None if scale is None else torch.as_tensor(scale).detach()
    with torch.no_grad():
        ids = torch.arange(min(4, embedding.num_embeddings), device=embedding.weight.device)
        rows = nn.functional.embedding(ids, embedding.weight)
        expected = rows if multiplier is None else rows * multiplier.to(rows.dtype)
        if not embedding.weight.is_meta and not torch.equal(embedding(ids), expected):
            raise ModelError(f"embeddings can't pack a {type(embedding).__name__}, whose output is not its weights' "
                             "rows times one factor; use embeddings=16")
    return multiplier
