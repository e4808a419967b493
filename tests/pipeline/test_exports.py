"""The exports at the end of a run: what fails takes nothing from the others."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qra_bo.config import load_config
from qra_bo.export.run import FinishedRun
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.manifest import MANIFEST, sealed
from qra_bo.pipeline import exports
from qra_bo.pipeline.exports import checked, refuse_base, write_exports
from qra_bo.utils.errors import ConfigError, OutputError
from tests.export.fixtures import write_finished

RUN = ["+model=tiny", "data=tiny"]
CONFIG = load_config([*RUN, "bits=[16]", "export.targets=[merged,mlx]"])


@pytest.mark.parametrize("error", [OutputError("no"), MemoryError("no"), torch.OutOfMemoryError("no"),
                                   RuntimeError("CUDA driver error: out of memory: no")])
def test_an_export_that_fails_leaves_the_others_and_is_told_without_a_display(
        error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    raised = [error]

    def export_all(run: FinishedRun, targets: Sequence[str]) -> list[Path]:
        if "merged" in targets:
            raise raised[-1]
        return [run.folder / target for target in targets if target == "mlx"]

    monkeypatch.setattr("qra_bo.export.registry.export_all", export_all)
    monkeypatch.setattr(exports, "checked", lambda config, run, console: [run.folder / "checks"])
    run = write_finished(tmp_path / "run")
    assert write_exports(CONFIG, run, None) == [run / "mlx", run / "checks"]
    [said] = caplog.messages
    assert said.startswith("the export merged was not written, and the run's other files are complete: ")
    assert "no" in said.partition("complete: ")[2]
    raised.append(RuntimeError("shapes differ"))  # a bug is no warning
    with pytest.raises(RuntimeError, match="shapes differ"):
        write_exports(CONFIG, run, None)


def test_figures_of_an_earlier_adapter_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_finished(tmp_path / "run")
    monkeypatch.setattr("qra_bo.export.registry.check_exports", lambda finished: [])
    [path] = checked(load_config([*RUN, "export.check=true"]), FinishedRun.read(run), None)
    unchecked = load_config([*RUN, "export.check=false"])
    assert checked(unchecked, FinishedRun.read(run), None) == []
    assert path.exists()
    manifest = json.loads((run / MANIFEST).read_text())
    (run / MANIFEST).write_text(json.dumps(sealed({**manifest, "adapter_sha256": "1" * 64})))
    assert checked(unchecked, FinishedRun.read(run), None) == []
    assert not path.exists()


SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "vocab_size": 320, "pad_token_id": None, "bos_token_id": None,
                         "eos_token_id": None}


def test_tokenizer_without_a_form_in_gguf_is_refused_and_all_else_accepted() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=64))
    for words in (["serve=llamacpp", "export.targets=[mlx]"], ["serve=any"]):
        refuse_base(load_config([*RUN, *words]), model, byte_tokenizer())
    with pytest.raises(ConfigError, match=r"tokenizer has no form in GGUF.*serve=llamacpp writes this export"):
        refuse_base(load_config([*RUN, "serve=llamacpp"]), model, object())
