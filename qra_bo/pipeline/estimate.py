"""What real fine-tuning on a CPU will take, before it starts: RAM to a few tens of percent, and time roughly."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from qra_bo.config import RunConfig
from qra_bo.memory.budget import format_size, free_bytes, largest, parse_budget, parse_size, resolve_budget, smallest
from qra_bo.memory.formats import default_format, metadata_bytes, weight_bytes
from qra_bo.memory.model import MemoryModel
from qra_bo.pipeline.build import MALLOC, bank_formats, keeps_dense, make_memory
from qra_bo.space import Allocation, DecoderSpec, Ladder, SearchSpace, uniform
from qra_bo.utils.device import BYTES, resolve_dtype
from qra_bo.utils.errors import DataError, DeviceError

LIBRARIES = 450 * 10**6
"""Resident bytes of a worker that has imported torch, transformers, peft, bitsandbytes and hqq (439 MB measured)."""
FACTORS = 5
"""Matrices in fp64 that are alive at once while the second moments of a layer's inputs are factored and inverted."""
EFFICIENCY = 0.2
"""Training's share of what plain matrix products reach: SmolLM2-135M, 4 x 128 tokens in bf16 on two threads trained
675 tokens/s = 0.40 TFLOP/s where products alone ran at about 1.8 TFLOP/s."""
BENCHMARK_SECONDS = 0.2
SIDE = 1024
"""Rows and columns of the benchmark's matrices."""
CHARACTERS_PER_TOKEN = 3.2
"""Of the embedded text under SmolLM2's tokenizer: 3.98 million characters, 1.24 million tokens."""


def host_bytes(config: RunConfig, spec: DecoderSpec, space: SearchSpace) -> int:
    """RAM that ``oracle=finetune`` on a CPU needs beyond what is in use now, in bytes."""
    return sum(host_parts(config, spec, space).values())


def host_parts(config: RunConfig, spec: DecoderSpec, space: SearchSpace) -> Mapping[str, int]:
    """Bytes by what they hold: the dense base, every format's packed linears, unpacked copies, training, libraries,
    and what the allocator takes ahead.

    On a CPU an installed layer is the bank's own, so that training adds only what is neither weight nor metadata.
    """
    item, formats = BYTES[resolve_dtype(config.dtype, "cpu")], bank_formats(space)
    shared = ("fp16",) if item == 2 else ()  # 16 bits of a base that has 16 are the base itself
    packed = sum(weight_bytes(fmt, m.out_features, m.in_features) + metadata_bytes(fmt, m.out_features, m.in_features)
                 for fmt in formats if fmt.name not in shared for m in spec.linears)
    quantised = sum(fmt.bits < 16 for fmt in formats)
    return {"dense weights": item * (spec.linear_numel + spec.other_numel), "packed formats": packed,
            "unpacked copies": item * spec.linear_numel * quantised if keeps_dense(spec, formats) else 0,
            "training or choosing codes": max(_training(config, make_memory(config, spec, "cpu"), space),
                                                   _choosing_codes(config, spec, item)), "libraries": LIBRARIES,
            "allocator": int(MALLOC["MALLOC_TOP_PAD_"])}


def _choosing_codes(config: RunConfig, spec: DecoderSpec, item: int) -> int:
    """A layer's activations on the text, and the factors of its inputs' second moments in fp64."""
    if config.quantizer.rounding == "rtn":
        return 0
    width = max(linear.in_features for linear in spec.linears)
    return FACTORS * 8 * width**2 + item * config.quantizer.tokens * (4 * spec.hidden_size + 3 * width)


def _training(config: RunConfig, memory: MemoryModel, space: SearchSpace) -> int:
    """Adapters, their states, activations and workspace of the most demanding allocation that will be trained."""
    peak = MemoryModel(memory.spec, memory.shape)
    table = peak.table(space)
    if memory.scope == "peak":
        auto = any(parse_budget(text).auto for text in config.budget)
        budget = max(resolve_budget(text, memory, space, headroom=parse_size(config.memory.headroom),
                                    free=free_bytes("cpu") if auto else None) for text in config.budget)
        _, least = smallest(table, space)
        needs = [budget - _held(peak, space, least)]
    else:
        total, most = largest(table, space)
        needs = [total - _held(peak, space, most)]
    if config.effort.references:
        for fmt in (default_format(16), default_format(4)):
            single = SearchSpace(space.units, (fmt,), Ladder("ranks", (16,)))
            allocation = uniform(space.n_units, fmt.name, 16)
            total = sum(peak.breakdown(single, allocation).values())
            needs.append(total - _held(peak, single, allocation))
    return max(0, *needs)


def _held(peak: MemoryModel, space: SearchSpace, allocation: Allocation) -> int:
    """Bytes of an allocation's peak that the base and the bank hold anyway."""
    parts = peak.breakdown(space, allocation)
    return parts["weights"] + parts["quant_metadata"] + parts["unquantised"]


def check_ram(config: RunConfig, spec: DecoderSpec, space: SearchSpace) -> None:
    """Refuse a run whose RAM is not there.

    Raises:
        DeviceError: With what is needed, for what, and what is available.
    """
    if not Path("/proc/meminfo").exists():
        return  # only Linux tells what can still be taken
    parts, available = host_parts(config, spec, space), free_bytes("cpu")
    workers = config.executor.workers
    need = workers * sum(parts.values())
    if need <= available:
        return
    listed = ", ".join(f"{what} {format_size(size)}" for what, size in parts.items() if size)
    listed += f"; for each of {workers} workers" if workers > 1 else ""
    raise DeviceError(f"fine-tuning {config.model_name} on a CPU needs about {format_size(need)} of RAM ({listed}) and "
                      f"{format_size(available)} is available; name fewer bits (each format is packed once), lower "
                      "train.batch or train.length, take a smaller model, a GPU (device=cuda), a machine with more "
                      "RAM, or oracle=synthetic")


def seconds_per_training_token(spec: DecoderSpec, dtype: str, threads: int) -> float:
    """Rough seconds of one training token on a CPU, from a benchmark of ``BENCHMARK_SECONDS``.

    Args:
        spec: The decoder.
        dtype: Compute type, e.g. ``"bfloat16"``.
        threads: Threads of the trainer.
    """
    return flops_per_training_token(spec) / (EFFICIENCY * matmul_flops(dtype, threads))


def flops_per_training_token(spec: DecoderSpec) -> int:
    """Frozen linears go forward and backward to their inputs (4 a weight); the head is computed again too (6)."""
    return 4 * spec.linear_numel + 6 * spec.vocab_size * spec.hidden_size


def matmul_flops(dtype: str, threads: int) -> float:
    """Floating-point operations a second of plain matrix products on as many idle cores. Loads torch.

    One thread's own processor time is taken, and the best product: what else runs on the machine in that moment says
    little about the hours to come.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.full((SIDE, SIDE), 0.5, dtype=getattr(torch, dtype))
        a @ a  # the first product sets things up
        best, end = math.inf, time.thread_time() + BENCHMARK_SECONDS
        while (start := time.thread_time()) < end:
            a @ a
            best = min(best, time.thread_time() - start)
    finally:
        torch.set_num_threads(before)
    return threads * 2 * SIDE**3 / best


def training_tokens(config: RunConfig) -> float | None:
    """Rough tokens of the training split from its characters.

    ``None`` where the data would have to be fetched, or can't be read: the run says so in its own order, after what is
    wrong with the weights.
    """
    from qra_bo.finetune.data.jsonl import read_records
    from qra_bo.finetune.data.plays import play_records
    from qra_bo.finetune.data.tiny import tiny_records

    data, share = config.data, 1.0
    if data.kind == "hub":
        return None
    try:
        if data.kind == "plays":
            records = play_records()[0]
        else:
            records = read_records(data.path, data.max_records) if data.kind == "jsonl" else \
                tiny_records(data.max_records or 512, 0)
            share = 1 - 2 * data.held_out
    except DataError:
        return None
    characters = sum(len(r.prompt) + len(r.target) for r in records)
    return math.ceil(share * characters / (1.0 if config.model["source"] == "random" else CHARACTERS_PER_TOKEN))
