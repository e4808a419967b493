"""Starting points for tools that quantise in their own way: marked as hints, since their numbers will differ."""

import json
import re
import shlex
from typing import Any

from qra_bo.export.run import FinishedRun
from qra_bo.report.story import server_rank

HINT = ("A hint, not a copy of the run: this tool quantises in its own way (and GPTQ calibrates), so losses and bytes "
        "differ from those in best.json; evaluate again. Servers with fused projections want q, k, v "
        "alike and gate, up alike.")
GPTQ_BITS = (2, 3, 4, 8)


def _at_least(bits: int, offered: tuple[int, ...]) -> int:
    """The smallest of the ascending widths ``offered`` that is no less than ``bits``."""
    return next(width for width in offered if width >= bits)


def gptqmodel(run: FinishedRun) -> str:
    """``gptqmodel_dynamic.json``: bits by module for GPTQModel's ``QuantizeConfig(dynamic=...)``."""
    dynamic: dict[str, dict[str, Any]] = {}
    for name, bits in run.module_bits.items():
        key = f"^{re.escape(name)}$"
        if bits <= GPTQ_BITS[-1]:
            stored = _at_least(bits, GPTQ_BITS)
            dynamic[f"+:{key}"] = {"bits": stored, "group_size": 64 if stored < 8 else 128}
        else:
            dynamic[f"-:{key}"] = {}
    return json.dumps({"hint": HINT, "use": "QuantizeConfig(bits=4, group_size=64, dynamic=THIS['dynamic'])",
                       "dynamic": dynamic}, indent=1) + "\n"


def torchao(run: FinishedRun) -> str:
    """``torchao_fqn.json``: module path to weight-only bits for torchao's ``FqnToConfig``: 4 bits for 2 and 3, 8 for 5
    and 6."""
    names = {4: "Int4WeightOnlyConfig", 8: "Int8WeightOnlyConfig", 16: None}
    modules = {name: names[_at_least(bits, tuple(names))] for name, bits in run.module_bits.items()}
    raised = {str(bits): _at_least(bits, tuple(names)) for bits in sorted(set(run.module_bits.values()) - set(names))}
    return json.dumps({"hint": HINT, "bits_raised": raised,
                       "use": "FqnToConfig({name: None if c is None else getattr(torchao.quantization, c)() for name, "
                              "c in THIS['modules'].items()})",
                       "modules": modules}, indent=1) + "\n"


def vllm(run: FinishedRun) -> str:
    """``serve_vllm.txt``: the command line, and what it does not do."""
    return f"""# {HINT}
# vLLM loads no mixed bits: this serves the adapter on the base as vLLM loads it. Ranks up to {run.max_rank}.
vllm serve {shlex.quote(run.base)} --enable-lora --max-lora-rank {server_rank(tuple(run.best['ranks']))} \\
  --lora-modules {shlex.quote(f"qra_bo={run.folder.resolve() / 'adapter'}")}
# A server that wants one rank for all modules takes export/adapter_uniform_rank/ (zero-padded, the same function).
"""
