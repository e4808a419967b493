"""Tokens and losses of conversations against TRL, a trainer of its own (needs trl and accelerate).

    python -m bench.chat [--conversations 200] [--seed 0]

For every pair of chat templates that TRL ships, one as the model has it and one with generation marks: token ids as
``tokenizer.apply_chat_template`` gives them, and trained tokens as ``assistant_only_loss`` takes them. Then the loss of
TRL's ``SFTTrainer`` on a batch against the loss here, of a random decoder.
"""

import argparse
import contextlib
import importlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.report import Target, publish
from qra_bo.config import load_config
from qra_bo.finetune.data.chat_template import ChatTemplate
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import to_record
from qra_bo.finetune.data.packing import piece_of_conversation
from qra_bo.finetune.data.records import NO_LOSS
from qra_bo.finetune.models.load import load_tokenizer
from qra_bo.finetune.training.loss import token_losses
from qra_bo.utils.errors import DataError

TEXTS = ("Hi", "", "  two  spaces ", "line\nline\n", "Noël 你好 🙂", "{{ 'jinja' }} <b>&amp;</b>", "3.14",
         "Why?\n\nWell.")
Row = dict[str, Any]
COLUMNS = ("template", "marked_refused", "marked_refused_here", "marked_ids_equal", "masks_equal", "plain_refused",
           "plain_refused_here", "plain_ids_equal", "same_text", "masks_equal_without_marks")


def conversations(n: int, seed: int) -> list[Conversation]:
    """Return random conversations of one to four questions with answers, half of them with a system message."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        turns = [{"role": ("user", "assistant")[j % 2], "content": str(text)}
                 for j, text in enumerate(rng.choice(TEXTS, size=2 * int(rng.integers(1, 5))))]
        system = [{"role": "system", "content": str(rng.choice(TEXTS))}] if rng.random() < 0.5 else []
        record = to_record({"messages": system + turns}, f"conversation {i + 1}")
        assert isinstance(record, Conversation)
        out.append(record)
    return out


def compare(name: str, plain: str, marked: str, tokenizer: Any, talks: Sequence[Conversation]) -> Row:
    """Count conversations by what agrees: ids, trained tokens by the template with marks, and those without marks.

    Token ids are compared with transformers'; trained tokens with the mask that ``assistant_only_loss`` takes from
    ``marked``, where it writes the same text as ``plain``.
    """
    row: Row = dict.fromkeys(COLUMNS, 0) | {"template": name}
    for talk in talks:
        found = {}
        for which, template in (("marked", marked), ("plain", plain)):
            tokenizer.chat_template = template
            try:
                wanted = tokenizer.apply_chat_template(talk.messages, tokenize=True, return_dict=True,
                                                       return_assistant_tokens_mask=which == "marked")
            except Exception:  # a template raises what it likes
                row[f"{which}_refused"] += 1
                continue
            try:
                ((ids, trained),) = ChatTemplate(tokenizer).encode([talk])
            except DataError:
                row[f"{which}_refused_here"] += 1
                continue
            row[f"{which}_ids_equal"] += ids == wanted["input_ids"]
            found[which] = ids, trained
            if which == "marked":
                row["masks_equal"] += trained == [bool(m) for m in wanted["assistant_masks"]]
        if len(found) == 2 and found["marked"][0] == found["plain"][0]:
            row["same_text"] += 1
            row["masks_equal_without_marks"] += found["marked"][1] == found["plain"][1]
    return row


def losses(tokenizer: Any, marked: str, talks: Sequence[Conversation]) -> tuple[float, float]:
    """Return the loss of TRL's first step on one batch of conversations, and the loss here."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    trl = importlib.import_module("trl")
    tokenizer.chat_template = marked
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, pad_token_id=None))
    pieces = [piece_of_conversation(ids, trained, 256) for ids, trained in ChatTemplate(tokenizer).encode(talks)]
    width = max(len(ids) for ids, _ in pieces)
    inputs = torch.zeros(len(pieces), width, dtype=torch.long)
    labels = torch.full_like(inputs, NO_LOSS)
    for row, (ids, goal) in enumerate(pieces):
        inputs[row, :len(ids)], labels[row, :len(goal)] = torch.tensor(ids), torch.tensor(goal)
    with torch.no_grad():
        total, count = token_losses(model.eval(), inputs, labels, 128)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = trl.SFTConfig(output_dir=folder, assistant_only_loss=True, max_length=256, max_steps=1, bf16=False,
                                 per_device_train_batch_size=len(pieces), learning_rate=0.0, report_to="none",
                                 use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, save_strategy="no")
        trainer = trl.SFTTrainer(model, settings, processing_class=tokenizer, train_dataset=Dataset.from_list(
            [{"messages": talk.messages} for talk in talks]))
        theirs = float(trainer.train().training_loss)
    return theirs, float(total) / count


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(prog="python -m bench.chat")
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trl = importlib.import_module("trl")
    folder = Path(str(trl.__file__)).parent / "chat_templates"
    tokenizer = load_tokenizer(load_config(["+model=smollm2_135m"]).model)
    talks = conversations(args.conversations, args.seed)
    rows = []
    for path in sorted(folder.glob("*_training.jinja")):
        plain = folder / path.name.replace("_training", "")
        if plain.exists():
            rows.append(compare(plain.stem, plain.read_text(), path.read_text(), tokenizer, talks))
    theirs, ours = losses(tokenizer, (folder / "qwen2_5_training.jinja").read_text(), talks[:8])
    n = len(talks)
    other = sum(n - row[f"{w}_refused"] - row[f"{w}_ids_equal"] for row in rows for w in ("marked", "plain"))
    masks = sum(n - row["marked_refused"] - row["masks_equal"] for row in rows)
    publish("chat", [
        Target("conversations whose token ids differ from apply_chat_template's, or that only qra_bo refuses", "0",
               other, other == 0),
        Target("conversations whose trained tokens differ from assistant_only_loss, templates with marks", "0", masks,
               masks == 0),
        Target("difference of the loss from SFTTrainer's on one batch of 8 conversations", "at most 1e-4",
               abs(theirs - ours), abs(theirs - ours) <= 1e-4)],
        rows, COLUMNS)


if __name__ == "__main__":
    main()
