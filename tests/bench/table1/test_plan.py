"""What a table is said to take before it starts."""

from pathlib import Path

import pytest

from bench.sessions import table_session
from bench.table1 import plan
from bench.table1.cells import make_cells
from bench.table1.config import load_options
from bench.table1.plan import plan_rows, weights
from bench.table1.published import calibration_and_baselines, proposals_left
from qra_bo.config import load_config

REAL = ["+model=tiny", "data=tiny", "effort=quick", "display=none", "quantizer.rounding=rtn", "device=cpu"]
LIMIT, OTHER = "peak uniform:4,4", "stored uniform:4,16"


def equivalents(folder: Path, methods: str, limits: tuple[str, ...] = (LIMIT,)) -> dict[str, float]:
    """High-fidelity equivalents of every part."""
    with table_session(load_config(REAL), folder / methods) as session:
        rows = plan_rows(session, make_cells(limits, methods.split(",")), None)
        return {r.what: r.cost / session.setting.full_trial_tokens for r in rows}


def test_what_searches_share_is_counted_once(tmp_path: Path) -> None:
    config = load_config(REAL)
    first, own, whole = calibration_and_baselines(config), proposals_left(config), config.effort.max_full_trials
    searches = f"{LIMIT}: searches"
    assert equivalents(tmp_path, "best_uniform")[searches] == pytest.approx(first)
    assert equivalents(tmp_path, "qra_bo")[searches] == pytest.approx(whole)
    assert equivalents(tmp_path, "best_uniform,autoqra,qra_bo")[searches] == pytest.approx(first + 2 * own)
    other_codes_and_bits = equivalents(tmp_path, "qra_bo,qra_bo_gptq,qra_bo_finer_gptq")[searches]
    assert other_codes_and_bits == pytest.approx(3 * whole)
    limits = equivalents(tmp_path, "autoqra,qra_bo", (LIMIT, OTHER))
    assert limits[searches] == pytest.approx(whole + own) == limits[f"{OTHER}: searches"]


def test_a_dry_run_plans_rows_whose_codes_it_cannot_choose(tmp_path: Path) -> None:
    config = load_config([*REAL, "oracle=synthetic"])
    with table_session(config, tmp_path) as session:
        rows = plan_rows(session, make_cells((LIMIT,), ("qra_bo", "qra_bo_gptq")), None)
    searches = next(r for r in rows if r.what == f"{LIMIT}: searches")
    assert searches.cost / session.setting.full_trial_tokens == pytest.approx(2 * config.effort.max_full_trials)


def test_a_tiny_model_takes_time_without_tokens(tmp_path: Path) -> None:
    with table_session(load_config(REAL), tmp_path, load_options(["table1.key_seeds=2"])) as session:
        rows = plan_rows(session, make_cells((LIMIT,), ("qlora", "qra_bo")), 0.0)
        n = sum(r.cost for r in rows) / session.setting.full_trial_tokens
    assert sum(r.seconds or 0.0 for r in rows) == pytest.approx(2 * plan.OPEN_SECONDS + n * plan.EVALUATION_SECONDS)


@pytest.mark.parametrize("seconds", [1e-3, None])
def test_weights_of_rows_add_up_to_the_plan(tmp_path: Path, seconds: float | None) -> None:
    with table_session(load_config(REAL), tmp_path) as session:
        cells = make_cells((LIMIT, OTHER), ("loftq", "lq_lora", "best_uniform", "qra_bo"))
        rows, each = plan_rows(session, cells, seconds), weights(session, cells, seconds)
        whole = sum(r.cost for r in rows) / session.setting.full_trial_tokens if seconds is None else \
            sum(r.seconds or 0.0 for r in rows)
    assert len(each) == len(cells) == 8
    assert sum(each) == pytest.approx(whole)
