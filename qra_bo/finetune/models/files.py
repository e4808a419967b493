"""Before transformers reads a model's folder: no pickles, no redirects, no code unasked; of a checkpoint with other
parts, such as one for images, the text decoder alone; and what the numbers of a model that was read depend on."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from qra_bo.space.decoder import MOST_LAYERS
from qra_bo.utils.errors import ModelError

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
REDIRECTS = ("transformers_weights", "configuration_files")
"""Keys of a configuration that make transformers read files that are not checked here."""
TEXT_NAMES = {r"^language_model\.lm_head\.": "lm_head.", r"^language_model\.model\.": "model.",
              r"^model\.(language|text)_model\.": "model."}
"""Patterns of a decoder's names in such checkpoints, as the hub's files and the modules of transformers have them, with
their replacements in a model of text."""
INERT = frozenset({"architectures", "dtype", "id2label", "label2id", "problem_type", "return_dict", "torch_dtype",
                   "transformers_version", "use_cache"})
"""Fields of a configuration that change nothing here; so do those of output and of names."""
log = logging.getLogger(__name__)


@cache
def warn_once(message: str) -> None:
    """Log a warning once per process and text."""
    log.warning(message)


def check_model_files(folder: Path, name: str, *, gguf: bool = False) -> None:
    """Refuse a model in a folder whose reading would involve a pickle or an adapter.

    Transformers' ``use_safetensors`` checks the first file alone: an index may name pickles as its shards. With
    ``gguf`` the weights are in one GGUF file, and no others are read.

    Raises:
        ModelError: If there is one; the message says what to do.
    """
    if (folder / ADAPTER).exists():
        raise ModelError(f"{folder} holds {ADAPTER}, which would put an adapter on {name!r} or read another base; give "
                         "a base model alone: take the adapter out of the folder, or merge it into the weights")
    config = _read(folder / CONFIG)
    for key in sorted(set(_keys(config)) & set(REDIRECTS)):
        raise ModelError(f"{CONFIG} of {folder} redirects the reading of {name!r} to other files ({key}), which is not "
                         "done here; take that key out")
    if gguf:
        return
    check_layers(folder)
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if file.exists() and not file.is_file():  # a pipe would wait for ever
            raise ModelError(f"{file} is a folder, a pipe or a device; take it out of the folder of {name!r}")
    if not files:
        pickles = sorted(p.name for s in ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt") for p in folder.glob(s))
        if pickles:
            raise ModelError(f"the weights of {name!r} in {folder} are {', '.join(pickles[:3])}: pickles, which can "
                             "run code when they are read, and are never read here. Take a revision with "
                             "*.safetensors, or convert them on a machine that you can lose: AutoModelForCausalLM."
                             "from_pretrained(folder).save_pretrained(folder, safe_serialization=True)")
    index = _read(folder / INDEX)
    shards = {} if index is None else index.get("weight_map") if isinstance(index, dict) else None
    for shard in shards.values() if isinstance(shards, dict) else [shards]:
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or PurePosixPath(shard).name != shard:
            raise ModelError(f"{INDEX} of {folder} names {str(shard)[:100]!r} as a part of the weights of {name!r}; "
                             "every part must be a *.safetensors beside it: pickles, which can run code, are not read")


def check_unquantised(folder: Path, name: str) -> None:
    """Raise ``ModelError`` if a model's weights are packed in the format of a quantiser (bitsandbytes, GPTQ, AWQ, FP8
    ...), as its configuration says."""
    marks = quantization_marks(folder)
    if marks:
        method = marks.get("quant_method", "unknown") if isinstance(marks, dict) else "unknown"
        other = "its mixture of experts is trained in no format here; choose a model of another family" \
            if method == "mxfp4" else "bits are chosen here for the layers of a dense base; give the model that it " \
            "was made from, in 16 bits, or train on its codes as they are: codes=stored"
        raise ModelError(f"the weights of {name!r} in {folder} are quantised already ({str(method)[:40]}), and {other}")


def check_layers(folder: Path) -> None:
    """Raise ``ModelError`` if a model's configuration states more than ``MOST_LAYERS``: transformers lists each."""
    for part in _parts(folder):
        if isinstance(n := part.get("num_hidden_layers"), int | float) and n > MOST_LAYERS:
            raise ModelError(f"{folder / CONFIG} states more than {MOST_LAYERS} layers; copy the model again")


def check_alike(facts: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise ``ModelError`` unless files or folders of one model, the base's first, differ in nothing but the codes of
    matrices; ``facts`` are what else is in each."""
    (base, own), *others = facts.items()
    for path, found in others:
        for key in {**own, **found}:
            if own.get(key) != found.get(key):
                raise ModelError(f"{path} and {base} differ in {key}: they are not of one model, or of different "
                                 "releases of it; give files that were quantised from the same weights")


def bases_of(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a node of ``conf/model`` for each GGUF file, revision or folder that a node lists, the base's first."""
    for key in ("gguf_file", "revision", "path"):
        if isinstance(given := model.get(key), list | tuple) and given:
            return [base for one in given for base in bases_of({**model, key: one})]
    return [{**model}]


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a model's weights, which transformers takes too: one, or the parts that an index
    names; without either all. ``check_model_files`` goes before."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    return [folder / part for part in shards(folder)] or sorted(folder.glob("*.safetensors"))


def shards(folder: Path) -> list[str]:
    """Return the files that an index of weights names; none without one."""
    index = _read(folder / INDEX)
    return sorted(set(index["weight_map"].values())) if index else []


def quantization_marks(folder: Path) -> Any:
    """Return the ``quantization_config`` of a model's configuration, or of its text part, else ``None``."""
    return next((part["quantization_config"] for part in _parts(folder) if part.get("quantization_config")), None)


def _parts(folder: Path) -> list[dict[str, Any]]:
    config = _read(folder / CONFIG)
    parts = (config, config.get("text_config")) if isinstance(config, dict) else ()
    return [part for part in parts if isinstance(part, dict)]


def _keys(value: Any) -> Iterator[str]:
    """Yield the keys at every level: a configuration inside another can become the model's own."""
    if isinstance(value, dict):
        yield from (str(key) for key, inner in value.items() if inner is not None)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _read(path: Path) -> Any:
    if not path.exists():
        return None  # transformers itself reports a required file
    try:
        if not path.is_file():
            raise OSError("it is a folder, a pipe or a device")
        return json.loads(path.read_text(encoding="utf-8"))  # as transformers reads it: some hold NaN
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read ({str(error)[:200]}); copy the model again") from error


def may_run(model_cfg: Mapping[str, Any]) -> bool:
    """Whether ``model.trust_remote_code`` is set; if so, a warning is logged once per process and model."""
    if not model_cfg.get("trust_remote_code"):
        return False
    warn_once(f"model.trust_remote_code=true: code that comes with {model_cfg.get('path')} will run on this machine, "
              "with all that you may do; pin it with model.revision")
    return True


def text_part(config: Any, where: str) -> Any:
    """Return the configuration of the text decoder that ``config`` describes beside other parts, else ``config``.

    transformers must have a causal language model of that decoder's type. A warning is logged once per process and
    ``where``, which names the checkpoint. Code that comes with a checkpoint may compute anything: its configuration is
    returned as it is.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING  # slow to import; a plan by conf/model's numbers needs none
    text: Any = getattr(config, "text_config", None)
    own_code = not type(config).__module__.startswith("transformers.")
    if own_code or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING or text.is_encoder_decoder:
        return config
    if (ends := getattr(config, "eos_token_id", None)) is not None:
        text.eos_token_id = ends  # the tokens that end an answer are often set for the whole checkpoint alone
    warn_once(f"{where} ({config.model_type}) has other parts beside its text decoder: the decoder alone "
              f"({text.model_type}) is planned, loaded and trained, and parts for images or sound are left out")
    return text


def facts_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the fields of a base model's configuration, and the digest of its tokenizer, as they were read."""
    config = json.loads(model.config.to_json_string(use_diff=False), parse_constant=str)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return {"config": {key: value for key, value in config.items()
                       if key not in INERT and not key.startswith(("_", "output_"))},
            "tokenizer": hashlib.sha256(text.encode()).hexdigest()}
