"""Parts of the configuration that name their own class or function."""

import json
from typing import Any, Self

from pydantic import ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from qra_bo.utils.fields import REFUSED, Group


class Target(Group):
    """An object that ``hydra.utils.instantiate`` makes, as named in ``conf/`` or in the user's own ``--config-dir``.

    The keys beside ``name`` are ``_target_``, the dotted path of a class or function, and its keyword arguments.
    """

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def target(self) -> dict[str, Any]:
        """``_target_`` and its keyword arguments; empty for nothing."""
        return self.model_extra or {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target and not isinstance(self.target.get("_target_"), str):
            raise PydanticCustomError(REFUSED, "_target_ must be the dotted path of a class or function, e.g. my.Class")
        try:
            json.dumps(self.target, allow_nan=False)
        except (TypeError, ValueError):
            raise PydanticCustomError(REFUSED, "its values must be finite numbers, texts, lists and mappings") from None
        return self

    def make(self, **given: Any) -> Any:
        """Import and call ``_target_`` with its own keyword arguments and ``given``.

        Only for a configuration that the user composed: never for one that was read from a run's folder.
        """
        from hydra.utils import instantiate  # half a second that checking and planning do without

        return instantiate({**self.target, "_partial_": True}, _convert_="all")(**given)
