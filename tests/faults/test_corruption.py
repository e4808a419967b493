"""Damaged files of a run and its cache lead to right results or clear refusals; their modes are those of the umask."""

import random
from pathlib import Path

import pytest

from tests.damage import DAMAGES
from tests.faults.real import UMASK, RealRun
from tests.faults.sweep import cases, problem_of, problem_with_cache

SAMPLED, SEED = 8, 3


def test_sampled_damages_give_right_results_or_refusals(real: RealRun) -> None:
    sampled = random.Random(SEED).sample(list(cases(real)), SAMPLED)
    assert {str(case): problem for case in sampled if (problem := problem_of(real, case))} == {}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_changes_no_run(real: RealRun, damage: str) -> None:
    assert problem_with_cache(real, damage) == ""


def test_undamaged_run_is_used_without_a_problem(real: RealRun, tmp_path: Path) -> None:
    folder = real.copy(tmp_path / "copy")
    for use in (real.loaded, real.reported, real.exported, real.resumed):
        assert (use(folder).status, use(folder).right) == (0, True)


def test_umask_decides_about_every_file_alike(real: RealRun) -> None:
    def wrong(path: Path) -> bool:
        return path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~UMASK

    assert [p for p in real.folder.rglob("*") if wrong(p)] == []
