"""``export.check``: exports loaded again by the programs they are for, with their difference to the run's own model."""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from qra_bo.export import bitsandbytes, merged, uniform_rank
from qra_bo.export.foreign import check_adapter
from qra_bo.export.load import load
from qra_bo.export.merged import half
from qra_bo.export.registry import TARGETS
from qra_bo.export.run import FinishedRun, Target
from qra_bo.finetune.manifest import PACKED, PROBE, read_manifest, read_probe
from qra_bo.finetune.models.files import check_model_files
from qra_bo.finetune.models.load import without_bars


@dataclass(frozen=True, slots=True)
class Row:
    """One export: its name, the program that loads it, and largest and mean difference of logits to the run's model.

    ``note`` is the meaning of the difference, or the reason why it was not loaded and has none.
    """

    what: str
    loaded_by: str
    difference: float | None
    mean: float | None
    note: str


class ExportChecker:
    """Loads every export in the folder of a finished run, and once the run's own model."""

    def __init__(self, run: FinishedRun) -> None:
        self.run, self.manifest = run, read_manifest(run.folder)
        model, _ = load(run.folder, trust_remote_code=run.trust_remote_code)
        self.ids, self.kept = read_probe(run.folder / PROBE)
        self.own = self._logits(model)

    def rows(self) -> list[Row]:
        """Every export that is there, then those that this machine can't load."""
        run = self.run
        packed = "from packed.safetensors" if self.manifest.packed == PACKED else "the base quantised again"
        kept = (self.own[..., :self.kept.shape[-1]] - self.kept).abs()
        own = Row("manifest and adapter", "qra_bo.load", float(kept.max()), float(kept.mean()),
                  f"{packed}, every checksum held; against the logits kept at the end of the run")
        one_rank, whole, bnb = (run.folder / m.FOLDER for m in (uniform_rank, merged, bitsandbytes))
        again = "" if self.manifest.packed else "packs again and "
        entries: list[tuple[bool, str, str, Callable[[], Any], str]] = [
            (True, "adapter", "peft on the mixed base", partial(self._peft, run.adapter, False),
             "the same sums in another order of rounding"),
            (one_rank.is_dir(), "adapter of one rank", "peft on the mixed base", partial(self._peft, one_rank, True),
             "added rows and columns are zero"),
            *((True, f"merged into the {base} base", "in memory",
               lambda base=base: merged.merged_model(run, self.manifest, base)[0], note)
              for base, note in merged.MEANING.items()),
            (whole.is_dir(), "merged, as written", "plain transformers", partial(self._plain, whole),
             "the one of these two that export.merged_base chose"),
            (bnb.is_dir(), "bitsandbytes 4 and 16 bits, with the adapter", "plain transformers and peft",
             lambda: PeftModel.from_pretrained(self._plain(bnb), str(run.adapter)),
             f"bitsandbytes {again}multiplies by kernels of its own")]
        found = [own, *(self._row(what, by, make, note) for is_there, what, by, make, note in entries if is_there)]
        return found + [not_loaded(t) for t in TARGETS.values() if t.tool and (run.folder / t.path).exists()]

    def _row(self, what: str, by: str, make: Callable[[], Any], note: str) -> Row:
        with warnings.catch_warnings(), without_bars():
            warnings.simplefilter("ignore")
            try:
                apart = (self._logits(make()) - self.own).abs()
            except Exception as error:  # loaders of other libraries raise anything; the table holds the reason
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                return Row(what, by, None, None, f"not loaded: {why}")
        return Row(what, by, float(apart.max()), float(apart.mean()), note)

    def _logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(input_ids=self.ids, use_cache=False).logits.float()
        return logits

    def _peft(self, adapter: Path, one_rank: bool) -> Any:
        check_adapter(adapter, self.manifest, one_rank)
        model, _ = load(self.run.folder, adapter=False, trust_remote_code=self.run.trust_remote_code)
        return PeftModel.from_pretrained(model, str(adapter))

    def _plain(self, folder: Path) -> Any:
        from transformers import AutoModelForCausalLM  # slow to import
        check_model_files(folder, folder.name)
        return AutoModelForCausalLM.from_pretrained(str(folder), dtype=half(self.manifest), use_safetensors=True,
                                                    trust_remote_code=self.run.trust_remote_code)


def not_loaded(target: Target) -> Row:
    """An export for a program that is not run here, with the reasons."""
    reasons = []
    if target.hint:
        reasons.append("a hint: the tool quantises the 16-bit base in its own way")
    if importlib.util.find_spec(target.package) is None:
        reasons.append(f"{target.tool} is not installed here")
    if target.needs_cuda and not torch.cuda.is_available():
        reasons.append(f"{target.tool} needs a GPU and this machine has none")
    reasons = reasons or ["a program for a training of your own"]
    return Row(Path(target.path).name, target.tool, None, None, f"not loaded: {'; '.join(reasons)}")
