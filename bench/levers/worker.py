"""What runs in the worker process of the study: profiles of any units, and changes of the trainer that are screened."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from bench.collect.worker import TableOracle
from qra_bo.finetune.adapters.inits import Initialiser, Prepared, full_weight, unpacked
from qra_bo.finetune.adapters.lowrank import Factors, leading
from qra_bo.finetune.models.activations import each_input
from qra_bo.finetune.profiling import measure_quantization_sensitivity
from qra_bo.finetune.quantization.gptq import DAMPING
from qra_bo.finetune.quantization.rounding import second_moments
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.sensitivity.io import profile_to_json
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import make_units

LARGEST_RANK = 32
SEQUENCES = 64
"""Of the text that codes are chosen on, for the moments of the weighted start."""


def measure(oracle: TableOracle, granularity: str, formats: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Measure the quantisation sensitivity of the units of a granularity; return the profile and its cost.

    ``cpu_seconds`` are of this process, codes and packed weights not counted.
    """
    bank, text = oracle.inner.bank, oracle.inner.text
    units, ladder = make_units(bank.spec, granularity), [parse_format(name) for name in formats]
    bank.build(progress)
    start = time.process_time()
    measured, base, forward, used = measure_quantization_sensitivity(bank, units, ladder, text, progress)
    profile = SensitivityProfile(tuple(u.name for u in units), tuple(formats), measured.rise, measured.kl, None, base,
                                 f"measured on {used} training sequences, codes by GPTQ", measured.se)
    return {"profile": profile_to_json(profile),
            "cost": {"cpu_seconds": round(time.process_time() - start, 1), "forward_tokens": forward,
                     "units": len(units), "formats": len(ladder), "sequences": used}}


class WarmupStableDecay(TrainSettings):
    """The trainer's settings with another schedule: the rate stays at its peak, and falls linearly in the last part."""

    DECAY = 0.25
    """Share of the steps in which the rate falls."""

    def lr_factor(self, step: int, total: int) -> float:
        warm, decay = max(1, round(self.warmup * total)), max(1, round(self.DECAY * total))
        if step < warm:
            return (step + 1) / warm
        return min(1.0, self.lr_floor + (1 - self.lr_floor) * (total - 1 - step) / decay)


def schedule(oracle: TableOracle, progress: Progress) -> dict[str, Any]:
    """Train with warm-up, stable rate and decay."""
    train = oracle.inner.settings.train
    changed = WarmupStableDecay(**{f.name: getattr(train, f.name) for f in fields(train)})
    oracle.inner.settings = replace(oracle.inner.settings, train=changed)
    return {}


class Weighted(Initialiser):
    """Adapters that start at the best approximation of the quantisation error for the inputs of each linear.

    The product P of rank r minimises ``||(E - P) M^(1/2)||_F`` for the error ``E = W - Q(W)`` (``out x in``) and second
    moments M of the inputs (CLoQ, arXiv 2501.18475; QERA, arXiv 2410.06040). With a Cholesky factor ``M = L L^T`` it is
    ``U U^T E``, U the leading left singular vectors of ``E L``: no factor is inverted, and a smaller rank is a prefix.
    Rows of A are as long as LoRA's own.
    """

    def prepare(self, formats: Mapping[str, str], ranks: Mapping[str, int], progress: Progress | None,
                nearest: bool = False) -> Prepared:
        """Initialise every quantised linear; see ``Initialiser.prepare``."""
        missing = [n for n, fmt in formats.items() if parse_format(fmt).bits < 16 and (n, fmt) not in self._known]
        if missing:
            self._approximate(missing, formats)
        return Prepared({n: self._known[n, fmt].first(ranks[n]).as_adapter(self.settings.alpha_over_rank, "kaiming")
                         for n, fmt in formats.items() if (n, fmt) in self._known}, {})

    _known: dict[tuple[str, str], Factors]

    def _approximate(self, names: Sequence[str], formats: Mapping[str, str]) -> None:
        bank, rounding = self.bank, self.bank.rounding
        assert rounding is not None
        bank.restore_dense()

        def use(sharing: list[str], inputs: torch.Tensor) -> None:
            moments = second_moments(inputs)
            moments.diagonal().add_(DAMPING * moments.diagonal().mean())
            root = torch.linalg.cholesky(moments)
            for name in sharing:
                weight, form = full_weight(bank, name), parse_format(formats[name])
                error = weight - unpacked(bank, form, bank.state(name, form.name), weight.shape)
                self._known[name, form.name] = weighted(error, root, LARGEST_RANK)

        each_input(bank.model, names, rounding._ids[:SEQUENCES].to(bank.device), use)


def weighted(error: torch.Tensor, root: torch.Tensor, rank: int) -> Factors:
    """Return the product of rank ``rank`` nearest to ``error`` (``out x in``) for inputs with moments ``root root^T``.

    Rows of ``down`` have length 1, and need not be orthogonal.
    """
    up = leading(error @ root, min(rank, *error.shape)).up
    axes = up / torch.linalg.vector_norm(up, dim=0).clamp_min(torch.finfo(torch.float32).tiny)
    down = axes.t() @ error
    lengths = torch.linalg.vector_norm(down, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    return Factors(down / lengths[:, None], axes * lengths)


def start(oracle: TableOracle, progress: Progress) -> dict[str, Any]:
    """Start adapters at the weighted approximation of the quantisation error."""
    inner, old = oracle.inner, oracle.inner.inits
    inner.inits = Weighted(old.bank, old.settings, old._text, None)
    inner.inits._known = {}
    return {}
