"""One trial while it runs: its steps and cost so far, and its checkpoint."""

import logging
import time
from dataclasses import dataclass, field, replace

from torch import Tensor

from qra_bo.finetune.training.checkpoints import Checkpoint, CheckpointStore
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.trials import TrialResult, TrialSpec, TrialState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrialRun:
    """A trial's steps and cost so far, whether or not it ends well.

    Args:
        request: The trial.
        store: Where it continues, or ``None`` to keep no checkpoint.
        at: Steps, tokens and curve so far; its seconds are those of earlier processes, in which it was interrupted.
        start: When this process began with it.
        saved: When the last checkpoint was written.
    """

    request: TrialSpec
    store: CheckpointStore | None
    at: Checkpoint = field(init=False)
    start: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.at = Checkpoint(target=self.request.steps)

    @property
    def name(self) -> str:
        """Name of its checkpoint, which trials of all fidelities of an allocation share."""
        r = self.request
        return f"{r.allocation.fingerprint}-{r.schedule_steps}-t{r.train_seed}-lr{r.lr_scale:g}{r.how}"

    @property
    def seconds(self) -> float:
        """Time in this process, and in those before it in which the trial was interrupted."""
        return self.at.seconds + time.monotonic() - self.start

    def failed(self, state: TrialState, message: str) -> TrialResult:
        """Return a result without a loss."""
        return TrialResult(state, None, None, (), self.at.step - self.at.first, self.at.training_tokens,
                           self.at.forward_tokens, None, self.seconds, 0.0, message)

    def save(self, state: dict[str, Tensor]) -> None:
        """Write a checkpoint with the state of the optimiser."""
        if self.store:
            self.store.save(self.name, replace(self.at, seconds=self.seconds, state=state))
        self.saved = time.monotonic()

    def restore(self, optimizer: UnitwiseAdamW) -> None:
        """Continue from the checkpoint, if there is one of these adapters."""
        saved = self.store.load(self.name, self.request.steps) if self.store else None
        if saved is None:
            return
        if not optimizer.accepts(saved.state):
            log.warning("the checkpoint of %s belongs to other adapters: training starts anew", self.name)
            return
        optimizer.load_state(saved.state)
        self.at = replace(saved, state={})
        if saved.target != self.request.steps:  # a finished trial of lower fidelity: its cost does not count
            self.at = Checkpoint(saved.step, self.request.steps, saved.step, curve=saved.curve)

    def stops(self, record_at: tuple[int, ...]) -> list[int]:
        """Return the steps at which training pauses: to record the held-out loss, and at the end."""
        due = self.at.step - (self.at.step > self.at.first)  # the loss after the last step may not have been recorded
        recorded = {step for step, _ in self.at.curve}
        return sorted({s for s in (*record_at, self.request.steps) if due < s <= self.request.steps} - recorded)
