"""What is assumed of a device's allocator covers its simulation, and is a share of transient bytes."""

import json
from pathlib import Path

import pytest

import bench
from qra_bo.memory.model import ASSUMED, PPM, Allowance, MemoryModel, TrainShape
from qra_bo.space import uniform
from tests.memory.spaces import SMOLLM2, space_of


@pytest.mark.parametrize("kind", ["cuda", "cuda, checkpointed"])
def test_assumed_allowance_covers_the_allocator_in_simulated_trials(kind: str) -> None:
    rows = json.loads((Path(bench.__file__).parent / "results" / "memory_allocator.json").read_text())["rows"]
    trials, allowed = [r for r in rows if r["checkpointing"] == (kind != "cuda")], ASSUMED[kind]
    assert len(trials) > 20
    assert TrainShape(4, 128, kind != "cuda", device="cuda").allocator == kind
    assert all(r["reserved_expandable"] <= r["alive_bytes"] + allowed.fixed_bytes
               + -(-r["transient_bytes"] * allowed.share_ppm // PPM) for r in trials)


def test_a_share_is_of_what_is_not_resident() -> None:
    space, shape = space_of(SMOLLM2, ranks=(4,)), TrainShape(4, 128, device="cuda")
    row = space.encode(uniform(30, "nf4", 4))[None, :]

    def total(allowance: Allowance) -> int:
        return int(MemoryModel(SMOLLM2, shape, allowance=allowance).table(space).totals(row)[0])

    alive, twice = total(Allowance(0, 0)), total(Allowance(0, PPM))
    parts = MemoryModel(SMOLLM2, shape, allowance=Allowance(0, 0)).breakdown(space, uniform(30, "nf4", 4))
    transient = parts["activations"] + parts["workspace"]
    assert twice - alive == pytest.approx(transient, rel=0.01)
    assert total(Allowance(77, 0)) == alive + 77
    assert total(Allowance(0, 20_000)) == pytest.approx(alive + 0.02 * (twice - alive), abs=100)
