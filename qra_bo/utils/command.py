"""Commands of this program that can be pasted into a shell."""

import shlex
from collections.abc import Mapping, Sequence

from qra_bo.utils.redact import printable, redact

OF_A_SEARCH = ("budget", "effort", "oracle")
"""Values and groups that task=finetune does without, or refuses."""


def command(words: Sequence[str], changes: Mapping[str, str | None], without: Sequence[str] = ()) -> str:
    """Return the command with the flags and overrides ``words``, quoted for a shell, without secrets.

    Args:
        words: As the user gave them.
        changes: Values of other keys, which replace theirs; ``None`` leaves a key out.
        without: Keys and groups that are left out, with the keys of those groups.
    """
    flags = [text for text in words if text.startswith("-")]
    given = {text.lstrip("+").partition("=")[0]: text.lstrip("+").replace("'", "") for text in words
             if not text.startswith("-")}
    kept = {key: text for key, text in given.items() if key.partition(".")[0] not in without}
    kept |= {key: f"{key}={value}" for key, value in changes.items() if value is not None}
    kept = {key: f"+{text}" if key == "model" else text for key, text in kept.items()
            if key not in changes or changes[key] is not None}
    ordered = sorted(kept.values(), key=lambda text: not text.startswith("+model"))
    return printable(redact(shlex.join(["python", "-m", "qra_bo", *flags, *ordered])))
