"""Exports loaded again by what they are for, and their logits beside those of the run's own model."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from qra_bo.export.foreign import check_adapter_config
from qra_bo.export.load import check_adapter, load
from qra_bo.export.models import BASES, BITSANDBYTES, MERGED, half, merged_model
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.evaluation.probe import PROBE
from qra_bo.finetune.manifest import PACKED, read_manifest
from qra_bo.finetune.models.files import check_model_files
from qra_bo.finetune.models.quiet import without_bars

UNIFORM_RANK = "export/adapter_uniform_rank"


@dataclass(frozen=True, slots=True)
class Row:
    """One export.

    Args:
        what: Its name.
        loaded_by: What loaded it, or what would.
        difference: Largest difference of logits to the run's own model, or ``None`` where it was not loaded.
        mean: The mean of these differences, likewise.
        note: What the difference means, or why it was not loaded.
    """

    what: str
    loaded_by: str
    difference: float | None
    mean: float | None
    note: str


class ExportChecker:
    """Loads what a run's folder holds; the run's own model is loaded once.

    Args:
        run: A finished run with its base model at hand.
    """

    def __init__(self, run: FinishedRun) -> None:
        self.run, self.manifest = run, read_manifest(run.folder)
        self.ids = load_file(run.folder / PROBE)["input_ids"]
        model, _ = load(run.folder, trust_remote_code=run.trust_remote_code)
        self.kept = load_file(run.folder / PROBE)["logits"]
        self.own = self._logits(model)

    def rows(self) -> list[Row]:
        """Every export that is there, then what this machine can't load."""
        packed = "from packed.safetensors" if self.manifest.packed == PACKED else "the base quantised again"
        kept = (self.own[..., :self.kept.shape[-1]] - self.kept).abs()
        found = [Row("manifest and adapter", "qra_bo.load", float(kept.max()), float(kept.mean()),
                     f"{packed}, every checksum held; against the logits kept at the end of the run"),
                 self._row("adapter", "peft on the mixed base", lambda: self._peft(self.run.folder / "adapter"),
                           "the same sums in another order of rounding")]
        uniform, merged, bnb = (self.run.folder / name for name in (UNIFORM_RANK, MERGED, BITSANDBYTES))
        if uniform.is_dir():
            found.append(self._row("adapter of one rank", "peft on the mixed base", lambda: self._uniform(uniform),
                                   "added rows and columns are zero"))
        for base in BASES:
            found.append(self._row(f"merged into the {base} base", "in memory",
                                   lambda base=base: merged_model(self.run, self.manifest, base)[0],  # type: ignore[misc]
                                   MERGED_NOTES[base]))
        if merged.is_dir():
            found.append(self._row("merged, as written", "plain transformers", lambda: self._plain(merged),
                                   "of these two the one that export.merged_base chose"))
        if bnb.is_dir():
            found.append(self._row("bitsandbytes 4 and 16 bits, with the adapter", "plain transformers and peft",
                                   lambda: self._with_adapter(self._plain(bnb)),
                                   "bitsandbytes multiplies by kernels of its own" if self.manifest.packed else
                                   "bitsandbytes packs again and multiplies by kernels of its own"))
        return found + [absent(*entry) for entry in ELSEWHERE if (self.run.folder / entry[3]).exists()]

    def _row(self, what: str, by: str, make: Callable[[], Any], note: str) -> Row:
        with _quiet():
            try:
                apart = (self._logits(make()) - self.own).abs()
            except Exception as error:  # other people's loaders raise whatever they stumble on; the table says what
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                return Row(what, by, None, None, f"not loaded: {why}")
        return Row(what, by, float(apart.max()), float(apart.mean()), note)

    def _logits(self, model: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model.eval()(input_ids=self.ids, use_cache=False).logits.float()
        return logits

    def _peft(self, adapter: Path) -> Any:
        model, _ = load(self.run.folder, adapter=False, trust_remote_code=self.run.trust_remote_code)
        return self._with_adapter(model, adapter)

    def _uniform(self, adapter: Path) -> Any:
        check_adapter(adapter)
        check_adapter_config(adapter, self.manifest, one_rank=True)
        return self._peft(adapter)

    def _with_adapter(self, model: Any, adapter: Path | None = None) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(adapter or self.run.folder / "adapter"))

    def _plain(self, folder: Path) -> Any:
        from transformers import AutoModelForCausalLM

        check_model_files(str(folder), folder.name)
        return AutoModelForCausalLM.from_pretrained(str(folder), dtype=half(self.manifest), use_safetensors=True,
                                                    trust_remote_code=self.run.trust_remote_code)


MERGED_NOTES = {
    "dequantised": "what the adapter was trained on, rounded to 16 bits",
    "original": "another model: the adapter corrects quantisation errors that are not there",
}
ELSEWHERE = (
    ("axolotl.yaml", "axolotl", "axolotl", "export/axolotl.yaml"),
    ("train_trl.py", "trl", "TRL", "export/train_trl.py"),
    ("llamafactory.yaml", "llamafactory", "LLaMA-Factory", "export/llamafactory.yaml"),
    ("gptqmodel_dynamic.json", "gptqmodel", "GPTQModel", "export/gptqmodel_dynamic.json"),
    ("torchao_fqn.json", "torchao", "torchao", "export/torchao_fqn.json"),
    ("serve_vllm.txt", "vllm", "vLLM", "export/serve_vllm.txt"),
)
NEEDS_CUDA = ("gptqmodel", "vllm", "axolotl")
HINTS = ("gptqmodel", "torchao")
"""Exports that are starting points: the tool quantises in its own way, so there is no difference to hold it to."""


def absent(what: str, package: str, tool: str, path: str) -> Row:
    """What is written for a tool and not loaded here, with the reasons."""
    reasons = []
    if package in HINTS:
        reasons.append("a hint: the tool quantises the 16-bit base in its own way")
    if importlib.util.find_spec(package) is None:
        reasons.append(f"{tool} is not installed here")
    if package in NEEDS_CUDA and not torch.cuda.is_available():
        reasons.append(f"{tool} needs a GPU and this machine has none")
    reasons = reasons or ["a program for a training of your own"]
    return Row(what, tool, None, None, f"not loaded: {'; '.join(reasons)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices of libraries that load what they did not write."""
    with warnings.catch_warnings(), without_bars():
        warnings.simplefilter("ignore")
        yield
