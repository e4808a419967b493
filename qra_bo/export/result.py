"""Types of the fields of ``best.json`` that exports state: the file may be of unknown origin, and its values are
rendered into programs and pages."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, StrictBool, StrictFloat, StringConstraints, ValidationError, create_model

from qra_bo.config.check import fields_of
from qra_bo.config.groups import AdapterConfig, TrainConfig
from qra_bo.study.results import TRAINING
from qra_bo.utils.fields import Count, Natural, NonNegative

Line = Annotated[str, StringConstraints(pattern=r"\A[^\x00-\x1f\x7f-\x9f\u2028\u2029]*\z")]
"""A text without line breaks and control characters: it is rendered into a line."""
_Loss = StrictFloat | None


def _object(**types: Any) -> Any:
    fields: Any = {key: (kind, ...) for key, kind in types.items()}
    return create_model("Object", **fields)


_Format = _object(backend=Line, bits=Count)
_Baseline = _object(name=Line, loss=_Loss, predicted_bytes=Natural, feasible=StrictBool)
BEST: type[BaseModel] = _object(
    model=Line, granularity=Line, oracle=Line, metric=Line, searched=StrictBool, winner_kind=Line,
    units=list[Line], bits=list[Count], ranks=list[Natural], formats=list[_Format],  # type: ignore[valid-type]
    alpha_over_rank=NonNegative, learning_rate=NonNegative, lr_rule=fields_of(AdapterConfig)["lr_rule"],
    loss=_Loss, loss_se=_Loss, search_loss=_Loss, baselines=list[_Baseline],  # type: ignore[valid-type]
    delivered=_object(loss=StrictFloat, loss_se=_Loss, kept_step=Natural) | None,
    memory=_object(scope=Line, budget_bytes=Natural, predicted_bytes=Natural, measured_bytes=Natural | None),
    versus_best_uniform=_object(mean=StrictFloat, low=StrictFloat, high=StrictFloat, train_seeds=Natural,
                                steps=Natural) | None,
    objective=_object(steps=Natural, predicted_beyond=_Loss), provenance=dict[str, Any],
    training=_object(trial_steps=Count, steps=Natural, **{key: fields_of(TrainConfig)[key] for key in TRAINING}))


def problems_of(best: Mapping[str, Any]) -> Sequence[str]:
    """Return a text for every field of ``best.json`` that is missing, or of another type."""
    try:
        BEST.model_validate(dict(best))
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)][:5]
    lengths = {len(best[key]) for key in ("units", "bits", "ranks", "formats")}
    return [] if len(lengths) == 1 and 0 not in lengths else ["units, bits, ranks and formats must be of one length"]
