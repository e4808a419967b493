"""Decoder and search space of a configuration."""

import math
from typing import Any

from qra_bo.config.schema import RunConfig
from qra_bo.finetune.models.files import bases_of, check_layers, check_unquantised, may_run
from qra_bo.finetune.models.gguf_header import stored_header, stored_spec
from qra_bo.finetune.models.hub import small_files
from qra_bo.finetune.models.packed_folder import folder_spec
from qra_bo.memory.formats import parse_format
from qra_bo.space import DecoderSpec, SearchSpace, make_units
from qra_bo.space.decoder import OWN_CODE, check_mixture, spec_from_hf_config, spec_from_numbers, with_adapters
from qra_bo.utils.errors import ModelError

NUMBERS = ("n_layers", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "tied",
           "attention_bias", "n_experts", "experts_per_token")
"""Keys of ``conf/model`` that ``spec_from_numbers`` takes, beside the family."""
TOKENS_AN_INPUT = 10
"""Tokens for each input of a linear from which GPTQ chooses codes as good for new text as for its own."""


def make_spec(config: RunConfig) -> DecoderSpec:
    """Return the shapes of the decoder: from the numbers in ``conf/model``, else from its own configuration; with
    ``codes=stored`` also the formats of its weights, from the headers of its files. ``adapter.experts`` decides whether
    experts take adapters.

    Raises:
        ModelError: If there are no numbers and no configuration at hand, or the file is damaged or not the model's.
    """
    model: dict[str, Any] = {**config.model}
    if model["n_layers"] is not None:
        spec = spec_from_numbers(config.model_name, model["family"], **{key: model[key] for key in NUMBERS})
    else:
        spec = spec_from_hf_config(hf_config(config), config.model_name, trust_remote_code=model["trust_remote_code"])
    spec = with_adapters(spec, config.adapter.experts)
    if not config.stored:
        return spec
    if spec.n_experts:
        raise ModelError(f"codes=stored does not read the experts of a file, and {config.model_name!r} has "
                         f"{spec.n_experts} a layer: leave codes=stored out, and give its weights in 16 bits or a GGUF")
    from qra_bo.finetune.models.load import gguf_of, packed_folder_of  # loads torch, which other plans do without
    bases = bases_of(model)
    return folder_spec(spec, *map(packed_folder_of, bases)) if model["gguf_file"] is None else \
        stored_spec(spec, *(stored_header(gguf_of(base)) for base in bases))


def hf_config(config: RunConfig) -> Any:
    """Return the transformers configuration at ``model.path``; of a checkpoint with other parts beside its text
    decoder, that of the decoder, which alone is loaded.

    Raises:
        ModelError: If there is none, or it is of weights that are quantised already.
    """
    model = bases_of(config.model)[0]
    if model["gguf_file"] is not None:
        from qra_bo.finetune.models.load import gguf_config, gguf_of
        return gguf_config(gguf_of(model))
    from transformers import AutoConfig  # heavy, and not needed where conf/model has the numbers

    from qra_bo.finetune.models.files import text_part
    path = small_files(model)
    check_layers(path)
    try:
        found = AutoConfig.from_pretrained(str(path), trust_remote_code=may_run(model))
    except Exception as error:  # of a malformed file transformers raises anything
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if "trust_remote_code" in str(error):
            reason = f"model.path={model['path']!r} {OWN_CODE}"
        elif not (path / "config.json").is_file():
            reason = (f"the folder model.path={model['path']!r} holds no config.json; give one that transformers saved "
                      "a model in")
        else:
            reason = f"{path / 'config.json'} can't be read ({said}); give a folder that transformers saved a model in"
        raise ModelError(reason) from error
    check_mixture(found.get_text_config())  # before advice on weights that are quantised
    if not config.stored:
        check_unquantised(path, config.model_name)
    return text_part(found, str(model["path"]))


def gptq_tokens(config: RunConfig, spec: DecoderSpec) -> int:
    """Return the tokens that GPTQ takes its second moments from: as configured, or whole sequences of at least
    ``TOKENS_AN_INPUT`` for each input of the widest linear."""
    if config.quantizer.tokens != "auto":
        return config.quantizer.tokens
    widest, length = max(linear.in_features for linear in spec.linears), config.train.length
    return length * math.ceil(TOKENS_AN_INPUT * widest / length)


def gptq_sequences(config: RunConfig, spec: DecoderSpec) -> int:
    """Return the sequences of the training split that codes are chosen on; 0 for round-to-nearest."""
    return 0 if config.quantizer.rounding == "rtn" else max(1, gptq_tokens(config, spec) // config.train.length)


def make_space(config: RunConfig, spec: DecoderSpec) -> SearchSpace:
    """Return the units and ladders of the search."""
    names = [name for name, _ in spec.linears[0].stored] if config.stored else config.format_names
    return SearchSpace(make_units(spec, config.granularity), tuple(map(parse_format, names)), config.ranks)
