"""Files and folders that a user without rights can't use: a clear message and exit status 2."""

import json

from tests.hostile import Place

LONG = "n" * 300
SYNTHETIC = ["model=tiny", "oracle=synthetic", "method=random", "effort.max_full_trials=2", "display=none"]
REFUSED = {
    "out-in-closed": [*SYNTHETIC, "out=closed/run"], "out-is-closed": [*SYNTHETIC, "out=closed"],
    "out-is-unreadable": [*SYNTHETIC, "out=hidden/run"], "out-is-too-long": [*SYNTHETIC, f"out={LONG}"],
    "sweep": [*SYNTHETIC, "--multirun", "seed=0,1", "hydra.sweep.dir=closed/sweep"],
    "sweep-of-out": [*SYNTHETIC, "--multirun", "seed=0,1", "out=closed/sweep"],
    "sweep-is-too-long": [*SYNTHETIC, "--multirun", "seed=0,1", f"hydra.sweep.dir={LONG}"],
    "data": ["model=tiny", "data=jsonl", "data.path=hidden/a.jsonl"],
    "data-itself": ["model=tiny", "data=jsonl", "data.path=unreadable.jsonl"],
    "data-is-too-long": ["model=tiny", "data=jsonl", f"data.path={LONG}"],
    "rates": [*SYNTHETIC, "surrogate.rates=hidden/rates.json"],
    "allocation": ["model=tiny", "task=finetune", "allocation=hidden/best.json"],
    "allocation-is-too-long": ["model=tiny", "task=finetune", f"allocation={LONG}"],
    "model": ["+model=hf", "model.path=./hidden/model"],
    "model-is-too-long": ["+model=hf", f"model.path=./{LONG}"],
    "report": ["task=report", "out=hidden/run"], "report-is-too-long": ["task=report", f"out={LONG}"],
    "config-dir": ["--config-dir=hidden", "model=tiny", "task=memory"],
    "config-dir-is-too-long": [f"--config-dir={LONG}", "model=tiny", "task=memory"],
    "show": ["runs", "show", "hidden/run"], "show-too-long": ["runs", "show", LONG]}


def test_unusable_paths_exit_2_with_their_name(place: Place) -> None:
    work = place.work
    for name in ("closed", "hidden"):
        (work / name).mkdir()
    (work / "unreadable.jsonl").write_text("{}\n")
    place.own()
    (work / "unreadable.jsonl").chmod(0)
    (work / "closed").chmod(0o500)
    (work / "hidden").chmod(0)
    ended = place.run(json.dumps([*REFUSED.values()]), module="tests.cli.many")
    assert ended.status == 0, ended.err
    results = dict(zip(REFUSED, json.loads(ended.out), strict=True))
    wrong = {name: result for name, result in results.items() if result[0] != 2 or "Traceback" in result[1]
             or not any(word in result[1] for word in ("closed", "hidden", "unreadable", LONG[:40]))}
    assert wrong == {}


def test_unusable_cache_and_working_directory_change_nothing(place: Place) -> None:
    (place.folder / "cache").chmod(0o500)
    place.work.chmod(0o500)
    out = place.folder / "tmp" / "run"
    assert place.run(*SYNTHETIC, f"out={out}", "confirm.seeds=2").status == 0
    assert (out / "report.html").is_file()
