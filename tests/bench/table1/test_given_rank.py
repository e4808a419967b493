"""Ranks that are tried for methods which take theirs as given, and what that costs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.table1 import rows_given_rank
from bench.table1.config import load_options
from bench.table1.limits import parse_limit
from bench.table1.methods import ROWS
from bench.table1.rows_given_rank import SENSITIVITY
from bench.table1.session import table_session
from qra_bo.config import load_config
from qra_bo.study.cost import FORWARD_SHARE


@pytest.mark.parametrize(("largest", "choices", "ranks"), [
    (16, 3, [16, 8, 4]), (2, 3, [2, 1]), (3, 1, [3]), (0, 1, [1]), (0, 3, [1, 2, 4]), (0, 7, [1, 2, 4, 8, 16])])
def test_ranks_are_halved_from_the_largest_with_nf4_and_doubled_from_one_where_that_does_not_fit(
        monkeypatch: pytest.MonkeyPatch, largest: int, choices: int, ranks: list[int]) -> None:
    monkeypatch.setattr(rows_given_rank, "largest_fitting_rank", lambda *_: largest)
    session: Any = SimpleNamespace(options=SimpleNamespace(rank_choices=choices))
    assert rows_given_rank.rank_choices(session, parse_limit("peak 1GB")) == ranks


def test_amq_is_charged_one_profile_for_all_ranks(tmp_path: Path) -> None:
    config = load_config(["+model=tiny", "data=tiny", "oracle=synthetic", "display=none", "quantizer.rounding=rtn",
                          "quantizer.formats.2=[int2-g64]", "quantizer.formats.3=[int3-g64]"])
    options = load_options(["table1.rank_choices=3", "table1.amq_evaluations=4"])
    with table_session(config, tmp_path / "t", options) as session:
        found = ROWS["amq_lora"].find(session, parse_limit("peak uniform:4,16"))
        assert found.note.endswith("of [4, 8, 16] by validation loss")
        events = session.results.events
        trials = [e for e in events if e["event"] == "trial"]
        each = {e["forward_tokens"] for e in events if e["event"] == SENSITIVITY}
        profile = session.profile()
    (tokens,) = each
    forward = profile.forward_tokens + 3 * 4 * tokens + sum(e["forward_tokens"] for e in trials)
    trained = profile.training_tokens + sum(e["training_tokens"] for e in trials)
    assert len(trials) == 3
    assert found.cost == pytest.approx(trained + FORWARD_SHARE * forward)
