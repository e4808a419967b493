"""Codes of a packed folder's linears in the storage formats of this package, with the same weights bit for bit.

nf4 and EXL3 are mapped as they are. Integers, whose lowest bits come first, are put in another order: GPTQ packs them
along the inputs of an output, AWQ along the outputs of an input, compressed-tensors like GPTQ with words by rows.
"""

from collections.abc import Callable

import torch
from bitsandbytes import functional as F
from torch import Tensor

from qra_bo.finetune.models.packed_folder import NF4_BLOCK, QUANT_STATE, PackedFolder
from qra_bo.finetune.quantization.base import State, tile_numel
from qra_bo.finetune.quantization.planes import in_planes
from qra_bo.memory.file_formats import CODEBOOKS, EXL3, ORDERED, TILES
from qra_bo.memory.formats import NESTED_BLOCK, has_zeros
from qra_bo.space import StorageFormat
from qra_bo.utils.errors import ModelError
from qra_bo.utils.files import strict_json

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Place of an output's code among the eight of a word."""


def values(folder: PackedFolder, name: str) -> Tensor:
    """Return a tensor of a folder, mapped from its file; raises ``ModelError`` if a number is not finite."""
    tensor: Tensor = folder.tensors[name].reader.get_tensor(name)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{name} of {folder.path} has numbers that are not finite: the file is damaged; copy or "
                         "download it again")
    return tensor


def codes_in(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` codes of each row (uint8) of bit streams in words, ``rows x words`` (int32)."""
    padded = torch.nn.functional.pad(words, (0, -words.shape[1] % bits)).contiguous()
    octets, shifts = padded.view(torch.uint8).view(len(words), -1, bits), torch.arange(0, 8 * bits, bits)
    out = torch.empty(len(words), count, dtype=torch.uint8)
    step = max(1, tile_numel(words.device) // count)
    for tile, into in zip(torch.split(octets, step), torch.split(out, step), strict=True):
        eight = (tile.long() << torch.arange(0, 8 * bits, 8)).sum(-1, keepdim=True)  # eight codes in as many bytes
        into.copy_((eight >> shifts & (1 << bits) - 1).view(len(tile), -1)[:, :count])
    return out


def state_in(folder: PackedFolder, name: str, fmt: StorageFormat, shape: tuple[int, int]) -> State:
    """Return the packed tensors of a linear in ``format_in``'s format; raises ``ModelError`` if it holds a value that
    the configuration denies."""
    def part(leaf: str) -> Tensor:
        return values(folder, f"{name}.{leaf}")

    def check(kept: bool, field: str) -> None:
        if not kept:
            raise ModelError(f"{name} of {folder.path} holds another {field} than its configuration says; choose "
                             "another model, or copy a damaged one again")

    (rows, columns), bits, order = shape, fmt.bits, None
    if fmt.backend == "none":
        return {"codes": part("weight")}
    if fmt.backend == "bitsandbytes":
        return _nf4(part, fmt, shape, check)
    if fmt.backend == TILES:
        book = EXL3[fmt.name].codebook
        check(book == "3inst" or int(part(book)) % 2**32 == CODEBOOKS[book], book)
        return {"codes": part("trellis"), "suh": part("suh"), "svh": part("svh")}
    if folder.method == "gptq":
        codes, scale, order = codes_in(part("qweight").t(), bits, columns), part("scales").t(), part("g_idx")
        less = folder.options.get("checkpoint_format") != "gptq_v2"  # the zeros of version 1 are stored less one
        zero = codes_in(part("qzeros"), bits, rows).t().int() + less
    elif folder.method == "awq":
        codes, zero = (codes_in(part(leaf), bits, rows).view(-1, rows // 8, 8)[..., AWQ_ORDER].reshape(-1, rows).t()
                       for leaf in ("qweight", "qzeros"))
        scale = part("scales").t()
    else:
        codes, scale = codes_in(part("weight_packed"), bits, columns), part("weight_scale")
        zero = codes_in(part("weight_zero_point").t(), bits, rows).t() if has_zeros(fmt) and \
            f"{name}.weight_zero_point" in folder.tensors else torch.full(scale.shape, 1 << bits - 1)
        order = part("weight_g_idx") if fmt.backend == ORDERED else None
    check(int(zero.max()) < 256, "bits")
    check(has_zeros(fmt) or bool((zero == 1 << bits - 1).all()), "sym")
    plain, state = torch.arange(columns) // fmt.block, State()
    if fmt.backend == ORDERED and order is not None:
        check(torch.equal(order.long().sort().values, plain), "g_idx")
        by_group = order.argsort(stable=True)
        codes, state["columns"] = codes[:, by_group], by_group.argsort().int()
    check(bool(state) or order is None or torch.equal(order.long(), plain), "desc_act")
    state |= in_planes(codes.reshape(-1, fmt.block), fmt) | {"scale": scale.contiguous()}
    return state | {"zero": zero.to(torch.uint8).contiguous()} if has_zeros(fmt) else state


def _nf4(part: Callable[[str], Tensor], fmt: StorageFormat, shape: tuple[int, int],
         check: Callable[[bool, str], None]) -> State:
    """Beside the tensors bitsandbytes keeps a JSON object with sizes and the offset of scales."""
    try:
        facts = strict_json(part(QUANT_STATE).numpy().tobytes())
        sizes = [facts["blocksize"], facts["quant_type"], facts["shape"]]
        nested, given = (facts["nested_blocksize"], facts["nested_offset"]) if fmt.double_quant else (0, 0)
        offset = torch.tensor(float(given))  # fp32, of which a number that JSON holds may be infinite
    except (ValueError, KeyError, TypeError):
        sizes = []
    check(sizes == [NF4_BLOCK, "nf4", list(shape)], QUANT_STATE)
    check(torch.equal(part("weight.quant_map"), F.get_4bit_type("nf4", device="cpu")), "quant_map")
    state = {"codes": part("weight"), "absmax": part("weight.absmax")}
    if not fmt.double_quant:
        return state
    check(nested == NESTED_BLOCK and bool(torch.isfinite(offset)), "nested_blocksize or nested_offset")
    check(torch.equal(part("weight.nested_quant_map"), F.create_dynamic_map()), "nested_quant_map")
    return {**state, "nested_absmax": part("weight.nested_absmax"), "offset": offset}
