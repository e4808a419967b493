"""The table of exports: same must be same, near must be near, and what was not measured says so."""

from bench.exports import LARGEST_MEAN, targets_of


def row(what: str, difference: float | None, mean: float | None) -> dict[str, object]:
    return {"what": what, "difference": difference, "mean": mean}


def test_targets_hold_only_where_everything_was_near() -> None:
    good = [row("manifest and adapter", 0.0, 0.0), row("adapter", .5, LARGEST_MEAN), row("axolotl.yaml", None, None),
            row("merged into the original base", 9.0, 9.0)]
    assert [t.met for t in targets_of(good)] == [True, True, False]
    assert [t.met for t in targets_of([row("manifest and adapter", 1e-6, 0.0), row("adapter", 1.0, .3)])] == [
        False, False, False]


def test_what_was_not_measured_is_not_met() -> None:
    assert all(t.value is None and not t.met and t.why for t in targets_of([]))
