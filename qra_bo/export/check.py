"""``export.check``: exports loaded again by the programs they are for, with their difference to the run's own model."""

import torch

from qra_bo.export.comparison import Reference, Row, View
from qra_bo.export.load import load
from qra_bo.export.registry import TARGETS, stale_exports
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.manifest import PROBE, probe_difference, read_probe

_STALE = "failed: it is unfinished, or of an earlier result of this run; export it again"


def check_exports(run: FinishedRun) -> list[Row]:
    """Load a run by ``qra_bo.load``, its adapter by PEFT, and every export in its folder by the program it is for.

    An export that can't be loaded has a row with the reason. Errors: those of ``load``.
    """
    model, _ = load(run.folder, trust_remote_code=run.trust_remote_code)
    manifest = run.manifest
    packed = "the base as it is" if manifest.packed is None else f"from {manifest.packed}"
    then = "" if manifest.packed_on == "cpu" else f", which were computed on {manifest.packed_on} and here on a CPU"
    rows = [Row("manifest and adapter", "qra_bo.load", f"{packed}, every checksum held; against the logits kept at the "
                f"end of the run{then}", probe_difference(model, run.folder / PROBE, torch.device("cpu")))]
    reference = Reference(run, read_probe(run.folder / PROBE)[0][0], model)
    rows.append(reference.row(View("adapter", reference.fused, note="the same sums in another order"),
                              "peft on the mixed base"))
    stale = stale_exports(run)
    for target in TARGETS.values():
        if target.loader is not None and (run.folder / target.path).exists():
            rows += [Row(target.name, target.loader.name, _STALE)] if target.name in stale else \
                target.loader.rows(target.name, run, reference)
    return rows
