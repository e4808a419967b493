"""Records: the codec of trials, keys of specs, streams of random numbers, and the error tree."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from qra_bo.space import uniform
from qra_bo.trials import Fidelity, Trial, TrialResult, TrialSpec, TrialState
from tests.spaces import make_problem

FIELDS = {"event", "id", "fingerprint", "bits", "ranks", "stage", "fidelity", "steps", "new_steps", "train_seed",
          "seed", "state", "loss", "loss_se", "curve", "predicted_bytes", "measured_bytes", "seconds"}


def make(state: TrialState = TrialState.OK, loss: float | None = 4.0123456789012345) -> Trial:
    request = TrialSpec(uniform(3, "nf4", 4), 6, 24, 11, 2e-3)
    curve = ((3, 4.5), (6, 4.0123456789012345)) if loss is not None else ()
    measurement = TrialResult(state, loss, None if loss is None else 0.1, curve, 6, 1536, 4096, 123, 1.5, 0.25, "why")
    return Trial(7, request.allocation, (4, 4, 4), "evolution", Fidelity.LOW, request, 0, measurement, 456)


NEAREST = dataclasses.replace(make(), spec=dataclasses.replace(make().spec, codes="rtn"))
SUMS = dataclasses.replace(make(), result=dataclasses.replace(
    make().result, sequence_losses=((1.5, 3, 0), (0.25, 1, 4))))
FAILED = [make(s, None) for s in TrialState if s is not TrialState.OK]


@pytest.mark.parametrize("trial", [make(), NEAREST, SUMS, *FAILED])
def test_json_round_trip_is_exact(trial: Trial) -> None:
    line = json.dumps(trial.to_json(), allow_nan=False)
    assert Trial.from_json(json.loads(line)) == trial
    assert set(json.loads(line)) >= FIELDS
    assert trial.ok == (trial.loss is not None)


@pytest.mark.parametrize(("key", "value"), [("state", "lost"), ("fidelity", "medium"), ("steps", "many"),
                                            ("curve", [[1]]), ("bits", None), ("id", None)])
def test_a_mistyped_field_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=key):
        Trial.from_json({**make().to_json(), key: value})


def test_specs_that_differ_have_different_keys() -> None:
    base = TrialSpec(uniform(3, "nf4", 4), 6, 24, 0, 2e-3)
    changes: list[dict[str, Any]] = [{}, {"allocation": uniform(3, "nf4", 8)}, {"steps": 12}, {"schedule_steps": 48},
                                     {"train_seed": 1}, {"split": "test"}, {"learning_rate": 4e-3}, {"codes": "rtn"}]
    keys = [dataclasses.replace(base, **c).key for c in changes]
    assert len(set(keys)) == len(changes)
    assert keys[0] == f"{base.allocation.fingerprint}-6of24-t0-validation-lr0.002"


def test_random_streams_are_named_and_independent() -> None:
    problem = make_problem(seed=0)
    names = ("a", "b", "evolution", "evolution.promotion")
    draws = {name: problem.rng(name).random(4).tolist() for name in names}
    assert len({tuple(d) for d in draws.values()}) == 4
    assert problem.rng("a").random(4).tolist() == draws["a"]
    assert dataclasses.replace(problem, seed=1).rng("a").random(4).tolist() != draws["a"]
    before = np.random.get_state()[1].copy()
    problem.rng("a").random(10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
