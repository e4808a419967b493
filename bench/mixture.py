"""A small mixture of experts from scratch, and what a search finds on it: it shows the plumbing, not a model of use.

    python -m bench.mixture FOLDER [--steps 600]

A decoder of the family qwen3_moe, 6 layers of 8 experts of which 2 are chosen (20 M parameters, bytes as tokens), is
trained on the plays, then searched and confirmed on them (``effort=quick``) at 2 to 3 bits. Prints how evenly experts
are chosen on the test split, and the losses of the confirmation. ``FOLDER`` keeps model and run; the same command goes
on. The numbers go to ``bench/results/mixture.json``.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import qra_bo
from bench.report import publish
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.data.plays import play_records

EXPERTS, CHOSEN, LENGTH, BATCH, RATE, SEED = 8, 2, 256, 8, 2e-3, 0
SHAPE = {"vocab_size": 320, "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 512, "head_dim": 32,
         "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4, "num_experts": EXPERTS,
         "num_experts_per_tok": CHOSEN, "max_position_embeddings": 512, "pad_token_id": 256, "eos_token_id": 256,
         "output_router_logits": True, "router_aux_loss_coef": 0.01, "tie_word_embeddings": True}


def rows_of(split: int) -> Tensor:
    """Return the bytes of a split of the plays, ``n x LENGTH``."""
    tokens = byte_tokenizer()("\n".join(record.target for record in play_records()[split]))["input_ids"]
    return torch.tensor(tokens[:len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)


def train(folder: Path, steps: int) -> None:
    """Train the base and save it; a trained one stays as it is."""
    if (folder / "config.json").exists():
        return
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **SHAPE))
    rows, draw = rows_of(0), torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        ids = rows[torch.randint(len(rows), (BATCH,), generator=draw)]
        found = model(input_ids=ids, labels=ids)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {float(found.loss):.3f}", flush=True)
    model.config.output_router_logits = False
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


@torch.no_grad()
def shares(folder: Path) -> list[list[float]]:
    """Return the share of choices that each expert of each layer gets on the test split, of 1 in all."""
    model, found = AutoModelForCausalLM.from_pretrained(folder), []
    logits = model(input_ids=rows_of(2)[:64], output_router_logits=True).router_logits
    for layer in logits:
        counts = torch.bincount(layer.topk(CHOSEN).indices.view(-1), minlength=EXPERTS)
        found.append((counts / counts.sum()).tolist())
    return found


def main() -> None:
    """Train, count, search, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    given = parser.parse_args()
    train(given.folder / "base", given.steps)
    rows: list[dict[str, Any]] = [{"what": f"layer {index}", "least": min(layer), "most": max(layer), "shares": layer}
                                  for index, layer in enumerate(shares(given.folder / "base"))]
    result = qra_bo.search(["+model=hf", f"model.path={given.folder / 'base'}", "data=plays", "device=cpu",
                            "bits=[2,3]", "memory.scope=stored", "budget=mix:2.5,2", "effort=quick", "final.steps=24",
                            "quantizer.rounding=gptq", f"out={given.folder / 'run'}"])
    best = json.loads((result.folder / "best.json").read_text())
    rows += [{"what": row["name"], "bits": row["bits"], "loss": row["loss"]} for row in best["baselines"]]
    rows.append({"what": "searched", "bits": best["average_bits"], "loss": best["search_loss"]})
    rows += [{"what": f"delivered less {key.removeprefix('versus_').replace('_', ' ')}", "loss": best[key]["mean"],
              "least": best[key]["low"], "most": best[key]["high"]}
             for key in ("versus_best_simple", "versus_best_uniform") if best[key] is not None]
    publish("mixture", [], rows, ["what", "bits", "loss", "least", "most"])


if __name__ == "__main__":
    main()
