"""Code that comes with a model runs at the user's word alone, and nobody is asked for it on a terminal."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from bench import learn_rates
from bench.memory.trace import StepTracer
from qra_bo.config import load_config, make_spec
from qra_bo.utils.errors import ModelError, UserError
from tests.report.fixtures import make_events, write_run


def own_code(folder: Path, **auto_map: str) -> Path:
    """A model's folder with code that leaves a file where it ran."""
    folder.mkdir()
    kind = {"model_type": "llama" if "AutoConfig" not in auto_map else "own"}
    (folder / "config.json").write_text(json.dumps({**kind, "auto_map": auto_map}))
    (folder / "evil.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n")
    return folder


def test_rates_are_learned_without_a_models_code(tmp_path: Path) -> None:
    evil = own_code(tmp_path / "evil", AutoConfig="evil.Config", AutoModelForCausalLM="evil.Model")
    header, *rest = make_events()
    config = load_config(["+model=hf", f"model.path={evil}", "model.trust_remote_code=true"]).to_dict()
    run = write_run(tmp_path / "run", [{**header, "config": config}, *rest])
    with pytest.raises(UserError):
        learn_rates.main([str(run), "--out", str(tmp_path / "rates.json")])
    assert not (evil / "ran").exists()


@pytest.fixture(name="asked")
def record_questions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was asked on the terminal; the answer is no."""
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *what: asked.extend(what) or "n")
    return asked


@pytest.fixture(name="evil")
def make_evil(tmp_path: Path) -> Path:
    """A model of a known type that transformers has no decoder for, so that it would take the folder's."""
    evil = own_code(tmp_path / "evil", AutoModelForCausalLM="evil.Model")
    config = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    return evil


def test_shapes_and_traces_of_a_model_ask_nothing_on_the_terminal(evil: Path, asked: list[object]) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        StepTracer(make_spec(load_config(["task=memory", "+model=tiny"])), AutoConfig.from_pretrained(evil))
    with pytest.raises(ModelError, match=r"code of its own.*model\.trust_remote_code=true"):
        make_spec(load_config(["task=memory", "+model=hf", f"model.path={evil}"]))
    assert not asked
    assert not (evil / "ran").exists()


def test_the_users_word_reaches_the_shapes_of_a_model(tmp_path: Path) -> None:
    own = own_code(tmp_path / "own", AutoConfig="evil.Config", AutoModelForCausalLM="evil.Model")
    config = json.loads((own / "config.json").read_text())
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
             "vocab_size": 99}
    (own / "config.json").write_text(json.dumps({**config, **small}))
    options = ["task=memory", "+model=hf", f"model.path={own}", "model.trust_remote_code=true"]
    assert make_spec(load_config(options)).n_layers == 1
    assert (own / "ran").exists()
