"""Joint bit-width and LoRA-rank allocation for fine-tuning language models within a memory budget."""

__version__ = "0.1.0"
