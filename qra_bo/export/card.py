"""The model card of an adapter: what it is, what it needs, and what it was measured to do."""

import json
from typing import Any

from qra_bo.export.run import FinishedRun
from qra_bo.report.story import server_rank
from qra_bo.report.text import DASH, number, runs, short_names, signed, size


def model_card(run: FinishedRun) -> str:
    """Markdown with a YAML head as model hubs read it."""
    best = run.best
    memory = best["memory"]
    front = {"base_model": run.base, "library_name": "peft", "tags": ["lora", "mixed-precision", "qra_bo"]}
    head = "\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in front.items())
    warning = (f"> **These numbers come from the {best['oracle']} oracle: no model was trained.**\n\n"
               if run.is_proxy else "")
    measured = "not measured" if memory["measured_bytes"] is None else f"{size(memory['measured_bytes'])} measured"
    return f"""---
{head}
---

# Adapter of {best['model']} with bits and ranks by {best.get('granularity', 'unit')}

{warning}A LoRA adapter whose rank differs by unit, trained on a base model whose bit-width differs by unit. Both were
chosen together by `qra_bo` within {size(memory['budget_bytes'])} of {memory['scope']} memory.

**It needs its mixed base.** On a 16-bit or uniformly quantised base it runs, but it corrects errors that are not
there; only the base in `quant_manifest.json` gives the loss below:

```python
import qra_bo
model, tokenizer = qra_bo.load("path/of/the/run")
```

`PeftModel.from_pretrained(base, "adapter")` takes this folder too. Servers that size their buffers by one rank want
`--max-lora-rank {server_rank(tuple(best['ranks']))}` (largest rank {run.max_rank}).

## Result

{_results(best)}

{_versus(best)}

Memory: {size(memory['predicted_bytes'])} predicted, {measured},
budget {size(memory['budget_bytes'])} ({memory['scope']}).

## Bits and ranks

{_units(best)}

LoRA alpha / r = {best['alpha_over_rank']:g} for every module.

## Licence

The adapter derives from `{run.base}` and from the data it was trained on: the licences of both apply. `qra_bo`
itself adds no condition.

## Provenance

{_provenance(best['provenance'])}
"""


def _results(best: Any) -> str:
    memory = best["memory"]
    lines = ["| | loss (nats per token) | predicted memory | fits |", "|---|---|---|---|",
             f"| **this adapter** | {number(best['loss'])} ± {number(best.get('loss_se'))} "
             f"({best.get('metric', 'loss')}) | {size(memory['predicted_bytes'])} | yes |"]
    lines += [f"| {b['name']} | {number(b['loss'])} | {size(b['predicted_bytes'])} | "
              f"{'yes' if b['feasible'] else 'no'} |" for b in best.get("baselines", ())]
    return "\n".join(lines)


def _versus(best: Any) -> str:
    v = best.get("versus_best_uniform")
    if not v:
        return "The adapter's allocation was not confirmed against the best uniform choice on unseen seeds."
    return (f"Against the best uniform choice at equal memory, over {v['train_seeds']} training seeds that the search "
            f"did not use: {signed(v['mean'])} nats (95 % interval {signed(v['low'])} to {signed(v['high'])}; negative "
            "is better).")


def _units(best: Any) -> str:
    names = [f["name"] if "name" in f else f"{f['backend']} {f['bits']}-bit" for f in best["formats"]]
    rows = list(zip(best["bits"], names, best["ranks"], strict=True))
    lines = ["| units | bits | format | rank |", "|---|---|---|---|"]
    for units, row in runs(short_names(best["units"]), rows):
        bits, name, rank = row if isinstance(row, tuple) else (DASH,) * 3
        lines.append(f"| {units} | {bits} | {name} | {rank} |")
    return "\n".join(lines)


def _provenance(provenance: Any) -> str:
    return "\n".join(f"- {key}: {json.dumps(value) if isinstance(value, dict | list) else value}"
                     for key, value in provenance.items())
