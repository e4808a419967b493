"""The help of one screen; ``--help all`` leaves every key to Hydra's own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from qra_bo.config.compose import named_efforts
from qra_bo.config.overrides import options

HELP = """\
qra_bo finds the bit-width and LoRA rank of every layer that fine-tune best within a memory budget.

  python -m qra_bo [task=TASK] +model=NAME budget=SIZE [key=value ...]

Knobs
  model=NAME          smollm2_135m, llama3_1_8b_instruct, qwen2_5_7b_instruct, ... ({models} in conf/model)
                      any other: +model=hf model.path=ORG/NAME, or a folder
  budget=SIZE         10GB, 10GiB, auto (what the device has), uniform:4,16 or mix:3.8,2 (what it needs); or gpu=rtx4090
  bits=[2,3,4,8]      bit-widths that a layer may have
  ranks=[4,8,16]      LoRA ranks that a layer may have, e.g. the paper's; if not given, 13 ranks from 1 to 32
  granularity=layer   layer | block | fused | module: what shares bits and rank
  effort=normal       {efforts}: how much a search may spend
  data=jsonl          with data.path=FILE, your text; also {data}

Tasks
  task=search         search, compare with the best uniform choice, fine-tune, export, report (the default)
  task=memory         what fits the budget; needs no weights and no GPU
  task=finetune       fine-tune a given allocation=uniform:4,16 or allocation=best.json
  task=profile        sensitivities of the layers
  task=evaluate       accuracy of a finished run, out=RUN eval.tasks=[...]
  task=export         other formats of a finished run
  task=report         the report of a finished run

Examples
  python -m qra_bo task=memory +model=qwen2_5_7b_instruct gpu=rtx4090 data=jsonl data.path=chat.jsonl
  python -m qra_bo task=finetune +model=qwen2_5_7b_instruct allocation=uniform:4,16 data=jsonl data.path=chat.jsonl
  python -m qra_bo +model=qwen2_5_7b_instruct budget=6GB effort=quick data=jsonl data.path=chat.jsonl
  python -m qra_bo.runs chat outputs/RUN      the trained model answers; also: list, show

--help all lists every key, --cfg job prints the configuration, --multirun starts a sweep. Documentation: docs/
"""
_INTERNAL = re.compile(r"(?<=[:,] )_\w+(?:, |$)", re.MULTILINE)
"""Names of options for other files of ``conf/`` alone, as Hydra lists them."""


@contextmanager
def public_options() -> Iterator[None]:
    """Leave internal options out of what Hydra prints in the block."""
    said = StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        print(_INTERNAL.sub("", said.getvalue()), end="")


def short_help() -> str:
    """Return the help of one screen, with the options that ``conf/`` has."""
    efforts = sorted(named_efforts().values(), key=lambda effort: effort.max_full_trials)
    return HELP.format(models=len(options()["model"]), efforts=" | ".join(effort.name for effort in efforts),
                       data=", ".join(name for name in options()["data"] if name not in ("jsonl", "tiny")))
