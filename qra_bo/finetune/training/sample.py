"""A held-out prompt, and how a model goes on from it: what a fine-tune changed, in words."""

from typing import Any

import numpy as np
import torch

from qra_bo.finetune.data.records import NO_LOSS, TokenBlocks
from qra_bo.finetune.training.loss import hidden_states, logits_of

PROMPT_TOKENS = 48
"""Tokens of a text that serve as a prompt where the data has none of its own."""
NEW_TOKENS = 24
"""Tokens that the model adds: on a CPU they cost about as much as two training steps."""


def prompt_of(blocks: TokenBlocks) -> list[int]:
    """Return the first record's prompt: its tokens before the first on which a loss is taken, else the beginning of the
    text."""
    ids, trained = blocks.input_ids[0], np.flatnonzero(blocks.labels[0] != NO_LOSS)
    first = int(trained[0]) if len(trained) else len(ids)
    return [int(token) for token in ids[:first if first > 1 else min(PROMPT_TOKENS, len(ids) // 2)]]


@torch.no_grad()
def continuation(model: Any, prompt: list[int], end: int | None, device: torch.device) -> list[int]:
    """Return the most likely next tokens, ``NEW_TOKENS`` or up to the token ``end``. Logits of one token are alive at
    once, and no cache of keys: it takes no more memory than an evaluation."""
    model.eval()
    ids = list(prompt)
    while len(ids) < len(prompt) + NEW_TOKENS:
        token = int(logits_of(model, hidden_states(model, torch.tensor([ids], device=device))[0, -1:]).argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt):]
