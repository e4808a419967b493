"""Settings of the oracle that fine-tunes, and what it keeps on disk."""

from dataclasses import dataclass

from qra_bo.finetune.cache import TensorStore
from qra_bo.finetune.training.loop import TrainSettings
from qra_bo.finetune.training.trial_run import CheckpointStore


@dataclass(frozen=True, slots=True)
class FinetuneSettings:
    """Settings of the oracle besides model, data and bank.

    Args:
        alpha_over_rank: LoRA's scale, the same at every rank.
        eval_blocks: Held-out sequences of a look at the validation split.
        test_blocks: Those of a look at the test split.
        record_at: Steps after which the validation loss is recorded (the last step always is).
        largest_rank: Largest rank of I_r.
        scope: ``"peak"`` or ``"stored"``: the meaning of ``measured_bytes``; ``None``: nothing is measured.
        checkpoint_seconds: Least time between two checkpoints of one trial.
        by_gradients: Whether the profile's sensitivities to quantisation come from gradients, not from direct passes.
    """

    train: TrainSettings
    alpha_over_rank: float
    eval_blocks: int
    test_blocks: int
    record_at: tuple[int, ...]
    largest_rank: int
    scope: str | None = "peak"
    checkpoint_seconds: float = 60.0
    by_gradients: bool = False


@dataclass(frozen=True, slots=True)
class Stores:
    """What the oracle keeps on disk; ``None`` keeps none.

    Args:
        checkpoints: Checkpoints of trials.
        profiles: The sensitivity profile and its finished parts across runs.
    """

    checkpoints: CheckpointStore | None = None
    profiles: TensorStore | None = None
