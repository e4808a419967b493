"""A run whose continuation differs in one key: refused with the key's name, or finished as before and said."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import qra_bo
from qra_bo.config import load_config
from qra_bo.config.resume import UNSAID, flatten, is_harmless
from qra_bo.study.journal import read_journal
from qra_bo.utils.errors import UserError
from tests.study.problem import comparable

SHORT = ["model=tiny", "oracle=synthetic", "data=tiny", "display=none", "effort=quick", "effort.max_full_trials=7",
         "calibrate.lr_scales=[1.0]", "confirm.seeds=2", "device=cpu", "dtype=float32"]
GROUPS = "\n".join(f"quantizer.formats.{bits}=[sym{bits}-g32]" for bits in (2, 3, 4, 8))
"""Formats whose groups divide the columns of ``tiny``, which those that serve=mlx sets do not."""
EXPERTS = "model.family=mixtral\n+model.n_experts=4\n+model.experts_per_token=2"
"""One is nothing without the others."""
OTHER: dict[str, Any] = {
    "model.name": "+model.name=other", "model.path": "+model.path=elsewhere", "model.revision": "+model.revision=main",
    "model.gguf_file": "+model.gguf_file=a.gguf", "model.family": "model.family=qwen2",
    "model.head_dim": "model.head_dim=32",
    "budget": "budget=uniform:4,2", "bits": "bits=[3,4,8]", "ranks": "ranks=[1,2,4,8]",
    "max_average_bits": "max_average_bits=5.0", "granularity": "granularity=block", "effort.name": "effort.name=mine",
    "profiling": "profiling=gradients", "adapter.experts": "adapter.experts=each",
    "model.n_experts": EXPERTS, "model.experts_per_token": EXPERTS,
    "effort.uniform_baselines": "effort.uniform_baselines=null",
    "max_hours": "max_hours=2", "device": "device=auto", "dtype": "dtype=bfloat16", "display": "display=plain",
    "memory.scope": "memory.scope=stored", "embeddings": "embeddings=8", "serve": f"serve=mlx\n{GROUPS}",
    "memory.headroom": "memory.headroom=600MB", "memory.format": "memory.format=json", "data.name": "data.name=other",
    "oracle.name": "oracle=finetune", "data.kind": "data=plays", "method.name": "method.name=other",
    "method._target_": "method=random",
    "method.temperatures": "method.temperatures=[1.0]",
    "quantizer.formats.2": "quantizer.formats.2=[hqq2]", "quantizer.formats.3": "quantizer.formats.3=[hqq3]",
    "quantizer.formats.4": "quantizer.formats.4=[hqq4]", "quantizer.formats.5": "quantizer.formats.5=[hqq5]",
    "quantizer.formats.6": "quantizer.formats.6=[hqq6]", "quantizer.formats.8": "quantizer.formats.8=[hqq8]",
    "quantizer.tokens": "quantizer.tokens=256",
    "adapter.lr_rule": "adapter.lr_rule=constant", "train.betas": "train.betas=[0.8,0.99]",
    "train.packing": "train.packing=isolated",
    "train.optimizer": "train.optimizer=adamw_8bit", "train.weight_decay": "train.weight_decay=0.1",
    "train.name": "train.name=other",
    "seed": "seed=1", "worker.spill_above": "worker.spill_above=1GB", "eval.limit": "eval.limit=3",
    "search.length": "search.length=trial",
    "calibrate.lr_scales": "calibrate.lr_scales=[2.0]", "final.steps": "final.steps=9",
    "final.validate_every": "final.validate_every=5", "final.keep": "final.keep=last",
    "final.patience": "final.patience=3", "executor.workers": "executor.workers=2",
    "export.targets": "export.targets=[]",
    "export.gguf": "export.gguf=[base]", "export.check": "export.check=true", "effort.stop": "effort.stop=null",
    "effort.max_full_trials": "effort.max_full_trials=9", "fidelity.low": "fidelity.low=null"}
"""Overrides that change one key, and with serve the formats that it sets, where twice the number or the opposite would
not do."""
LONGER = {"effort.max_full_trials", "effort.uniform_baselines", "effort.references", "effort.sequential",
          "effort.stop"}
"""Keys that extend a run: its end is another one."""
UNCHANGED = {"codes", "surrogate.rates", "method.rates", "logger.name",
             "executor.name", "method.model._target_", "quantizer.rounding", "quantizer.formats.1",
             "quantizer.formats.16", "task",
             "allocation", "eval.tasks", "eval.against", "model.source", "gpu"}
"""Keys that have no other value in a search of the synthetic oracle without files and extras."""


@cache
def composed() -> dict[str, Any]:
    return flatten(load_config(SHORT).to_dict())


KEYS = sorted(set(composed()) - UNCHANGED - UNSAID)


def changed(key: str) -> str:
    """Overrides, a line each, with which ``key`` has another good value."""
    value = composed()[key]
    if key in OTHER:
        return str(OTHER[key])
    assert isinstance(value, (bool, int, float)), f"say in OTHER how {key} may differ"
    other = (not value) if isinstance(value, bool) else value * 2 if isinstance(value, int) else value / 2
    return f"{'+' if key.startswith('model.') else ''}{key}={json.dumps(other)}"


@pytest.fixture(scope="module", name="begun")
def make_begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder whose run was cut off in the middle of its search, and what it comes to."""
    folder = tmp_path_factory.mktemp("resume")
    best = qra_bo.search(SHORT, out=str(folder / "whole")).best
    lines = (folder / "whole" / "trials.jsonl").read_bytes().splitlines(keepends=True)
    stages = [json.loads(line).get("stage") for line in lines]
    middle = stages.index("search") + (len(stages) - 1 - stages[::-1].index("search") - stages.index("search")) // 2
    (folder / "cut").mkdir()
    (folder / "cut" / "trials.jsonl").write_bytes(b"".join(lines[:middle]))
    return folder / "cut", dict(best)


def test_every_key_has_another_value() -> None:
    """That it is a good one is seen where a run goes on with it."""
    assert all(changed(key) for key in KEYS)


def outcome_of(key: str, begun: tuple[Path, dict[str, Any]], folder: Path) -> str:
    """Continue a copy of the run with another value of ``key``: ``"refused"``, ``"said"``, or what went wrong."""
    shutil.copytree(begun[0], folder)
    before = (folder / "trials.jsonl").read_bytes()
    try:
        best = qra_bo.search([*SHORT, *changed(key).splitlines()], out=str(folder)).best
    except UserError as error:
        said = f"; {key} was " in str(error).replace("configuration: ", "; ")
        kept = (folder / "trials.jsonl").read_bytes() == before
        return "refused" if said and kept else f"refused otherwise: {error}"
    if key not in LONGER and comparable(best) != comparable(begun[1]):
        return "it came to another end"
    told = [e["message"] for e in read_journal(folder / "trials.jsonl").events if e["event"] == "warning"]
    return "said" if any("change no finished trial" in m and f"{key} " in m for m in told) else f"not said: {told}"


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_a_continuation_with_one_other_key_is_refused_or_said(begun: tuple[Path, dict[str, Any]], tmp_path: Path,
                                                              key: str) -> None:
    assert outcome_of(key, begun, tmp_path / "run") == ("said" if is_harmless(key) else "refused")
