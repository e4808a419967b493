"""The text decoder of a checkpoint with other parts beside it, such as one for images, as a model of its own."""

from typing import Any

from qra_bo.finetune.models.files import warn_once

TEXT_NAMES = {r"^language_model\.lm_head\.": "lm_head.", r"^language_model\.model\.": "model.",
              r"^model\.(language|text)_model\.": "model."}
"""Patterns of a decoder's names in such checkpoints, as the hub's files and the modules of transformers have them, with
their replacements in a model of text."""


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
