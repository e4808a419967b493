"""The groups of the configuration on oracles: what runs trials."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Tag, model_validator
from pydantic_core import PydanticCustomError

from qra_bo.config.groups import Target
from qra_bo.oracle.protocol import FINETUNE
from qra_bo.utils.fields import REFUSED, Group, Noise

BUILT_IN = (FINETUNE, "synthetic")
"""Names of the oracles of this package, by which journals and reports tell them from a user's own."""


class FinetuneOracleConfig(Group):
    """Real fine-tuning. ``trains``: of an oracle whose winner is fine-tuned."""

    name: Literal["finetune"]
    trains: ClassVar[bool] = True


class SyntheticOracleConfig(Group):
    """A planted optimum; ``noise`` is the standard deviation of a loss over training seeds (nats)."""

    name: Literal["synthetic"]
    noise: Noise
    trains: ClassVar[bool] = False


class OwnOracleConfig(Target):
    """An oracle of the user's own package, made by its ``_target_``."""

    trains: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        """Refuse the name that an option leaves behind: reports would show results as those of real fine-tuning."""
        if self.name in BUILT_IN:
            raise PydanticCustomError(REFUSED, "its name must not be one of {known}, which have no _target_; got "
                                      "'{name}': give oracle.name=NAME too",
                                      {"known": ", ".join(BUILT_IN), "name": self.name})
        return self


def _kind_of_oracle(value: Any) -> Any:
    """Return the option's name, or ``"own"`` for an oracle that is made by its ``_target_``."""
    if isinstance(value, Mapping):
        return "own" if "_target_" in value else value.get("name")
    return "own" if isinstance(value, Target) else getattr(value, "name", None)


OracleConfig = Annotated[
    Annotated[FinetuneOracleConfig, Tag("finetune")] | Annotated[SyntheticOracleConfig, Tag("synthetic")]
    | Annotated[OwnOracleConfig, Tag("own")],
    Discriminator(_kind_of_oracle)]
