"""The command line in process: exit statuses, one paragraph of errors, sweeps."""

import json
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from qra_bo.cli import app
from qra_bo.cli.app import Job, read_jobs, record_job
from qra_bo.config import RunConfig, compose
from qra_bo.utils.errors import BudgetError, ConfigError, ContractError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Configurations of the tasks that were run, instead of running them."""
    configs: list[RunConfig] = []

    def run(config: RunConfig) -> int:
        configs.append(config)
        if config.seed == 7:
            raise BudgetError("a budget of 1 byte\nis below the smallest allocation")
        if config.seed == 8:
            raise RuntimeError("a bug")
        if config.seed == 9:
            raise ContractError("a broken contract")
        if config.seed == 10:
            raise MemoryError("no room")
        return 3 if config.seed == 3 else 0

    monkeypatch.setattr(app, "run_task", run)
    return configs


def test_a_run_writes_only_what_its_task_writes(seen: list[RunConfig], elsewhere: Path) -> None:
    assert app.main(["model=tiny", "budget=uniform:4,4"]) == 0
    assert [(c.model_name, c.budget[0].text) for c in seen] == [("tiny", "uniform:4,4")]
    assert list(elsewhere.iterdir()) == []


def test_no_arguments_print_help_and_plan_the_embedded_model(seen: list[RunConfig],
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main([]) == 0
    assert "python -m qra_bo [task=TASK] +model=NAME budget=SIZE" in capfd.readouterr().out
    assert [(c.model_name, c.task) for c in seen] == [("smollm2_135m", "memory")]


@pytest.mark.parametrize(("seed", "status"), [(0, 0), (3, 3), (7, 2), (8, 1), (9, 1), (10, 2)])
def test_exit_statuses(seen: list[RunConfig], capfd: pytest.CaptureFixture[str], seed: int, status: int) -> None:
    assert app.main(["model=tiny", f"seed={seed}"]) == status
    err = capfd.readouterr().err
    assert ("Traceback" in err) is (status == 1)
    if status == 2:
        assert err.startswith("qra_bo: memory ran out (MemoryError: no room): end other programs" if seed == 10 else
                              "qra_bo: a budget of 1 byte is below the smallest allocation\n")
        assert err.count("\n") == 1


def test_two_values_of_a_key_are_named(seen: list[RunConfig], capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["model=tiny", "seed=1", "budget=1GB", "seed=1", "budget=2GB"]) == 0
    assert capfd.readouterr().err.count("qra_bo: ") == 1
    assert app.main(["model=tiny", "budget=1GB", "budget=2GB"]) == 0
    assert "qra_bo: budget was given as 1GB and 2GB: the last one counts\n" in capfd.readouterr().err
    assert [config.budget[0].size for config in seen] == [2 * 10**9] * 2


class Stopped(KeyboardInterrupt):
    exit_status = 143


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (Stopped("stopped by SIGTERM"), 143)])
def test_signals(monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int) -> None:
    def run(config: RunConfig) -> int:
        raise error

    monkeypatch.setattr(app, "run_task", run)
    assert app.main(["model=tiny", "--multirun", "seed=0,1"]) == status


def test_a_sweep_goes_on_after_a_bad_job(seen: list[RunConfig], elsewhere: Path,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--multirun", "+model=tiny", "budget=ten,uniform:4,4", "seed=7,0"]) == 2
    assert [(str(c.budget[0]), c.seed) for c in seen] == [("uniform:4,4", 7), ("uniform:4,4", 0)]
    (sweep,) = (elsewhere / "outputs").iterdir()
    assert [c.out for c in seen] == [f"outputs/{sweep.name}/{n}" for n in (2, 3)]
    jobs = read_jobs(sweep)
    assert [job.status for job in jobs] == [2, 2, 2, 0]
    assert jobs[0].message.startswith("budget: 'ten' is not a size")
    out = capfd.readouterr().out
    assert f"4 jobs in outputs/{sweep.name}, 3 not done:" in out


def test_a_sweep_over_no_values_is_no_success(seen: list[RunConfig], elsewhere: Path,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--multirun", "+model=tiny", "seed=range(0,0)"]) == 2
    assert not seen
    assert "the sweep has no job" in capfd.readouterr().err


@pytest.mark.parametrize("status", [None, 0])
def test_a_lost_process_of_a_launcher_exits_2(status: int | None, elsewhere: Path, monkeypatch: pytest.MonkeyPatch,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    def job(composed: object) -> int:
        record_job(elsewhere / "sweep", Job(0, "seed=0", status, ""))
        raise RuntimeError("a worker process was unexpectedly terminated")

    monkeypatch.setattr(app, "_job", job)
    command = ["-m", "model=tiny", "seed=0,1", "hydra.sweep.dir=sweep"]
    if status == 0:  # no job was cut off: a bug
        with pytest.raises(RuntimeError):
            app.main(command)
        return
    assert app.main(command) == 2
    out, err = capfd.readouterr()
    assert "1 jobs in sweep, 1 not done:" in out
    assert "ended before its job (RuntimeError)" in err
    assert "hydra.sweep.dir=sweep to go on" in err


def test_a_sweep_below_out_is_the_same_folder_again(seen: list[RunConfig]) -> None:
    assert app.main(["-m", "+model=tiny", "out=mine", "seed=0,3"]) == 3
    assert app.main(["+model=tiny", "out=mine", "seed=0,3", "-m"]) == 3  # flags may follow
    assert [c.out for c in seen] == ["mine/0", "mine/1"] * 2


@pytest.mark.parametrize("task", [["task=report"], ["task=export"], ["task=evaluate", "eval.tasks=[mine.jsonl]"]])
def test_a_sweep_over_finished_runs_reads_their_own_folders(task: list[str], seen: list[RunConfig]) -> None:
    assert app.main(["-m", "+model=tiny", *task, "out=first,second"]) == 0
    assert [c.out for c in seen] == ["first", "second"]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_config_dir_of_any_name_adds_options(seen: list[RunConfig], elsewhere: Path) -> None:
    mine = elsewhere / "o'hara's" / "lr=1, new"
    write(mine / "effort" / "tiniest.yaml", "defaults:\n  - quick\n  - _self_\nname: tiniest\nmax_full_trials: 2\n")
    write(mine / "method" / "own.yaml", "name: own\n_target_: my_package.MySearcher\nradius: 3\n")
    arguments = ["--config-dir", str(mine), "model=llama2_7b", "task=memory", "effort=tiniest", "method=own",
                 "method.radius=4"]
    assert app.main(arguments) == app.main([*arguments, "-m", "seed=0"]) == 0
    for config in seen:
        assert (config.effort.max_full_trials, config.train.name) == (2, "gpu")
        assert config.method.target == {"_target_": "my_package.MySearcher", "radius": 4}


def test_conf_in_the_working_directory_is_not_read(seen: list[RunConfig], elsewhere: Path) -> None:
    write(elsewhere / "conf" / "__init__.py", "")
    write(elsewhere / "conf" / "config.yaml", "seed: 5\n")
    assert app.main(["model=tiny"]) == app.main(["model=tiny", "-m", "seed=0"]) == 0
    assert [c.seed for c in seen] == [0, 0]


def test_single_run_is_composed_and_checked_once(seen: list[RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for owner, name in ((ConfigLoaderImpl, "load_configuration"), (compose, "validated")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _f=original, _n=name, **k: (calls.append(_n), _f(*a, **k))[1])
    assert app.main(["model=tiny"]) == 0
    assert calls == ["load_configuration", "validated"]
    assert len(seen) == 1


@pytest.mark.parametrize("argument", ["--experimental-rerun=x", "--exp=x"])
def test_pickled_configurations_are_refused(argument: str, seen: list[RunConfig],
                                            capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main([argument, "model=tiny"]) == 2
    assert "reads a pickle" in capfd.readouterr().err
    assert seen == []


@pytest.mark.parametrize("text", [
    b"a:\t1\n", b"seed: 1\nseed: 2\n", b"\xff\xfes\x00e\x00", b"seed: 1\n---\nseed: 2\n", b"a: &a\n  b: *a\n",
    b"seed: !!python/object:os.system x\n", b"- 1\n", b"a: [1\n", b"\x00", b"name: ${no.such.key}\n",
    b"name: caf\xe9\n", "name: x\n".encode("utf-32"), b"a: &a [*a]\n", b"x\n", b"? [a]\n: 1\n", b"a: *b\n",
    b"name: !!binary x\n", b"a: b: c\n"])
def test_a_users_group_that_is_no_yaml_is_one_message(text: bytes, elsewhere: Path,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "groups" / "model").mkdir(parents=True)
    (elsewhere / "groups" / "model" / "own.yaml").write_bytes(text)
    assert app.main(["--config-dir", str(elsewhere / "groups"), "+model=own", "task=memory", "budget=9MB"]) == 2
    err = capfd.readouterr().err
    assert ("Traceback" in err, err.count("\n"), len(err) < 900) == (False, 1, True)


@pytest.mark.parametrize("words", [
    ["hydra.run.dir=/proc/no/folder"], ["hydra.run.dir=/dev/null/x"], [r"data.path=a$\{b\}"],
    ["model.n_layers=100000000"], ["model.hidden_size=1000000000000"], ["train.batch=100000000000000000000000"],
    ["train.length=1000000000"],
    ["train.batch=1e23"], *([f"hydra.run.dir={path}"] for path in ("x" * 300, "/dev/full", "/proc/x", "/sys/a/b")),
    *([f"{key}={value}"] for key in ("bits", "ranks", "eval.tasks", "export.gguf", "quantizer.formats.4",
                                     "calibrate.lr_scales") for value in ("[[2,4],8]", "[{a:1}]")),
    *([f"data.path='{path}'", "data=jsonl"] for path in ("a${b}", "${b", "a${b}.jsonl", "x${oc.env:NOT_THERE}", "${}",
                                                         "${a.b:c}")),
    ["seed=99999999999999999999"], ["fidelity.high=10000000000"],
    ["allocation=/dev/zero", "task=finetune"]])
def test_values_beyond_reason_are_one_message(words: list[str], elsewhere: Path,
                                              capfd: pytest.CaptureFixture[str]) -> None:
    assert app.main(["model=tiny", "data=tiny", "task=memory", "budget=9MB", *words]) == 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("line", [
    "", "{", '{"number": 3', '{"number": 3, "overrides": "", "status": 0', "\xff", "[]", "[" * 10**5,
    *(json.dumps({"number": 3, "overrides": "", "status": 0, "message": ""} | odd) for odd in (
        {"number": "1"}, {"number": None}, {"overrides": 1}, {"status": "0"}, {"status": 10**9}, {"message": []}))])
def test_a_list_of_jobs_that_was_cut_off_is_no_success(line: str, elsewhere: Path) -> None:
    record_job(elsewhere, Job(1, "seed=1", 0, ""))
    record_job(elsewhere, Job(2, "seed=2", None, ""))
    with (elsewhere / app.JOBS).open("a", encoding="latin-1") as file:
        file.write(line)
    app.SweepSummary.folder = elsewhere
    app.SweepSummary().on_multirun_end(app.DictConfig({"out": None}))
    assert app.SweepSummary.status == app.BUG
    assert [job.status for job in read_jobs(elsewhere)] == [0, None]


def test_a_page_that_cannot_be_written_is_one_message(elsewhere: Path, monkeypatch: pytest.MonkeyPatch,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(_: Path) -> None:
        raise ConfigError("report.html is of another program")

    monkeypatch.setattr("qra_bo.tasks.report.show_runs", refuse)
    record_job(elsewhere, Job(1, "seed=1", 0, ""))
    app.SweepSummary.folder = elsewhere
    app.SweepSummary().on_multirun_end(app.DictConfig({"out": None}))
    assert app.SweepSummary.status == 2
    assert "report.html" in capfd.readouterr().err


def test_a_summary_commands_no_terminal(elsewhere: Path) -> None:
    assert "\x1b" not in app.summary([Job(0, "seed=\x1b[2J", 2, "\x1b]0;x\x07")], elsewhere)
