"""The options of a data set: one node of ``conf/data``, by the kind of its loader."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import Field, StrictFloat, StrictInt

from qra_bo.utils.fields import Count, Group


class DataOptions(Group):
    """What every data set has.

    Args:
        name: Name of the group's option, e.g. ``"plays"``.
        calibration: Sequences of the training split that sensitivities are measured on.
    """

    name: str
    calibration: Count


class PlaysData(DataOptions):
    """Shakespeare's plays, split by whole plays."""

    kind: Literal["plays"]


class RecordOptions(DataOptions):
    """What data sets of records have.

    Args:
        held_out: Share of the records in validation, and again in test.
        max_records: Largest number of records read, or ``None`` for all.
    """

    held_out: Annotated[StrictFloat, Gt(0), Lt(0.5)]
    max_records: Annotated[StrictInt, Ge(3)] | None


class TinyData(RecordOptions):
    """Synthetic bytes."""

    kind: Literal["tiny"]


class UserData(RecordOptions):
    """What data sets of the user's choice have.

    Args:
        chat: Turns of the assistant on which a loss is taken: all of a conversation, or the last.
        render: How instructions, questions and prompts are rendered: as chats, by the tokenizer's template, or as plain
            text; ``"auto"``: as chats where the tokenizer has a template.
        max_cut: Largest share of the training split's answer tokens that may be cut off by ``train.length``.
    """

    chat: Literal["all", "last"]
    render: Literal["auto", "chat", "plain"]
    max_cut: Annotated[StrictFloat, Ge(0), Le(1)]


class JsonlData(UserData):
    """A JSON or JSONL file at ``path``."""

    kind: Literal["jsonl"]
    path: str | None


class HubData(UserData):
    """A data set of the hub.

    Args:
        path: Its id, or a folder that ``datasets`` reads.
        split: Records that are read, e.g. ``"train"`` or ``"train[:5%]"``.
        subset: Its named configuration, or the file that is read; ``None``: the only one.
        revision: Commit or tag; ``None``: the newest.
    """

    kind: Literal["hub"]
    path: str | None
    split: str
    subset: str | None
    revision: str | None


DataConfig = Annotated[PlaysData | TinyData | JsonlData | HubData, Field(discriminator="kind")]
