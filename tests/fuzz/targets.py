"""What every parser is fuzzed with: bytes go in, and what comes out is a value that makes sense or a ``UserError``.

Anything else that is raised is a finding; so is a value that the parser should have refused (``Accepted``).
"""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qra_bo.config import RunConfig, load_config
from qra_bo.config.compose import config_from
from qra_bo.config.overrides import inspect, normalise, with_default_model
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import read_rows, records_of
from qra_bo.finetune.manifest import MANIFEST, read_manifest
from qra_bo.memory.budget import Simple, Size, format_size, parse_budget, parse_size
from qra_bo.memory.formats import BITS
from qra_bo.pipeline.given import read_allocation
from qra_bo.searchers.rates.model import load_rates
from qra_bo.sensitivity.profile import profile_from_json, profile_to_json
from qra_bo.study.journal import checksum, read_journal
from qra_bo.study.lines import study_of
from qra_bo.utils.errors import UserError
from qra_bo.utils.files import strict_json
from tests.spaces import make_space

CORPUS = Path(__file__).parent / "corpus"
SPACE = make_space(2)
FINETUNE = load_config(["task=finetune", "+model=tiny", "data=tiny", "allocation=best.json"])
Parser = Callable[[bytes], None]


class Accepted(AssertionError):
    """A parser took what it should have refused."""


def check(good: bool, what: str, value: object) -> None:
    if not good:
        raise Accepted(f"{what}: {value!r}"[:500])


class Scratch:
    """A folder in memory with the one file that a parser reads."""

    def __init__(self) -> None:
        shm = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=shm if os.access(shm, os.W_OK) else None)
        self.folder = Path(self._folder.name)

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


SCRATCH = Scratch()


def sizes(data: bytes) -> None:
    """Sizes and budgets."""
    text = data.decode("utf-8", "surrogateescape")
    for parse in (parse_size, parse_budget):
        try:
            value: Any = parse(text)
        except UserError:
            continue
        size = value if isinstance(value, int) else value.size if isinstance(value, Size) else None
        check(size is None or size >= 1, "a size below one byte", text)
        if size is not None:
            check(parse_size(str(size)) == size, "bytes that are read as another size", text)
            check(bool(format_size(size)), "a size that can't be shown", text)
            check(any(c.isdigit() for c in text), "a size without digits", text)
        elif isinstance(value, Simple):
            check(value.rank >= 1 and min(BITS) <= value.bits <= max(BITS), "a simple choice that can't be", text)
        else:
            check(text.strip().lower() in ("auto", "allocation"), "a name", text)


def overrides(data: bytes) -> None:
    """A command line: what Hydra can't read, unknown keys and groups are all named."""
    words = [w for w in data.decode("utf-8", "replace").split("\n") if w]
    good, problems = inspect(with_default_model(normalise(words)), sweep=False)
    check(len(good) + len(problems) == len(with_default_model(words)), "an override that was lost", words)
    check(all(p.message.strip() for p in problems), "a problem without a message", words)


_PLAIN: dict[str, Any] = load_config(["+model=tiny"]).to_dict()


def configuration(data: bytes) -> None:
    """What overrides compose to: values by dotted key, of any type; every problem is a ``ConfigError``."""
    try:
        changes = strict_json(data)
    except ValueError:
        return
    if not isinstance(changes, dict):
        return
    raw = _copy(_PLAIN)
    for key, value in changes.items():
        *parents, leaf = key.split(".")
        node = raw
        for part in parents:
            node = node[part] if isinstance(node.get(part), dict) else node
        node[leaf] = value
    try:
        config = config_from(raw)
    except UserError:
        return
    check(isinstance(config, RunConfig) and config.executor.workers >= 1 and config.seed >= 0, "numbers", config)
    check(math.isfinite(config.adapter.lr) and config.adapter.lr > 0, "a learning rate", config.adapter.lr)
    check(len(config.config_sha256) == 64, "a hash", config)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def journal(data: bytes) -> None:
    """A journal and what it adds up to; a line whose checksum is ``"fuzz"`` gets its right one, to get further."""
    lines = []
    for line in data.split(b"\n"):
        if b'"fuzz"' in line:
            line = _with_checksum(line)
        lines.append(line)
    raw = b"\n".join(lines)
    try:
        content = read_journal(SCRATCH.file("trials.jsonl", raw))
        study = study_of(content.events)
        summed = (study.cost.tokens, study.states, study.incumbent, study.winner)
    except UserError:
        return
    check(content.good_bytes <= len(raw), "more bytes than there are", raw)
    for event in content.events:
        check(not set("\x1b\x07\r\x9b\u202e") & set(repr(event)), "control characters", event)
    check(all(summed[1].get(s, 0) >= 0 for s in summed[1]), "states", summed)


def _with_checksum(line: bytes) -> bytes:
    import json

    try:
        event = json.loads(line)
        event["crc"] = checksum(event)
        return json.dumps(event).encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return line


def profile(data: bytes) -> None:
    """Sensitivities in a line of a journal."""
    try:
        found = profile_from_json(dict(strict_json(data)), "here")
    except (UserError, ValueError, TypeError):  # no JSON, or no object
        return
    n = len(found.units)
    sensitivity = found.quantization_sensitivity
    check(n >= 1 and sensitivity.shape == (n, len(found.formats)), "a shape", sensitivity.shape)
    check(len(set(found.units)) == n, "units twice", found.units)
    check(math.isfinite(float(sensitivity.sum())), "sensitivity that is not finite", sensitivity)
    again = profile_to_json(profile_from_json(profile_to_json(found), "again"))
    check(again == profile_to_json(found), "another profile after a round trip", again)


def manifest(data: bytes) -> None:
    """``quant_manifest.json``."""
    SCRATCH.file(MANIFEST, data)
    try:
        found = read_manifest(SCRATCH.folder)
    except UserError:
        return
    check(all(r.rank >= 0 and r.shape[0] >= 0 and r.shape[1] >= 0 for r in found.modules.values()), "ranks", found)
    check(all(math.isfinite(r.alpha) for r in found.modules.values()), "alpha", found)


def data_file(data: bytes) -> None:
    """A user's JSON or JSONL file."""
    try:
        records, _ = records_of(read_rows(str(SCRATCH.file("data.jsonl", data))), None, "data.jsonl")
    except UserError:
        return
    check(bool(records), "no records", data)
    for record in records:
        if isinstance(record, Conversation):
            check(bool(record.trained), "nothing to learn", record)
            (record.messages_json + record.tools_json).encode()
        else:
            check(bool(record.target.strip()), "nothing to learn", record)
            (record.prompt + record.target).encode()


def allocation(data: bytes) -> None:
    """``uniform:BITS,RANK`` and the file of an allocation."""
    text = data.decode("utf-8", "replace")
    path = str(SCRATCH.file("best.json", data))
    for given in (text if text.strip().lower().startswith("uniform:") else path, path):
        try:
            read, _ = read_allocation(FINETUNE.with_changes(allocation=given), SPACE)
        except UserError:
            continue
        (found,), rate = read.allocations, read.learning_rate
        check(len(found) == SPACE.n_units and all(r >= 1 for r in found.ranks), "ranks", found)
        check(math.isfinite(rate) and rate > 0, "a learning rate", rate)


def rates(data: bytes) -> None:
    """What earlier runs taught: a file of ``surrogate.rates``."""
    try:
        found = load_rates(str(SCRATCH.file("rates.json", data)))
    except UserError:
        return
    check(np.isfinite(found.slopes).all() and found.slopes.min() >= 0, "slopes", found)
    check(np.isfinite(found.covariance).all() and 0 <= found.error < math.inf, "a covariance", found)
    check(0 < found.lr_scale < math.inf, "a learning rate", found.lr_scale)


PARSERS: dict[str, Parser] = {f.__name__: f for f in (sizes, overrides, configuration, journal, profile, manifest,
                                                      data_file, allocation, rates)}
