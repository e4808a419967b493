"""RAM that a run needs: packed layers, which go to disk where they are too large, and the check before it starts."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qra_bo.config import RunConfig, gptq_sequences
from qra_bo.memory import MemoryModel, format_size, parse_size
from qra_bo.memory.budget import free_bytes, largest, smallest
from qra_bo.memory.embeddings import packed_tables_bytes, unpacked_numel
from qra_bo.memory.formats import RING_BYTES, RINGS_NUMEL, known_backend, matrix_bytes
from qra_bo.memory.stored import own_format
from qra_bo.pipeline.pricing import bank_formats, make_memory, reference_formats
from qra_bo.space import Allocation, DecoderSpec, SearchSpace, StorageFormat, uniform
from qra_bo.utils.device import BYTES, memory_groups, resolve_dtype
from qra_bo.utils.errors import DeviceError

LIBRARIES = 450 * 10**6
"""Resident bytes of a worker that has imported torch, transformers, peft, bitsandbytes and hqq (439 MB measured)."""
CUDA_LIBRARIES = 3 * 10**9
"""Assumed resident bytes of a worker with those and a CUDA context, and of its buffers: not measured on a GPU."""
FACTORS = 3
"""Matrices in fp32 that are alive at once while the second moments of a layer's inputs are factored, with these: two
are counted in a test. Moments that are not positive definite in fp32, which are rare, take fp64 beside them."""
GPTQ_ROWS = 2048
"""Tokens that go forward at once while codes are chosen: ``ROWS`` of ``moments``, which loads torch."""
HEAP_PAD = 1 << 28
"""Bytes by which glibc grows the heap of a worker on a CPU at once, see ``executors.MALLOC``."""


def keeps_dense(spec: DecoderSpec, formats: Sequence[StorageFormat]) -> bool:
    """Return whether a bank on a CPU keeps unpacked weights too: where they take less than a quarter of the RAM."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = min([physical, *(limit for limit, _ in memory_groups())])
    return 2 * spec.linear_numel * len(formats) < allowed // 4


def packed_bytes(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device_type: str) -> int:
    """Return the bytes of every linear packed in every format that the bank keeps.

    It keeps no 16 bits, but layers on a CPU that are not the base itself.
    """
    in_half = BYTES[resolve_dtype(config.dtype, device_type)] == 2 or is_mapped(config)
    keeps_half = config.stored or (device_type == "cpu" and not in_half)  # a folder's are put in another order
    return 0 if config.stored and config.model["gguf_file"] else sum(
        sum(matrix_bytes(own_format(fmt, m), m.out_features, m.in_features))
        for fmt in bank_formats(config, space) if not fmt.is_base or keeps_half for m in spec.linears)


def is_mapped(config: RunConfig) -> bool:
    """Whether the weights are mapped from safetensors or a GGUF file, and take no memory of a worker's own."""
    return config.stored or (config.model["source"] == "path" and config.model["gguf_file"] is None)


def spills(config: RunConfig, spec: DecoderSpec, space: SearchSpace, device_type: str) -> bool:
    """Whether packed layers go to disk: those of all workers take more than ``worker.spill_above``; where that is
    ``auto``, more than half of what is free, or on a GPU than the rest of what a run needs leaves.

    Raises:
        BudgetError: If that is ``auto`` and this machine does not say what memory is free.
    """
    given, workers = config.worker.spill_above, config.executor.workers
    limit = free_bytes("cpu") // 2 if given == "auto" else parse_size(given)
    if given == "auto" and device_type != "cpu":  # on a CPU training reads spilled layers again and again
        rest = sum(host_parts(config, spec, space, None, device_type, spilled=True).values())
        limit = min(limit, free_bytes("cpu") - workers * rest)
    return workers * packed_bytes(config, spec, space, device_type) > limit


def host_parts(config: RunConfig, spec: DecoderSpec, space: SearchSpace, budget: int | None,
               device_type: str = "cpu", spilled: bool | None = None) -> Mapping[str, int]:
    """Return the RAM that a worker of ``oracle=finetune`` needs beyond what is in use now, in bytes by purpose, within
    ``budget`` bytes (``None``: of any allocation). ``spilled``: see ``spills``.

    Files that are mapped are left out: the system reads them again where memory lacks. On a CPU an installed layer is
    the bank's own, so that training adds only what is neither weight nor metadata, unless the bank is on disk.
    """
    on_cpu, item = device_type == "cpu", BYTES[resolve_dtype(config.dtype, device_type)]
    formats = bank_formats(config, space)
    spilled = spills(config, spec, space, device_type) if spilled is None else spilled
    quantised = sum(not fmt.is_base or config.stored for fmt in formats)
    tables = spec.other_numel - unpacked_numel(spec, config.embedding_bits)
    width = max(linear.in_features for linear in spec.linears)
    rows, d = config.train.length * gptq_sequences(config, spec), spec.hidden_size
    choosing = 0 if not rows else FACTORS * 4 * width**2 + 3 * 4 * d**2 + item * (
        rows * d + on_cpu * min(rows, max(GPTQ_ROWS, config.train.length)) * (4 * d + 3 * width))
    if rows and any(known_backend(fmt).ring_seconds for fmt in formats):  # after the layer's moments are factored
        matrix = max(linear.in_features * linear.out_features for linear in spec.linears)
        at_once = max(matrix, min(RINGS_NUMEL, (os.cpu_count() or 1) * matrix))
        choosing = max(choosing, RING_BYTES * at_once + 3 * 4 * width**2 + item * rows * d)
    training = _training(config, make_memory(config, spec, "cpu"), space, budget, spilled) if on_cpu else 0
    cast = unpacked_numel(spec, config.embedding_bits) if config.stored else spec.other_numel if item == 4 else 0
    # what no quantiser packs is cast to the compute type; norms of a GGUF file are dequantised; experts of a file are
    # copied into a stack
    stacks = 2 * sum(m.numel for m in spec.linears if m.expert)
    return {"dense weights": item * cast + stacks if is_mapped(config)
            else item * (spec.linear_numel + spec.other_numel),
            "packed formats": 0 if spilled else packed_bytes(config, spec, space, device_type),
            "packed embeddings": packed_tables_bytes(spec, config.embedding_bits) if on_cpu else 0,
            "unpacked copies": item * (spec.linear_numel * quantised + tables)
            if on_cpu and keeps_dense(spec, formats) else 0,
            "training or choosing codes": max(training, choosing), "libraries": LIBRARIES if on_cpu else CUDA_LIBRARIES,
            "allocator": HEAP_PAD}


def _training(config: RunConfig, memory: MemoryModel, space: SearchSpace, budget: int | None, spilled: bool) -> int:
    """Return the bytes of adapters, states, activations and workspace of the most demanding trained allocation.

    With packed layers on disk (``spilled``) its weights count too: a step that reads them from there takes too long.
    """
    peak = MemoryModel(memory.spec, memory.shape)

    def beside(space: SearchSpace, allocation: Allocation) -> int:
        parts = peak.breakdown(space, allocation)
        return 0 if spilled else sum(parts[key] for key in ("weights", "quant_metadata", "unquantised", "embeddings"))

    table = peak.table(space)
    total, most = largest(table, space)
    needs = [total - beside(space, most)]
    if memory.scope == "peak" and budget is not None:  # which may lie above all allocations: auto is what is free
        needs = [min(budget - beside(space, smallest(table, space)[1]), *needs)]
    for fmt in reference_formats(config):
        single = SearchSpace(space.units, (fmt,), (16,))
        allocation = uniform(space.n_units, fmt.name, 16)
        total = sum(peak.breakdown(single, allocation).values())
        needs.append(total - beside(single, allocation))
    return max(0, *needs)


def check_ram(config: RunConfig, spec: DecoderSpec, space: SearchSpace, budget: int | None,
              device_type: str = "cpu") -> None:
    """Refuse a run whose workers need more RAM than is available.

    Raises:
        DeviceError: With the bytes needed by purpose, and the bytes available.
    """
    if not Path("/proc/meminfo").exists():
        return  # the available bytes are known on Linux alone
    available, workers = free_bytes("cpu"), config.executor.workers
    parts = host_parts(config, spec, space, budget, device_type)
    need = workers * sum(parts.values())
    listed = ", ".join(f"{what} {format_size(size)}" for what, size in parts.items() if size)
    listed += f"; for each of {workers} workers" if workers > 1 else ""
    where, advice = ("a CPU", "lower train.batch or train.length, take a smaller model, a GPU (device=cuda)") \
        if device_type == "cpu" else ("a GPU", "take a smaller model")
    if need > available:
        raise DeviceError(
            f"fine-tuning {config.model_name} on {where} needs about {format_size(need)} of RAM ({listed}) and "
            f"{format_size(available)} is available; name fewer bits (each format is packed once) or fewer "
            f"executor.workers, keep packed layers on disk (worker.spill_above=1MB), {advice}, or more RAM")
