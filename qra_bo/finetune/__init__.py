"""What is fine-tuned and measured. Importing it silences a notice of bitsandbytes, which peft imports as well."""

from qra_bo.finetune.models.quiet import hush_bitsandbytes

hush_bitsandbytes()
