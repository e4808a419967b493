"""Groups of checked options: strict values with their bounds, as pydantic models."""

import os
from collections.abc import Callable
from typing import Annotated, Any, Self

import pydantic
from annotated_types import Ge, Gt, Le
from pydantic_core import PydanticCustomError

from qra_bo.utils.errors import ConfigError, UserError, nearest_first
from qra_bo.utils.formatting import cut

STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True, frozen=True)
"""No unknown keys and finite numbers alone; a number where a text is wanted is its text."""
MUST, REFUSED = "must", "refused"
"""Types of the validation errors that carry the end of a sentence, "must be ...", or a finished one."""


class Group(pydantic.BaseModel):
    """Base of a group of options; frozen."""

    model_config = STRICT

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced; rules between fields are checked where it is used. Raises
        ``ConfigError`` if there is no such field, or it does not take the value."""
        if unknown := changes.keys() - type(self).model_fields.keys():
            raise ConfigError(f"Unknown key {name!r}; nearest: {nearest_first(name, type(self).model_fields)[0]}."
                              for name in sorted(unknown))
        try:
            checked = self.model_validate({**dict(self), **changes})
        except pydantic.ValidationError as error:
            raise ConfigError(refusals(error)) from error
        return self.model_copy(update={name: getattr(checked, name) for name in changes})


def refusals(error: Exception) -> list[str]:
    """Return a text for every value that a model refuses or misses: its place, what was expected, and what was given;
    of any other error its own."""
    if not isinstance(error, pydantic.ValidationError):
        return [str(error)]
    return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" + ("" if e["type"] == "missing" else
                                                            f"; got {cut(repr(e['input']))}")
            for e in error.errors(include_url=False)]


def model_of(default: Any = ..., **kinds: Any) -> Any:
    """Return a model of the values of some keys, beside which there may be others: each of its kind, or the
    ``default`` where it is missing (``...``: none may be)."""
    fields: Any = {key: (kind, default) for key, kind in kinds.items()}
    return pydantic.create_model("Values", **fields)


def must_be(words: str, holds: Callable[[Any], bool]) -> pydantic.AfterValidator:
    """Return a validator of values for which ``holds`` is true; ``words`` follow "must be" in its message."""
    def check(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError(MUST, "{words}", {"words": words})
        return value

    return pydantic.AfterValidator(check)


def accepted_by(parse: Callable[[Any], object]) -> pydantic.AfterValidator:
    """Return a validator that refuses what ``parse`` refuses with a ``UserError``, in the words of that error."""
    def same(value: Any) -> Any:
        parse(value)
        return value

    return pydantic.AfterValidator(refusing(same))


def refusing(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``convert`` with its ``UserError`` as an error of validation."""
    def check(value: Any) -> Any:
        try:
            return convert(value)
        except UserError as error:
            raise PydanticCustomError(REFUSED, "{said}", {"said": str(error).rstrip(".")}) from None

    return check


Count = Annotated[pydantic.StrictInt, Ge(1), Le(10**9)]
Natural = Annotated[pydantic.StrictInt, Ge(0), Le(2**63 - 1)]
Positive = Annotated[pydantic.StrictFloat, Gt(0)]
NonNegative = Annotated[pydantic.StrictFloat, Ge(0)]
Noise = Annotated[pydantic.StrictFloat, Ge(0), Le(100)]
"""Standard deviation of a loss (nats); a larger one exceeds any loss, and squares of it would overflow."""
ONE_IS_A_LIST = pydantic.BeforeValidator(lambda value: [value] if isinstance(value, (str, int, float)) else value)
UserPath = Annotated[str, pydantic.AfterValidator(os.path.expanduser)]
"""A path, in which ``~`` stands for the user's folder."""
Texts = Annotated[tuple[str, ...], ONE_IS_A_LIST]
"""A list of texts; one text stands for a list of one."""
