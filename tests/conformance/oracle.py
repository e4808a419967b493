"""Rules that every oracle keeps. An oracle joins by subclassing ``OracleSuite`` and giving ``make``."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from qra_bo.oracle.protocol import Oracle, quiet
from qra_bo.space import Allocation
from qra_bo.trials import TrialResult, TrialSpec, TrialState


class OracleSuite:
    """Subclass as ``TestX`` with ``make`` (a fresh oracle that shares nothing with earlier ones), two allocations it
    can evaluate, and the steps of its fidelities."""

    make: Callable[[], Oracle]
    allocations: tuple[Allocation, Allocation]
    high_steps: int
    low_steps: int
    tolerance = 0.0

    def spec(self, steps: int, which: int = 0, train_seed: int = 0, split: str = "validation") -> TrialSpec:
        return TrialSpec(self.allocations[which], steps, self.high_steps, train_seed, 2e-3, split)

    def losses(self, m: TrialResult) -> list[float]:
        return [loss for _, loss in m.curve]

    def test_it_is_an_oracle_with_json_provenance(self) -> None:
        oracle = self.make()
        assert isinstance(oracle, Oracle)
        described = dict(oracle.describe())
        assert json.loads(json.dumps(described, allow_nan=False)) == described
        assert {"device", "dtype", "threads", "data_sha256"} <= set(described)
        oracle.close()

    def test_the_same_request_has_the_same_result_whatever_came_before(self) -> None:
        oracle = self.make()
        oracle.evaluate(self.spec(self.high_steps, which=1), quiet)
        first, second = (of.evaluate(self.spec(self.high_steps), quiet) for of in (self.make(), oracle))
        assert first.loss == pytest.approx(second.loss, abs=self.tolerance)
        assert self.losses(first) == pytest.approx(self.losses(second), abs=self.tolerance)
        assert (first.loss_se, first.new_steps, first.training_tokens) == (second.loss_se, second.new_steps,
                                                                           second.training_tokens)

    def test_a_measurement_is_complete(self) -> None:
        m = self.make().evaluate(self.spec(self.high_steps), quiet)
        assert m.state is TrialState.OK
        assert m.loss is not None
        assert np.isfinite(m.loss)
        assert m.loss_se is None or m.loss_se >= 0
        assert m.curve[-1] == (self.high_steps, m.loss)
        steps = [s for s, _ in m.curve]
        assert steps == sorted(set(steps))
        assert (m.new_steps, m.message) == (self.high_steps, "")
        assert m.training_tokens > 0
        assert m.seconds >= m.switch_seconds >= 0

    def test_low_fidelity_is_a_prefix_of_high(self) -> None:
        oracle = self.make()
        low = oracle.evaluate(self.spec(self.low_steps), quiet)
        high = oracle.evaluate(self.spec(self.high_steps), quiet)
        alone = self.make().evaluate(self.spec(self.high_steps), quiet)
        assert low.curve[-1] == (self.low_steps, low.loss)
        assert high.loss == pytest.approx(alone.loss, abs=self.tolerance)
        by_step = dict(high.curve)
        for step, loss in low.curve:
            if step in by_step:
                assert loss == pytest.approx(by_step[step], abs=self.tolerance)
        assert high.new_steps == self.high_steps - low.new_steps
        assert low.training_tokens + high.training_tokens == alone.training_tokens

    def test_training_seeds_and_splits_differ(self) -> None:
        oracle = self.make()
        base = oracle.evaluate(self.spec(self.high_steps), quiet).loss
        assert base != oracle.evaluate(self.spec(self.high_steps, train_seed=1), quiet).loss
        assert base != oracle.evaluate(self.spec(self.high_steps, split="test"), quiet).loss

    def test_the_profile_is_of_its_units_and_formats(self) -> None:
        profile, again = self.make().profile(quiet), self.make().profile(quiet)
        n = len(self.allocations[0])
        assert len(profile.units) == n
        gain = profile.require_rank_sensitivity()
        assert (np.diff(gain, axis=1) >= -1e-9).all()
        first, second = profile.quantization_sensitivity, again.quantization_sensitivity
        np.testing.assert_allclose(first, second, atol=self.tolerance)
        np.testing.assert_allclose(gain, again.require_rank_sensitivity(), atol=self.tolerance)
