"""What is folded into a device's allowance covers what was measured, and nothing else moves it."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench
from qra_bo.memory.allowance import ASSUMED, ENOUGH, PPM, Allowance, AllowanceStore, Excess, fold
from qra_bo.memory.model import MemoryModel, TrainShape
from qra_bo.space import uniform
from tests.memory.spaces import SMOLLM2, space_of

EXCESSES = st.lists(st.builds(lambda alive, part, over: Excess(alive, alive * part // 100, alive * (100 + over) // 100),
                              st.integers(10**8, 10**10), st.integers(20, 90), st.integers(-5, 12)), min_size=1)


def covered(allowance: Allowance, excess: Excess) -> bool:
    return excess.measured <= (excess.alive + allowance.fixed_bytes
                               + -(-excess.transient * allowance.share_ppm // PPM))


@given(first=EXCESSES, second=EXCESSES, device=st.sampled_from(sorted(ASSUMED)))
def test_every_measured_peak_is_covered_for_good(first: list[Excess], second: list[Excess], device: str) -> None:
    after = fold(fold(ASSUMED[device], device, first), device, second)
    assert after.measurements == len(first) + len(second)
    assert after.fixed_bytes == ASSUMED[device].fixed_bytes
    assert all(covered(after, e) for e in second)
    assert all(covered(after, e) for e in first if not covered(ASSUMED[device], e))
    if len(first) >= ENOUGH or len(first) + len(second) < ENOUGH:
        assert all(covered(after, e) for e in first)


@pytest.mark.parametrize("kind", ["cuda", "cuda, checkpointed"])
def test_assumed_allowance_covers_the_allocator_in_simulated_trials(kind: str) -> None:
    rows = json.loads((Path(bench.__file__).parent / "results" / "memory_allocator.json").read_text())["rows"]
    trials = [Excess(r["alive_bytes"], r["transient_bytes"], r["reserved_expandable"]) for r in rows
              if r["checkpointing"] == (kind != "cuda")]
    assert len(trials) > 20
    assert all(covered(ASSUMED[kind], trial) for trial in trials)


def test_few_measurements_raise_the_share_many_replace_it() -> None:
    assumed = ASSUMED["cuda"]
    small = Excess(10**9, 5 * 10**8, 10**9 + assumed.fixed_bytes + 10**6)  # 0.2 % of the transient bytes
    few = fold(assumed, "cuda", [small] * (ENOUGH - 1))
    assert few.share_ppm == assumed.share_ppm
    many = fold(few, "cuda", [small])
    assert many.share_ppm == pytest.approx(2000, abs=2)
    large = Excess(10**9, 5 * 10**8, 10**9 + assumed.fixed_bytes + 5 * 10**7)
    one = fold(assumed, "cuda", [large])
    assert one.share_ppm == pytest.approx(100_000, abs=2)
    assert fold(one, "cuda", [small] * ENOUGH).share_ppm == one.share_ppm
    assert fold(many, "cuda", []) == many


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
    assumed = int(MemoryModel(SMOLLM2, shape).table(space).totals(row)[0])
    assert assumed == total(ASSUMED["cuda"])


def test_checkpointed_training_has_an_allowance_of_its_own() -> None:
    space = space_of(SMOLLM2, ranks=(4,))
    row = space.encode(uniform(30, "nf4", 4))[None, :]
    for checkpointing, kind in ((False, "cuda"), (True, "cuda, checkpointed")):
        shape = TrainShape(4, 128, checkpointing, device="cuda")
        default, given = (int(MemoryModel(SMOLLM2, shape, allowance=a).table(space).totals(row)[0])
                          for a in (None, ASSUMED[kind]))
        assert default == given


def test_a_device_is_kept_in_a_file_of_its_own(tmp_path: Path) -> None:
    store = AllowanceStore(tmp_path / "allowances")
    assert store.load("NVIDIA H100 80GB HBM3") is None
    store.keep("NVIDIA H100 80GB HBM3", Allowance(1, 2, 3))
    store.keep("cpu", Allowance(4, 5, 6))
    assert store.load("NVIDIA H100 80GB HBM3") == Allowance(1, 2, 3)
    assert store.load("cpu") == Allowance(4, 5, 6)
    assert store.path("../../x y").parent == store.folder


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 2}', '{"schema_version": 1, "device": "other"}'])
def test_a_file_that_can_not_be_used_counts_as_none(tmp_path: Path, text: str,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    store = AllowanceStore(tmp_path)
    store.path("cpu").write_text(text)
    assert store.load("cpu") is None
    assert "measured anew" in caplog.text
    store.keep("cpu", Allowance(0, 7, 1))
    data = json.loads(store.path("cpu").read_text())
    store.path("cpu").write_text(json.dumps(data | {"share_ppm": 8}))
    assert store.load("cpu") is None
