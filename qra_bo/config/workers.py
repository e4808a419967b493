"""The groups of the configuration on workers: where trials run, how many at once, and their limits."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qra_bo.memory import parse_size
from qra_bo.utils.fields import Count, Group, NonNegative, Positive, accepted_by


class WorkerConfig(Group):
    """Limits of worker processes; see ``execution.pool.Limits``.

    Args:
        deadline_seconds: Longest silence before a worker counts as hung; ``None`` for no limit.
        checkpoint_seconds: Least time between two checkpoints within one trial.
        spill_above: RAM that the packed layers of all workers may take before they are kept on disk; ``"auto"`` for
            half of what is free.
    """

    deadline_seconds: Positive | None
    checkpoint_seconds: NonNegative
    spill_above: Annotated[str, accepted_by(lambda text: text == "auto" or parse_size(text))]


class LocalExecutorConfig(Group):
    """Worker processes of this machine, and how many trials run at once."""

    name: Literal["local"]
    workers: Count
    elsewhere: ClassVar[bool] = False


class RayExecutorConfig(Group):
    """Workers of a Ray cluster, and the resources of each: cores, GPUs and host memory (a size such as ``"2GB"``).

    ``address=None`` starts a cluster of this machine alone, for this run.
    """

    name: Literal["ray"]
    workers: Count
    address: str | None
    cpus: NonNegative | None
    gpus: NonNegative | None
    memory: Annotated[str, accepted_by(parse_size)] | None

    @property
    def elsewhere(self) -> bool:
        """Whether workers are on other machines, so that this one holds no model."""
        return self.address is not None


ExecutorConfig = Annotated[LocalExecutorConfig | RayExecutorConfig, Field(discriminator="name")]
