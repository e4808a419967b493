"""Difference of an export, loaded by the program it is for, to the run's own model: logits in fp32, KL divergence."""

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from qra_bo.export.foreign import check_adapter
from qra_bo.export.load import load
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.adapters.lora import detach
from qra_bo.finetune.models.files import check_model_files
from qra_bo.finetune.models.load import cast_parameters, use_fast_attention, without_bars


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison.

    Args:
        what: The export, or a part of it.
        loaded_by: Program that loaded it.
        note: What explains the difference, or why nothing was compared.
        largest: Largest absolute difference of logits; ``None`` where nothing was compared.
        mean: Mean of these differences, where it was taken.
        kl: Mean over positions of the KL divergence of the export from the run's own model, nats, where taken.
    """

    what: str
    loaded_by: str
    note: str
    largest: float | None = None
    mean: float | None = None
    kl: float | None = None

    @property
    def result(self) -> str:
        """The outcome in words; empty where nothing was compared."""
        if self.largest is None:
            return ""
        if self.largest == 0:
            return "exact"
        apart = f"logits differ by at most {self.largest:.2g}"
        return apart if self.kl is None else f"KL {self.kl:.2g}, {apart} (mean {self.mean:.2g})"


class Reference:
    """The run's own model computed in fp32, and its logits on some tokens.

    fp32 makes differences of an export stand out: in bf16, the order of summation alone moves logits by tenths. The
    weights are the run's packed ones; the adapter is applied by PEFT's own forward.

    Args:
        run: The run.
        ids: Tokens, ``n``.
        model: What ``load`` returned for this run, if it is at hand; it is changed.

    Attributes:
        mixed: The mixed base without adapter, for exports that are adapters.
        own: Logits with the adapter, ``n x v``, fp32.
        fused: The same by the forward of ``load``, which sums in another order.
        base: Logits of the base alone, ``n x v``, fp32.
    """

    def __init__(self, run: FinishedRun, ids: Tensor, model: Any = None) -> None:
        self.run, self.ids = run, ids
        wrapped = load(run.folder, trust_remote_code=run.trust_remote_code)[0] if model is None else model
        for module in wrapped.modules():
            if hasattr(module, "compute_dtype"):  # linears, and packed embeddings
                module.compute_dtype = torch.float32
        cast_parameters(wrapped, torch.float32)
        use_fast_attention(wrapped, torch.device("cpu"), torch.float32)
        self.fused = self.logits(wrapped)
        self.mixed: Any = wrapped.get_base_model()
        detach(self.mixed)
        self.base = self.logits(self.mixed)
        self.own = self.adapted(run.adapter, one_rank=False)

    def adapted(self, adapter: Path, *, one_rank: bool) -> Tensor:
        """Return the logits, ``n x v``, of the mixed base with an adapter in PEFT's format, applied by PEFT.

        ``one_rank`` says that it is the run's adapter with the largest rank everywhere.
        """
        check_adapter(adapter, self.run.manifest, one_rank)
        try:
            return self.logits(with_adapter(self.mixed, adapter))
        finally:
            detach(self.mixed)

    def logits(self, model: Any) -> Tensor:
        """Return the logits, ``n x v``, of a transformers model in fp32."""
        with torch.no_grad():
            found: Tensor = model.eval()(input_ids=self.ids.unsqueeze(0), use_cache=False).logits[0].float()
        return found

    def rows(self, what: str, model: Any) -> list[Row]:
        """Compare a base that was loaded, without the adapter and with it; ``what`` is the export."""
        return [self.row(f"{what}, base", self.logits(model), adapted=False),
                self.row(f"{what}, with the adapter", self.logits(with_adapter(model, self.run.adapter)))]

    def row(self, what: str, logits: Tensor, note: str = "", *, adapted: bool = True, loaded_by: str = "") -> Row:
        """Compare the ``logits``, ``n x v``, of one way to load an export with the run's own, those with the adapter
        where it is in them (``adapted``); ``note`` is what explains a difference."""
        own = self.own if adapted else self.base
        if logits.shape != own.shape:
            return Row(what, loaded_by, f"failed: its logits are of shape {list(logits.shape)}, the run's own of "
                                        f"{list(own.shape)}")
        if not torch.isfinite(logits).all():
            return Row(what, loaded_by, "failed: it computes logits that are no finite numbers")
        apart = (logits.float() - own).abs()
        return Row(what, loaded_by, note, float(apart.max()), float(apart.mean()), divergence(own, logits.float()))


@dataclass(frozen=True, slots=True)
class Loader:
    """A program that loads an export on this machine.

    Args:
        name: As in the table.
        views: Loads a run's export in each of its ways, and compares its logits on the reference's tokens.
        packages: Import names that it needs.
        install: Arguments of ``pip install`` that bring them.
    """

    name: str
    views: Callable[[FinishedRun, Reference], Iterable[Row]]
    packages: tuple[str, ...] = ()
    install: str = ""

    def rows(self, what: str, run: FinishedRun, reference: Reference) -> Iterator[Row]:
        """Compare the export ``what`` in every way; where that is impossible, one row says why."""
        if any(importlib.util.find_spec(package) is None for package in self.packages):
            yield Row(what, self.name, f"not installed: pip install {self.install}")
            return
        with warnings.catch_warnings(), without_bars(), redirect_stderr(StringIO()):  # other libraries draw bars too
            warnings.simplefilter("ignore")
            try:
                for row in self.views(run, reference):
                    yield replace(row, loaded_by=self.name)
            except Exception as error:  # loaders of other libraries raise anything; the table holds the reason
                yield Row(what, self.name, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def divergence(own: Tensor, other: Tensor) -> float:
    """Return the mean over positions of KL(own || other) in nats, of logits ``n x v``; never below 0."""
    p, q = (torch.log_softmax(logits.double(), dim=-1) for logits in (own, other))
    return max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))


def with_adapter(model: Any, adapter: Path) -> Any:
    """Put an adapter folder on a model, which is on the CPU, with plain PEFT."""
    with warnings.catch_warnings():  # PEFT 0.21 asks transformers by a name that transformers renamed
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")


def plain_model(folder: Path, trust_remote_code: bool) -> Any:
    """Load a folder by transformers alone, to compute in fp32."""
    from transformers import AutoModelForCausalLM  # slow to import
    check_model_files(folder, folder.name)
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True,
                                                trust_remote_code=trust_remote_code)
