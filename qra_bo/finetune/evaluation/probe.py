"""A few logits kept beside a result, by which a loaded model is checked."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qra_bo.finetune.data.records import TokenBlocks

PROBE = "probe.safetensors"
N_TOKENS, N_LOGITS = 64, 4096


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[..., :N_LOGITS].float().cpu()
    model.train(was_training)
    return logits


def save_probe(model: Any, blocks: TokenBlocks, path: Path, device: torch.device) -> None:
    """Write the first tokens of the first held-out sequence and their logits (``1 x n x v``, v at most 4096)."""
    ids = torch.from_numpy(blocks.input_ids[:1, :N_TOKENS]).to(device)
    save_file({"input_ids": ids.cpu(), "logits": _logits(model, ids).contiguous()}, path)


def probe_difference(model: Any, path: Path, device: torch.device) -> float:
    """Return the largest absolute difference between the model's logits and those in ``path``."""
    with safe_open(path, framework="pt") as handle:
        ids, expected = handle.get_tensor("input_ids"), handle.get_tensor("logits")
    return float((_logits(model, ids.to(device)) - expected).abs().max())
