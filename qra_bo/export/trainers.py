"""Configurations of other trainers: axolotl, TRL and LLaMA-Factory."""

import json
from collections.abc import Mapping
from typing import Any

from qra_bo.export.run import FinishedRun


def to_yaml(comment: str, values: Mapping[str, Any]) -> str:
    """A flat YAML document: JSON scalars and mappings are YAML, so every string is quoted and escaped exactly."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for key, value in values.items():
        if isinstance(value, dict) and value:
            lines += [f"{key}:", *(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())]
        elif isinstance(value, list) and value:
            lines += [f"{key}:", *(f"  - {json.dumps(v)}" for v in value)]
        else:
            lines.append(f"{key}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _targets(run: FinishedRun) -> list[str]:
    return list(run.module_ranks)


def axolotl(run: FinishedRun) -> str:
    """``axolotl.yaml``: the ranks found, on a base of uniform 4 bits, since axolotl has no bits by layer."""
    comment = (f"Ranks found by qra_bo for {run.best['model']}; set datasets before use.\n"
               "axolotl quantises every layer alike: this trains the same ranks on uniform NF4 with bitsandbytes' own "
               "codes.\n"
               "For the mixed base that the ranks were found on use train_trl.py.")
    return to_yaml(comment, {
        "base_model": run.base, "adapter": "qlora", "load_in_4bit": True, "lora_r": run.adapter_config["r"],
        "lora_alpha": run.adapter_config["lora_alpha"], "lora_dropout": 0.0, "lora_target_modules": _targets(run),
        "lora_rank_pattern": dict(run.adapter_config["rank_pattern"]),
        "lora_alpha_pattern": dict(run.adapter_config["alpha_pattern"]),
        "datasets": [{"path": "SET-ME", "type": "alpaca"}], "sequence_len": 512, "micro_batch_size": 1,
        "gradient_accumulation_steps": 16, "num_epochs": 1, "optimizer": "adamw_torch", "lr_scheduler": "cosine",
        "learning_rate": 2e-4, "gradient_checkpointing": True, "output_dir": "axolotl-out"})


def llamafactory(run: FinishedRun) -> str:
    """``llamafactory.yaml``: continues from the adapter, the only way to give LLaMA-Factory ranks by module."""
    comment = (f"Continues the adapter found by qra_bo for {run.best['model']}; set dataset and template before use.\n"
               "LLaMA-Factory has no rank patterns: the ranks come from adapter_name_or_path.\n"
               "It quantises every layer alike: the base here is uniform 4 bits with its own codes, not the run's.")
    return to_yaml(comment, {
        "model_name_or_path": run.base, "adapter_name_or_path": str(run.folder.resolve() / "adapter"), "stage": "sft",
        "do_train": True, "finetuning_type": "lora", "create_new_adapter": False, "quantization_bit": 4,
        "quantization_method": "bnb", "double_quantization": True, "dataset": "SET-ME", "template": "SET-ME",
        "cutoff_len": 512, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16,
        "learning_rate": 2e-4, "num_train_epochs": 1.0, "lr_scheduler_type": "cosine",
        "output_dir": "llamafactory-out"})


def trl(run: FinishedRun) -> str:
    """``train_trl.py``: goes on training on the mixed base itself with TRL's ``SFTTrainer``."""
    return f'''"""Go on training an adapter that qra_bo found, on its mixed base, with TRL.

Model: {_inline(run.best['model'])}
Usage: python train_trl.py DATA.jsonl OUTPUT   (needs: pip install trl datasets)
"""

import sys
from pathlib import Path

import qra_bo
import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

RUN = Path(__file__).resolve().parents[1]


def main(data: str, output: str) -> None:
    cuda = torch.cuda.is_available()
    model, tokenizer = qra_bo.load(RUN, "cuda" if cuda else "cpu")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=load_dataset("json", data_files=data, split="train"),
        args=SFTConfig(output_dir=output, per_device_train_batch_size=1, gradient_accumulation_steps=16,
                       num_train_epochs=1, learning_rate=2e-4, lr_scheduler_type="cosine", report_to="none",
                       bf16=cuda, use_cpu=not cuda))
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
'''


def _inline(text: object) -> str:
    """Text that may stand inside a docstring."""
    return json.dumps(str(text))[1:-1].replace("'", "\\'")
