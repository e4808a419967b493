"""Errors of the user's own parts end in one message that says which part, and where to look."""

from pathlib import Path

import pytest

from qra_bo.cli.app import main

JOB = ["model=tiny", "oracle=synthetic", "budget=uniform:4,4", "search.force=true",
       "effort.max_full_trials=20", "display=none"]
PART = """
class Searcher:
    name = "own"

    def __init__(self, problem, **options):
        pass

    def ask(self, n):
        raise LookupError("no next point")

    def tell(self, *told):
        pass


def acquisition(model):
    raise ValueError("no values")
"""


@pytest.mark.parametrize(("overrides", "message"), [
    (["method._target_=MODULE.Searcher"], "method._target_=MODULE.Searcher raised LookupError: no next point"),
    (["method.acquisition=MODULE.acquisition"], "method.acquisition=MODULE.acquisition raised ValueError: no values")])
def test_own_part_is_named_with_file_and_line(overrides: list[str], message: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    module = f"own_{'searcher' if 'Searcher' in message else 'acquisition'}"
    (tmp_path / f"{module}.py").write_text(PART)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*JOB, *(text.replace("MODULE", module) for text in overrides), "out=run"]) == 2
    err = capfd.readouterr().err
    assert message.replace("MODULE", module) in err
    assert f"{module}.py, line " in err
    assert "Traceback" not in err
