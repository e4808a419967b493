"""What runs in the worker process of the study: profiles of any units, and changes of the trainer that are screened."""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from bench.collect.worker import TableOracle
from qra_bo.finetune.profiling import measure_quantization_sensitivity
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.memory.formats import parse_format
from qra_bo.oracle.protocol import Progress
from qra_bo.sensitivity.io import profile_to_json
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.space import make_units


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


def start(oracle: TableOracle, progress: Progress) -> dict[str, Any]:
    """Start adapters at the approximation of the quantisation error that is nearest for the inputs."""
    oracle.inner.inits = oracle.inner.inits.with_init("cloq")
    return {}
