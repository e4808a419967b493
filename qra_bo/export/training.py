"""Training of a finished run by other trainers: a model that they accept, and optimiser groups with the run's rates."""

from pathlib import Path
from typing import Any

import torch

from qra_bo.export.result import problems_of
from qra_bo.export.run import rate_of
from qra_bo.finetune.adapters.lora import adapter_parameters
from qra_bo.utils.errors import OutputError
from qra_bo.utils.files import COPY_AGAIN, read_object


def make_trainable(model: Any) -> Any:
    """Prepare the adapted model of ``load`` for a trainer: LoRA weights in fp32 that take gradients, training mode."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
    return model.train()


def optimizer_groups(model: Any, run: str | Path) -> list[dict[str, Any]]:
    """Return the parameter groups of an AdamW with the run's own learning rate for each rank.

    >>> torch.optim.AdamW(qra_bo.optimizer_groups(model, run))                                   # doctest: +SKIP

    Args:
        model: What ``load(run, trainable=True)`` returned.
        run: The run's folder.

    Returns:
        One group a rank: ``params``, ``lr``, ``betas``, ``eps`` and ``weight_decay``.

    Raises:
        OutputError: If ``best.json`` of the run can't be read, or does not state its training.
    """
    path = Path(run) / "best.json"
    best = read_object(path)
    if problems := problems_of(best):
        raise OutputError(f"{path} does not state its training: {'; '.join(problems)}; {COPY_AGAIN}")
    by_rank: dict[int, list[torch.nn.Parameter]] = {}
    for pair in adapter_parameters(model.get_base_model()).values():
        by_rank.setdefault(len(pair["A"]), []).extend(pair.values())
    training = best["training"]
    shared = {"betas": tuple(training["betas"]), "eps": training["eps"], "weight_decay": training["weight_decay"]}
    return [{"params": by_rank[rank], "lr": rate_of(best, rank), **shared} for rank in sorted(by_rank)]
