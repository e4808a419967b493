"""Names that other trainers (transformers, PEFT, TRL, axolotl, LLaMA-Factory) use for what a key here sets, and keys
that were removed."""

from collections.abc import Mapping

_MODEL = "+model=hf model.path=FOLDER-or-ORG/NAME"
_DATA = "data=hub data.path=ORG/NAME, or data=jsonl data.path=FILE"
_RANK = "ranks=[...] for a search, or task=finetune allocation=uniform:BITS,RANK for one rank everywhere"
_BITS = "bits=[...] for a search, or task=finetune allocation=uniform:{},RANK"
OURS: Mapping[str, str] = {"model_name_or_path": _MODEL, "base_model": _MODEL,
    "dataset": _DATA, "dataset_name": _DATA, "datasets": _DATA,
    "per_device_train_batch_size": "train.batch", "micro_batch_size": "train.batch", "batch_size": "train.batch",
    "gradient_accumulation_steps": "train.accumulate",
    "max_seq_length": "train.length", "max_seq_len": "train.length", "max_length": "train.length",
    "sequence_len": "train.length", "cutoff_len": "train.length",
    "sample_packing": "train.packing=joined|isolated", "packing": "train.packing=joined|isolated",
    "gradient_checkpointing": "train.checkpointing", "optim": "train.optimizer",
    "weight_decay": "train.weight_decay", "max_grad_norm": "train.clip",
    "warmup_ratio": "train.warmup", "warmup_steps": "train.warmup (a share of all steps)",
    "adam_beta1": "train.betas=[BETA1,BETA2]", "adam_beta2": "train.betas=[BETA1,BETA2]",
    "adam_epsilon": "train.eps", "learning_rate": "adapter.lr (calibrated by the search)",
    "num_train_epochs": "final.epochs", "num_epochs": "final.epochs", "epochs": "final.epochs",
    "max_steps": "final.steps", "r": _RANK, "lora_r": _RANK, "lora_rank": _RANK, "rank": _RANK,
    "lora_alpha": "adapter.alpha_over_rank (alpha divided by the rank)",
    "load_in_4bit": _BITS.format(4), "load_in_8bit": _BITS.format(8), "quantization_bit": _BITS.format("BITS"),
    "output_dir": "out", "bf16": "dtype=bfloat16", "fp16": "dtype=float16", "torch_dtype": "dtype",
    "report_to": "logger (a listener: logger._target_=my_package.Listener, as in examples/own_tracker.py)",
    "resume_from_checkpoint": "the same command with out=RUN",
    "eval_steps": "final.validate_every", "early_stopping_patience": "final.patience"}
"""By the other name, in lower case."""
_TABLE = "--config-dir bench/conf oracle=emulator oracle.table=FOLDER searches a table, in a checkout of the project"
_LENGTH = "the confirmation trains as long as the final fine-tune, where the effort affords it (search.length=final)"
REMOVED: Mapping[str, str] = {"confirm.ranking_factor": _LENGTH, "effort.ranking_top": _LENGTH,
    "effort.compare": "the best uniform choice is trained beside a predicted allocation in any case, and "
                      "effort.references=true trains QLoRA too",
    "effort.rate_factors": "task=finetune with adapter.lr=RATE trains at another rate, and python -m bench.study PLAN "
                           "compares allocations at several, in a checkout of the project",
    "adapter.init": "adapters start at zero, A by Kaiming's draw",
    "adapter.iterations": "LoftQ and LQ-LoRA are rows of python -m bench.table1, in a checkout of the project",
    "export.merged_base": "export.targets=[merged] merges into the base that the adapter was trained on, and "
                          "merge_and_unload of PEFT into the original",
    "memory.calibrate": "a trial that measures above its prediction raises the allocator's allowance in its run",
    "memory.verify": "make bench-memory compares predictions with traced training steps, in a checkout of the project",
    "mirror": "python examples/journal_to_optuna.py RUN STORAGE copies a run into an Optuna storage",
    "oracle.table": _TABLE, "oracle.emulator": _TABLE,
    "sensitivity.path": "a profile is kept on disk, and a run of the same model, text and formats takes it from there",
    "surrogate.prior": "surrogate.rates=FILE starts from exchange rates of a file",
    "worker.slowdown": "worker.deadline_seconds=SECONDS limits the silence of a worker",
    "worker.retries": "a trial whose worker died or hung is repeated once"}
"""By the removed key: what does its work now, as a clause."""


def answer(key: str) -> str | None:
    """Return what sets here what other trainers call ``key``, group or dashes before it or not; ``None`` where no
    other name is known."""
    return OURS.get(key.rpartition(".")[2].lstrip("-").replace("-", "_").lower())
