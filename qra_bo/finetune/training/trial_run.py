"""State of one trial while it runs: its steps, its cost, its learning curve, and its checkpoint."""

import logging
import time
from dataclasses import dataclass, field

from torch import Tensor

from qra_bo.finetune.training.checkpoints import Checkpoint, CheckpointStore
from qra_bo.finetune.training.optimizer import UnitwiseAdamW
from qra_bo.trials import TrialResult, TrialSpec, TrialState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TrialRun:
    """Steps and cost of a trial so far, whether or not it ends well.

    Args:
        request: The trial.
        store: Where it continues, or ``None`` to keep no checkpoint.
        first: Steps done before this trial (by one of lower fidelity).
        done: Steps done.
        training: Tokens it sent forward and backward.
        forward: Tokens it sent forward only.
        curve: Held-out loss at the recorded steps so far.
        start: When this process began with it.
        earlier: Seconds in processes before, in which it was interrupted.
        saved: When the last checkpoint was written.
    """

    request: TrialSpec
    store: CheckpointStore | None
    first: int = 0
    done: int = 0
    training: int = 0
    forward: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    start: float = field(default_factory=time.monotonic)
    earlier: float = 0.0
    saved: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """Name of its checkpoint, which trials of all fidelities of an allocation share."""
        r = self.request
        return f"{r.allocation.fingerprint}-{r.schedule_steps}-t{r.train_seed}-lr{r.lr_scale:g}{r.how}"

    @property
    def seconds(self) -> float:
        """Time in this process, and in those before it in which the trial was interrupted."""
        return self.earlier + time.monotonic() - self.start

    def failed(self, state: TrialState, message: str) -> TrialResult:
        """Return a result without a loss."""
        return TrialResult(state, None, None, (), max(0, self.done - self.first), self.training, self.forward, None,
                           self.seconds, 0.0, message)

    def save(self, state: dict[str, Tensor]) -> None:
        """Write a checkpoint with the state of the optimiser."""
        if self.store:
            self.store.save(self.name, Checkpoint(self.done, self.request.steps, self.first, self.training,
                                                  self.forward, self.seconds, self.curve, state))
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
        self.done = self.first = saved.step
        self.curve = saved.curve
        if saved.target == self.request.steps:  # the same trial was interrupted: its cost counts
            self.first, self.training, self.forward = saved.first, saved.training_tokens, saved.forward_tokens
            self.earlier = saved.seconds

    def stops(self, record_at: tuple[int, ...]) -> list[int]:
        """Return the steps at which training pauses: to record the held-out loss, and at the end."""
        due = self.done - (self.done > self.first)  # the loss after the last step may not have been recorded
        recorded = {step for step, _ in self.curve}
        return sorted({s for s in (*record_at, self.request.steps) if due < s <= self.request.steps} - recorded)
