"""Models, configurations and oracles that the parts share: Llama-7B's shape with random weights, or a tiny one."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.memory.gpu import llama
from bench.memory.trace import config_from_spec
from qra_bo.config import RunConfig, load_config
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.finetune.quantization.base import storage_bytes
from qra_bo.pipeline.finetune_oracle import make_finetune
from qra_bo.space import Allocation, DecoderSpec
from qra_bo.space.decoder import spec_from_numbers

SHARD = "500MB"
TRIAL_LAYERS, ALL_LAYERS = 4, 32
"""Decoder layers of the parts that compare trials, and of the search."""
RATE = 2e-4
"""Learning rate of what is timed: speed and memory don't depend on it."""


@dataclass(frozen=True)
class Stage:
    """Where and at which size parts run.

    Args:
        device: Device that is measured.
        tiny: Whether to use a decoder of two layers, which shows on a CPU that the parts run.
        work: Folder of models and runs.
    """

    device: torch.device
    tiny: bool
    work: Path

    @property
    def sides(self) -> tuple[int, int]:
        """Width of the residual stream and of the MLP; a row of the MLP's width holds whole groups of 128."""
        return (64, 256) if self.tiny else (4096, 11008)

    def spec(self, layers: int) -> DecoderSpec:
        """Return the decoder; a tiny one has two layers."""
        return llama(layers) if not self.tiny else spec_from_numbers(
            "tiny-shape", "llama", n_layers=2, hidden_size=64, intermediate_size=256, n_heads=4, n_kv_heads=4,
            head_dim=16, vocab_size=512, tied=False)

    def drawn(self, rows: int, columns: int, seed: int = 0) -> Tensor:
        """Return a weight matrix of a language model's size in bf16, in host memory."""
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(rows, columns, generator=draw).mul_(0.02).to(torch.bfloat16)

    def model_folder(self, layers: int) -> Path:
        """Return a folder with the decoder in bf16 shards and a byte tokenizer; written at the first use."""
        from transformers import LlamaForCausalLM

        spec = self.spec(layers)
        folder = self.work / f"{spec.name}-{self.device.type}"
        if (folder / "complete").exists():
            return folder
        dtype = torch.get_default_dtype()
        devices = [] if self.device.type == "cpu" else [torch.cuda.current_device()]
        try:
            torch.set_default_dtype(torch.bfloat16)
            with torch.random.fork_rng(devices=devices), self.device:
                torch.manual_seed(0)
                model = LlamaForCausalLM(config_from_spec(spec))
        finally:
            torch.set_default_dtype(dtype)
        model.save_pretrained(folder, max_shard_size=SHARD)
        byte_tokenizer().save_pretrained(folder)
        (folder / "complete").touch()
        del model
        self.release()
        return folder

    def overrides(self, length: int, layers: int) -> list[str]:
        """Return the settings of a run on sequences of ``length`` tokens; trellis codes would take most of its time."""
        return ["+model=hf", f"model.path={self.model_folder(layers)}", "data=tiny", "data.max_records=64",
                "data.calibration=1", f"device={self.device}", "quantizer.rounding=rtn", f"train.length={length}",
                "quantizer.formats.2=[int2-g64]", "quantizer.formats.3=[int3-g64]",
                "train.batch=1", "train.accumulate=1", "eval.sequences=2", "adapter.lr=1e-4"]

    def config(self, length: int, *more: str) -> RunConfig:
        """Return the checked configuration of ``overrides`` and ``more``."""
        return load_config([*self.overrides(length, TRIAL_LAYERS), *more])

    def oracle(self, config: RunConfig) -> FinetuneOracle:
        """Return the oracle of a configuration, its layers packed."""
        folder = self.work / "oracle"
        folder.mkdir(parents=True, exist_ok=True)
        oracle = make_finetune(config, folder)
        oracle.checkpoints = None  # every trial is trained whole
        oracle.bank.build()
        return oracle

    def allocated(self) -> int:
        """Return the bytes of all live tensors: the allocator's, or on a CPU those that the collector finds."""
        gc.collect()
        if self.device.type == "cuda":
            return int(torch.cuda.memory_allocated(self.device))
        return storage_bytes(o for o in gc.get_objects() if issubclass(type(o), Tensor)
                             and o.device.type == "cpu" and o.layout == torch.strided)

    def release(self) -> None:
        """Free what nothing refers to, and return the device's unused segments."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def mixed(oracle: FinetuneOracle, shift: int = 0) -> Allocation:
    """Return an allocation with all formats and three ranks in turn, from the format number ``shift`` on."""
    formats, n = oracle.formats, len(oracle.units)
    return Allocation(tuple(formats[(i + shift) % len(formats)].name for i in range(n)),
                      tuple((16, 4, 8)[(i + shift) % 3] for i in range(n)))


def quiet(*_: Any) -> None:
    """Report no progress."""
