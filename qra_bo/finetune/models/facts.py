"""What the numbers of a base model depend on beside its weights."""

import hashlib
import json
from typing import Any

NO_NUMBERS = frozenset({"architectures", "dtype", "id2label", "label2id", "problem_type", "return_dict", "torch_dtype",
                         "transformers_version", "use_cache"})
"""Fields of a configuration that change nothing here; so do those of output and of names."""


def facts_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the fields of a base model's configuration, and the digest of its tokenizer, as they were read."""
    config = json.loads(model.config.to_json_string(use_diff=False), parse_constant=str)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return {"config": {key: value for key, value in config.items()
                       if key not in NO_NUMBERS and not key.startswith(("_", "output_"))},
            "tokenizer": hashlib.sha256(text.encode()).hexdigest()}
