"""What is done to every base before anything is trained on it."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.torch import load_file, save_file
from transformers import GraniteConfig, GraniteForCausalLM, Starcoder2Config, Starcoder2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from qra_bo.config import load_config, make_spec
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.gguf_header import QuickReader
from qra_bo.finetune.models.gguf_reading import origin_of, reading_gguf
from qra_bo.finetune.models.host_linear import keep_on_host
from qra_bo.finetune.models.load import cast_parameters, load_base, located, without_dropout
from qra_bo.finetune.quantization.bank import LayerBank
from qra_bo.pipeline.oracles import make_oracle
from qra_bo.utils.errors import ModelError
from tests.finetune.models import tiny_llama


def test_a_bases_own_dropout_draws_nothing() -> None:
    shape = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    for model in (GraniteForCausalLM(GraniteConfig(attention_dropout=0.5, **shape)),
                  Starcoder2ForCausalLM(Starcoder2Config(attention_dropout=0.3, residual_dropout=0.5,
                                                         embedding_dropout=0.5, **shape))):
        model.train()
        ids = torch.arange(12).reshape(1, 12)
        with torch.no_grad():
            assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
            without_dropout(model)
            assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("marks", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "gptq"}])
def test_a_base_that_is_quantised_already_is_refused(tmp_path: Path, marks: dict[str, Any]) -> None:
    tiny_llama()[0].config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "quantization_config": marks}))
    (tmp_path / "model.safetensors").touch()
    config = load_config(["task=memory", "+model=hf", f"model.path={tmp_path}"])
    message = rf"quantised already \({marks['quant_method']}\).*give the model that it was made from, in 16 bits"
    for use in (lambda: make_spec(config), lambda: load_base(config.model)):
        with pytest.raises(ModelError, match=message):
            use()


def test_a_base_whose_files_lack_weights_is_refused(tmp_path: Path) -> None:
    tiny_llama()[0].save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    node = dict(load_config(["task=memory", "+model=hf", f"model.path={tmp_path}"]).model)
    load_base(node)  # the head is tied, and stands in no file
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 of its weights, such as model\.layers\.1\.mlp\.down_proj\.weight"):
        load_base(node)


def test_rope_frequencies_are_those_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_BO_CACHE", str(tmp_path / "cache"))
    config = load_config(["+model=tiny", "data=tiny", "device=cpu", "dtype=bfloat16", "data.max_records=64"])
    oracle: Any = make_oracle(config.to_dict(), str(tmp_path))
    expected = LlamaRotaryEmbedding(oracle.model.config).inv_freq
    assert {p.dtype for p in oracle.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(oracle.model.model.rotary_emb.inv_freq, expected, rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_linears_stay_in_the_16_bits_of_their_file(stored: torch.dtype, compute: torch.dtype) -> None:
    model, spec = tiny_llama(dtype=stored)
    names, before = [m.name for m in spec.linears], model.get_input_embeddings().weight
    pointers = {name: model.get_submodule(name).weight.data_ptr() for name in names}
    cast_parameters(model, compute, names)
    assert pointers == {name: model.get_submodule(name).weight.data_ptr() for name in names}
    assert before.dtype == compute
    assert model.lm_head.weight is before


def test_a_base_stored_in_other_16_bits_computes_as_if_cast() -> None:
    ids = torch.arange(24).reshape(2, 12)
    for stored, compute in ((torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)):
        found = []
        for kept in (False, True):
            model, spec = tiny_llama(dtype=stored)
            names = [m.name for m in spec.linears]
            cast_parameters(model, compute, names if kept else ())
            if kept:
                keep_on_host(model, names)
            bank = LayerBank(model, spec, (), compute, "cpu")
            outputs = [model(input_ids=ids).logits]
            bank.install(dict.fromkeys(names, "fp16"))
            outputs.append(model(input_ids=ids).logits)
            bank.restore_dense()
            found.append([*outputs, model(input_ids=ids).logits])
        assert found[1][0].dtype == compute
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b) or (compute == torch.float32 and torch.allclose(a, b, atol=1e-3))


@pytest.mark.parametrize("own", [True, False])
def test_head_of_its_own_is_not_called_tied(own: bool, tmp_path: Path) -> None:
    model, _ = tiny_llama(vocab=320)
    if own:  # as of a merged adapter that trained the head: the file holds both, the configuration ties them
        model.lm_head.weight = torch.nn.Parameter(2 * model.lm_head.weight.data)
    model.save_pretrained(tmp_path, state_dict=model.state_dict())
    byte_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    loaded, _ = load_base({"name": "own", "source": "path", "path": str(tmp_path)})
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert (loaded.lm_head.weight is not loaded.model.embed_tokens.weight) == own
    assert loaded.config.tie_word_embeddings is not own


def test_base_in_a_relative_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama(vocab=320)[0].save_pretrained(tmp_path / "models" / "own")
    byte_tokenizer().save_pretrained(tmp_path / "models" / "own")
    monkeypatch.chdir(tmp_path)
    node = {"name": "own", "source": "path", "path": "models/own"}
    recorded, (model, _) = located(node), load_base(node)
    monkeypatch.chdir("/")
    assert recorded == {**node, "path": str(tmp_path / "models" / "own")}
    assert model.name_or_path == recorded["path"]  # PEFT writes it into the adapter's configuration
    assert load_base(recorded)[0].config.vocab_size == 320
    for other in ({"source": "path", "path": "ORG/NAME"}, {"source": "random", "path": None}):
        assert located(other) == other


@pytest.mark.parametrize(("kind", "bits"), [(GGMLQuantizationType.Q4_0, "Q4_0, 4.5 bits"),
                                            (GGMLQuantizationType.F16, None)])
def test_origin_of_a_gguf_is_the_format_of_most_weights(kind: GGMLQuantizationType, bits: str | None, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    writer = GGUFWriter(tmp_path / "base.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", quantize(np.zeros((4, 64), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parse, parsed = QuickReader._build_fields, list[int]()
    monkeypatch.setattr(QuickReader, "_build_fields", lambda *given: parsed.append(1) or parse(*given))
    with reading_gguf():
        gguf.GGUFReader(str(tmp_path / "base.gguf"))
        origin = origin_of(tmp_path / "base.gguf")
    assert parsed == [1]
    assert origin is None if bits is None else bits in str(origin)
