"""LoRA adapters: attached by PEFT with a rank for every linear, initialised, and run as one fused autograd node.

A new initialisation is a ``Start`` (``inits``), named by its module.
"""

from qra_bo.utils.lazy import lazy_names

_HOMES = {"AdapterSettings": "lora", "attach": "lora", "detach": "lora", "adapter_parameters": "lora",
          "lora_layers": "lora", "Initialiser": "inits", "Factors": "lowrank", "fuse": "lora"}
__all__ = sorted(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
