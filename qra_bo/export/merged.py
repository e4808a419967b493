"""``export/merged``: the model with its adapter merged into its searched base, in 16 bits, as any tool loads it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from qra_bo.export.comparison import Loader, Reference, Row, plain_model
from qra_bo.export.load import dense_base
from qra_bo.export.run import FinishedRun, render
from qra_bo.export.weights import save_generation, weights_in
from qra_bo.finetune.models.experts import fuse
from qra_bo.finetune.models.load import cast_parameters, load_base
from qra_bo.utils.files import follow_umask

FOLDER = "export/merged"


def write(run: FinishedRun) -> list[Path]:
    """Write the merged model, its defaults for generation, its tokenizer, and a card."""
    target = run.folder / FOLDER
    model, tokenizer = merged_model(run)
    fuse(model)
    settings, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(str(target), safe_serialization=True)
    save_generation(settings, target)
    tokenizer.save_pretrained(str(target))
    follow_umask(*target.glob("*.safetensors"))
    (target / "README.md").write_text(render("merged.md", run), encoding="utf-8")
    return sorted(p for p in target.iterdir() if p.is_file())


def merged_model(run: FinishedRun) -> tuple[Any, Any]:
    """Return the merged model, on the CPU in the 16-bit type nearest to the run's compute type, and its tokenizer."""
    half = torch.float16 if run.manifest.compute_dtype == "float16" else torch.bfloat16
    model, tokenizer = dense_base(run.manifest, run.folder, run.trust_remote_code)
    from_gguf = run.manifest.stored and run.manifest.model.get("gguf_file")  # whose tables are no dense modules
    packed, model = model, load_base(run.manifest.model)[0] if from_gguf else model
    with torch.no_grad():
        for module, weights in weights_in(packed, run):
            if from_gguf:
                module = model.get_submodule(weights.name)
            elif run.manifest.stored:
                module = nn.Linear(*weights.shape[::-1], bias=module.bias is not None, dtype=half)
                if weights.bias is not None:
                    module.bias.data = weights.bias
                model.set_submodule(weights.name, module)
            module.weight.data = weights.merged(half)  # at once: a whole model in fp32 would take twice its memory
    cast_parameters(model, half)
    return model.eval(), tokenizer


def _views(run: FinishedRun, reference: Reference) -> list[Row]:
    model = plain_model(run.folder / FOLDER, run.trust_remote_code)
    return [reference.row("merged", reference.logits(model), "rounded to 16 bits")]


LOADER = Loader("transformers", _views)
