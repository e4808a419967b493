"""What rounding to bfloat16 adds to sensitivities.

    python -m bench.profile_rounding [--work outputs/profile-rounding] [overrides ...]

The setting of bench.search.real_efforts: the plays, a run in bfloat16, six formats, codes by GPTQ. One profile has
activations in bfloat16 as training has them, and one in fp32, which is what a run measures. Divergences are summed over
the units.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.collect.worker import make_oracle
from bench.report import RESULTS, publish
from bench.search.real_efforts import DEFAULTS, LIMITS
from qra_bo.config import load_config
from qra_bo.finetune import profiling
from qra_bo.oracle.protocol import quiet
from qra_bo.sensitivity.importance import shrunk_sensitivity
from qra_bo.sensitivity.io import load_profile, save_profile
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.study.intervals import spearman

ROUNDED, WHOLE = "bfloat16", "float32"
"""Types of a profile's activations."""
Row = dict[str, Any]


def measured(kind: str, work: Path, overrides: Sequence[str]) -> SensitivityProfile:
    """Return the profile whose activations have the type ``kind``, from ``work`` where it is there."""
    path = profile_path(work, kind)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        config = load_config([*DEFAULTS, *overrides, f"budget={LIMITS[0]}"])
        rounded = patch.object(profiling, "in_float32", nullcontext) if kind == ROUNDED else nullcontext()
        with closing(make_oracle(config.to_dict(), str(path.parent), [])) as oracle, rounded:
            oracle.inner.profile_cache = None
            save_profile(oracle.profile(quiet), path)
    return load_profile(path)


def profile_path(work: Path, kind: str) -> Path:
    """Return the file of a profile."""
    return work / kind / "profile.json"


def format_rows(profiles: Mapping[str, SensitivityProfile]) -> list[Row]:
    """Return, by format, the divergences of all units in both profiles, and how well their orders of units agree."""
    rounded, whole = profiles[ROUNDED], profiles[WHOLE]
    combined = {kind: shrunk_sensitivity(profile) for kind, profile in profiles.items()}
    return [{"format": name, "source": whole.source,
             **{kind: float(profile.quantization_kl[:, i].sum()) for kind, profile in profiles.items()},
             "spearman": spearman(rounded.quantization_kl[:, i].tolist(), whole.quantization_kl[:, i].tolist()),
             "spearman_combined": spearman(*(combined[kind][:, i].tolist() for kind in (ROUNDED, WHOLE)))}
            for i, name in enumerate(whole.formats)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile_rounding", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("outputs/profile-rounding"), help="where profiles are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    options = parser.parse_args(arguments)
    profiles = {kind: measured(kind, options.work, options.overrides) for kind in (ROUNDED, WHOLE)}
    publish("profile_rounding", [], format_rows(profiles),
            ("format", ROUNDED, WHOLE, "spearman", "spearman_combined"), folder=options.out)


if __name__ == "__main__":
    main()
