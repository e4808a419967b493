"""The main job, and commands that a folder refuses, under a user without rights and in hostile environments."""

import json

import pytest

from tests.hostile import ENVIRONMENTS, Place

JOB = ("model=tiny", "oracle=synthetic", "effort=quick", "effort.max_full_trials=4", "method=random", "display=plain",
       "confirm.seeds=2", "out=run")
FILES = {"best.json", "report.html", "report.json", "status.json", "trials.jsonl"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_main_job_ends_well_in_every_environment(name: str, place: Place) -> None:
    ended = place.run(*JOB, under=ENVIRONMENTS[name])
    assert ended.status == 0, ended
    assert "Traceback" not in ended.out + ended.err
    files = {path.name for path in (place.work / "run").iterdir()}
    assert files >= FILES
    assert json.loads((place.work / "run" / "status.json").read_text())["state"] == "done"


def test_messages_reach_a_stream_that_takes_ascii_alone(place: Place) -> None:
    ended = place.run("model=tiny", "budget=ten\N{EURO SIGN}", under=ENVIRONMENTS["ascii"])
    assert ended.status == 2
    assert "budget=ten" in ended.err
