"""Patterns and sizes in an adapter's configuration are checked before use."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qra_bo.export.foreign import check_adapter
from qra_bo.export.run import FinishedRun
from qra_bo.export.vllm import write_adapter
from qra_bo.finetune.manifest import MANIFEST, adapter_digest, read_manifest, sealed
from qra_bo.utils.errors import OutputError

TANGLED = "(([a-z0-9_.]+)+)+!"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("changes", [{"target_modules": TANGLED}, {"target_modules": [TANGLED]},
                                     {"target_modules": ["lm_head"]}, {"target_modules": None}, {"r": 1 << 40},
                                     {"r": True}, {"lora_alpha": 10**200}, {"lora_alpha": 1.5},
                                     {"alpha_pattern": {"(a+)+$": 4}}])
@pytest.mark.parametrize("one_rank", [False, True])
def test_an_adapters_targets_and_sizes_are_those_of_the_manifest(run: Path, changes: dict[str, Any],
                                                                 one_rank: bool) -> None:
    path = run / "adapter" / "adapter_config.json"
    edit(path, **{**({"rank_pattern": {}, "alpha_pattern": {}} if one_rank else {}), **changes})
    with pytest.raises(OutputError, match=rf"differs in .*\b{next(iter(changes))}\b"):
        check_adapter(path.parent, read_manifest(run), one_rank=one_rank)


def seal_adapter(run: Path) -> None:
    """State the adapter that is there in the manifest, as the author of a hostile run could."""
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["adapter_sha256"] = adapter_digest(run / "adapter")
    (run / MANIFEST).write_text(json.dumps(sealed(manifest)))


def finished(run: Path) -> FinishedRun:
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    return FinishedRun(run, {}, config, read_manifest(run))


def test_the_largest_rank_is_that_of_the_tensors(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "padded"
    target.mkdir()
    write_adapter(finished(run), target)
    check_adapter(target, read_manifest(run), one_rank=True)
    path = run / "adapter" / "adapter_config.json"
    for changes in ({"r": 1 << 40}, {"rank_pattern": {"x": 1 << 40}}, {"target_modules": TANGLED},
                    {"alpha_pattern": [1]}, {"lora_alpha": "x"}):
        before = path.read_text()
        edit(path, **changes)
        with pytest.raises(OutputError, match="take the adapter from the run again"):
            write_adapter(finished(run), target)
        path.write_text(before)
    weights = load_file(path.parent / "adapter_model.safetensors")
    name = next(n for n in weights if "lora_B" in n)
    shortened = {**weights, name: weights[name][:, :0].contiguous()}
    save_file(shortened, path.parent / "adapter_model.safetensors")
    seal_adapter(run)
    with pytest.raises(OutputError, match="does not have the ranks"):
        write_adapter(finished(run), target)
