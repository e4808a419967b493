"""LoRA adapters: attached by PEFT with a rank for every linear, initialised, and run as one fused autograd node."""
