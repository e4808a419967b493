"""Joint bit-width and LoRA-rank allocation for fine-tuning language models within a memory budget.

Public names are imported when they are first used, so that ``import qra_bo`` is quick and loads no torch.

Example::

    import qra_bo

    plan = qra_bo.plan(model="llama2_7b", budget="10GB")            # what fits; needs no weights and no GPU
    result = qra_bo.search(model="tiny", budget="uniform:4,4", effort="quick")
    print(result.best["bits"], result.best["ranks"])                # one of each for every unit
    model, tokenizer = qra_bo.load(result.folder)                   # quantised base and adapter, in eval mode
"""

import logging
from typing import TYPE_CHECKING

from qra_bo.utils.lazy import lazy_names
from qra_bo.utils.version import __version__ as __version__

if TYPE_CHECKING:
    from qra_bo.api import allocate, fine_tune, plan, search
    from qra_bo.config import RunConfig, load_config
    from qra_bo.export.load import load, optimizer_groups
    from qra_bo.memory import MemoryModel, Plan
    from qra_bo.oracle.protocol import Oracle
    from qra_bo.pipeline.run import Result
    from qra_bo.space import Allocation, SearchSpace

__all__ = ["Allocation", "MemoryModel", "Oracle", "Plan", "Result", "RunConfig",
           "SearchSpace", "allocate", "fine_tune", "load", "load_config", "optimizer_groups", "plan", "search"]

_HOMES = dict.fromkeys(("allocate", "fine_tune", "plan", "search"), "api") | {
    "Allocation": "space", "MemoryModel": "memory", "Oracle": "oracle.protocol", "Plan": "memory",
    "Result": "pipeline.run", "RunConfig": "config", "SearchSpace": "space", "load": "export.load",
    "load_config": "config", "optimizer_groups": "export.load"}
__getattr__ = lazy_names(__name__, _HOMES)

# A notice of a fused inference kernel, which training never calls; peft and transformers bring it up.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward"))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
