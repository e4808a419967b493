"""The fine-tuning oracle of a study, with the description of its text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_bo.config import config_from_dict
from qra_bo.finetune.oracle import FinetuneOracle
from qra_bo.oracle.protocol import Progress
from qra_bo.pipeline.finetune_oracle import make_finetune
from qra_bo.sensitivity.profile import SensitivityProfile
from qra_bo.trials import TrialResult, TrialSpec


class TableOracle:
    """An oracle that also says how many training sequences there are; ``inner`` does the work."""

    def __init__(self, inner: FinetuneOracle) -> None:
        self.inner = inner

    def describe(self) -> Mapping[str, Any]:
        """As the inner oracle; the name of the text may be a path of this machine and is left out."""
        described = {k: v for k, v in self.inner.describe().items() if k != "data"}
        return {**described, "train_blocks": len(self.inner.data.train),
                "calibration_blocks": len(self.inner.data.calibration)}

    @property
    def profile_cost(self) -> Mapping[str, Any]:
        """What the profile cost, in tokens."""
        return self.inner.profile_cost

    def profile(self, progress: Progress) -> SensitivityProfile:
        return self.inner.profile(progress)

    def evaluate(self, request: TrialSpec, progress: Progress) -> TrialResult:
        return self.inner.evaluate(request, progress)

    def close(self) -> None:
        self.inner.close()


def make_oracle(config: Mapping[str, Any], out: str) -> TableOracle:
    """Called inside the worker process."""
    return TableOracle(make_finetune(config_from_dict(config), Path(out)))
