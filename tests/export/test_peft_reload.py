"""PEFT loads the exports: ranks by module, and the padded adapter computes the same logits."""

import json
import warnings

import pytest

from qra_bo.export.registry import export_all
from qra_bo.space.allocation import peft_patterns
from tests.export.fixtures import best_json, manifest_json
from tests.security.test_adapters import seal_adapter

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def tiny_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                          num_attention_heads=2, num_key_value_heads=2)
        return transformers.LlamaForCausalLM(config).eval()


def test_padded_adapter_gives_the_logits_of_the_original(tmp_path):
    linears = {name: (i, m) for i, (name, m) in enumerate(tiny_model().named_modules())
               if isinstance(m, torch.nn.Linear) and "layers" in name}
    ranks = {name: 1 + i % 5 for name, (i, _) in linears.items()}
    shapes = {name: (m.out_features, m.in_features) for name, (_, m) in linears.items()}
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny_model(), peft.LoraConfig(**peft_patterns(ranks, 2), task_type="CAUSAL_LM"))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
        realised = {n.removeprefix("base_model.model."): m.r["default"] for n, m in model.named_modules()
                    if hasattr(m, "lora_A")}
        assert realised == ranks
        model.save_pretrained(tmp_path / "adapter")
        (tmp_path / "best.json").write_text(json.dumps(best_json()))
        manifest = manifest_json(ranks, dict.fromkeys(ranks, "nf4"), shapes)
        (tmp_path / "quant_manifest.json").write_text(json.dumps(manifest))
        seal_adapter(tmp_path)
        paths = export_all(tmp_path, ["uniform_rank"])
        tokens = torch.arange(12)[None]
        padded = peft.PeftModel.from_pretrained(tiny_model(), paths[0].parent).eval()
        with torch.no_grad():
            difference = (padded(tokens).logits - model.eval()(tokens).logits).abs().max()
    assert {m.r["default"] for m in padded.modules() if hasattr(m, "lora_A")} == {5}
    assert difference < 1e-5
