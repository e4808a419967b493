"""Steps done of a simulated training are noted in files that are whole or not there."""

from dataclasses import replace

from qra_bo.oracle.synthetic import StepsDone
from qra_bo.space import uniform
from qra_bo.trials import TrialSpec


def test_training_with_other_codes_continues_none() -> None:
    done, low = StepsDone(None), TrialSpec(uniform(6, "nf4", 4), 6, 24, 0, 2e-3)
    assert done.start(low) == 0
    assert done.start(replace(low, steps=24, codes="rtn")) == 0
    assert done.start(replace(low, steps=24)) == 6
