"""A folder of config groups from somebody else gives values: it calls nothing and trusts nobody."""

import importlib.resources
from pathlib import Path

import pytest

from qra_bo.cli import app
from qra_bo.config.compose import compose_config
from qra_bo.config.schema import RunConfig
from qra_bo.utils.errors import ConfigError

EVIL = "x: {_target_: evil.call}"
FILES = {
    "package": ("effort/e.yaml", "# a note\n\n# @package _global_\nseed: 3\n", r"e\.yaml: line 3 \('# @package"),
    "package without a space": ("effort/e.yaml", "#@package _global_\nseed: 3\n", "line 1"),
    "hydra": ("effort/e.yaml", "hydra:\n  callbacks: {x: {a: 1}}\n", "key 'hydra'"),
    "target": ("effort/e.yaml", "name: e\na: [{b: {_target_: os.system}}]\n", r"key 'a\.b\._target_'"),
    "override": ("effort/e.yaml", "defaults:\n  - override /hydra/launcher: joblib\n", "of 'defaults'"),
    "absolute group": ("effort/e.yaml", "defaults:\n  - /hydra/launcher: joblib\n", "of 'defaults'"),
    "package of an entry": ("effort/e.yaml", "defaults:\n  - /data@hydra.callbacks: x\n", "of 'defaults'"),
    "another folder": ("effort/e.yaml", "defaults:\n  - ../../elsewhere/e\n", "of 'defaults'"),
    "interpolation": ("effort/e.yaml", "defaults:\n  - /data: ${x}\n", "of 'defaults'"),
    "logging": ("hydra/job_logging/e.yaml", "handlers: {x: {(): evil.call}}\n", "command line"),
    "no YAML": ("effort/e.yaml", "a: [", "can't be read as YAML"),
    "trust": ("model/e.yaml", "name: e\ntrust_remote_code: true\n", r"model\.trust_remote_code=true on the command"),
    "trust by interpolation": ("model/e.yaml", "trust_remote_code: ${resume}\n", "key 'trust_remote_code'")}


@pytest.fixture(name="seen", autouse=True)
def record_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """What was run, instead of running it."""
    configs: list[RunConfig] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "run_task", lambda config: configs.append(config) or 0)
    return configs


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_does_more_is_refused(kind: str, tmp_path: Path, seen: list[RunConfig],
                                          capfd: pytest.CaptureFixture[str]) -> None:
    name, text, message = FILES[kind]
    mine = write(tmp_path / "mine", name, text)
    for more in ([], ["--multirun"], ["--cfg=job"]):
        assert app.main([f"--config-dir={mine}", "model=tiny", *more]) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith(f"qra_bo: {mine}")
    with pytest.raises(ConfigError, match=message):
        compose_config(["model=tiny"], str(mine))
    assert not seen


def test_no_function_is_called_that_a_file_names(tmp_path: Path) -> None:
    made = tmp_path / "made"
    mine = write(tmp_path / "mine", "effort/e.yaml", "# @package _global_\nhydra: {callbacks: {x: {_target_: os.mkdir, "
                                                     f"path: {made}}}}}\n")
    assert app.main([f"--config-dir={mine}", "model=tiny", "effort=e"]) == 2
    assert not made.exists()


def test_a_linked_group_is_read_too(tmp_path: Path, seen: list[RunConfig]) -> None:
    write(tmp_path / "far", "e.yaml", EVIL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "effort").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "again").symlink_to(tmp_path / "mine")
    assert app.main([f"--config-dir={tmp_path / 'mine'}", "model=tiny"]) == 2
    assert not seen


@pytest.mark.parametrize("argument", ["--config-path={}", "hydra.searchpath=[file://{}]", "--experimental-rerun={}/x",
                                      "--exp={}/x"])
def test_no_other_way_leads_to_such_a_folder(argument: str, tmp_path: Path, seen: list[RunConfig],
                                             capfd: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    mine = write(tmp_path / "mine", "config.yaml",
                 f"hydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {made}}}}}}}\n")
    write(mine, "model/tiny.yaml", "name: tiny\n")
    assert app.main([argument.format(mine), "model=tiny"]) == 2
    assert "Traceback" not in capfd.readouterr().err
    assert not made.exists()
    assert not seen


def test_copies_of_the_packages_own_files_work(tmp_path: Path, seen: list[RunConfig]) -> None:
    text = importlib.resources.files("conf").joinpath("model", "tiny.yaml").read_text(encoding="utf-8")
    mine = write(tmp_path / "mine", "model/own.yaml", f"# My model, see me@package.org\n{text}")
    write(mine, "model/heir.yaml", "defaults:\n  - own\n  - _self_\nname: heir\n")
    assert app.main([f"--config-dir={mine}", "+model=own"]) == 0
    assert app.main([f"--config-dir={mine}", "+model=heir", "model.trust_remote_code=true"]) == 0
    assert [c.model["trust_remote_code"] for c in seen] == [False, True]
    assert seen[1].model_name == "heir"
