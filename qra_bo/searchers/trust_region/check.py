"""Held-out predictions of a searcher's surrogate as the journal keeps them."""

import math
from dataclasses import asdict
from typing import Any

from surrogates.diagnostics import HeldOut

LEAST_CHECKED = 5
"""Observations below which rank correlation and coverage say nothing."""


def check_fields(held_out: HeldOut) -> dict[str, Any]:
    """The fields of ``SelfChecking.surrogate_check``."""
    quality = {k: None if isinstance(v, float) and math.isnan(v) else v
               for k, v in asdict(held_out.diagnostics()).items()}
    return {"observed": held_out.truth.tolist(), "predicted": held_out.mean.tolist(), "sd": held_out.sd.tolist(),
            **quality}
