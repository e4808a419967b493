"""Properties of the parsers over made-up inputs of the right kind, where fuzzing starts from bytes."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_bo.memory.budget import parse_budget, parse_size
from qra_bo.pipeline.given import read_allocation
from qra_bo.sensitivity.profile import profile_from_json, profile_to_json
from qra_bo.study.journal import Journal, read_journal
from qra_bo.utils.errors import BudgetError, ConfigError, ContractError, JournalError, ProfileError, UserError
from tests.fuzz.targets import FINETUNE, PARSERS, SCRATCH, SPACE

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
                    max_leaves=12)
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
         "TiB": 2**40}


@given(st.integers(1, 10**9), st.integers(0, 999), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]))
def test_a_size_means_what_it_says(whole: int, thousandths: int, unit: str, space: str) -> None:
    assert parse_size(f"{whole}{space}{unit}") == whole * UNITS[unit]
    if unit:
        exact = (1000 * whole + thousandths) * UNITS[unit] // 1000
        assert parse_size(f"{whole}.{thousandths:03d}{space}{unit.upper()}") == exact


@pytest.mark.parametrize("text", ["9" * 5000, "1." + "9" * 5000 + "GB", "uniform:4," + "9" * 5000,
                                  "uniform:" + "9" * 50, "\u0661\u0660GB", "10\u00a0\u00a0GB", "1_0GB", "0x10", "+5GB",
                                  "1e3", "10GB\n1"])
def test_what_only_looks_like_a_size_is_refused_in_a_short_message(text: str) -> None:
    with pytest.raises((BudgetError, ConfigError)) as caught:
        parse_budget(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["profile", "manifest", "data_file", "allocation", "configuration", "journal"])
@settings(max_examples=15, deadline=None)
@given(value=JSON, change=st.sampled_from(["value", "key", "both"]), at=st.integers(0, 30))
def test_any_json_in_the_place_of_any_field_is_read_or_refused(name: str, value: Any, change: str, at: int) -> None:
    seed = json.loads(EXAMPLES[name])
    key = sorted(seed)[at % len(seed)]
    if change != "value":
        seed[f"{key}x"] = seed.pop(key)
    if change != "key":
        seed[key] = value
    PARSERS[name](json.dumps(seed).encode("utf-8", "surrogatepass") + b"\n")


EXAMPLES = {
    "profile": '{"schema_version": 1, "units": ["a", "b"], "formats": ["nf4"], '
               '"quantization_sensitivity": [[0.1], [0.2]], "quantization_kl": [[0.1], [0.2]], '
               '"rank_sensitivity": [[0.1, 0.2], [0.1, 0.3]], "base_loss": 4.0, "source": "x"}',
    "manifest": '{"schema_version": 1, "model": {}, "compute_dtype": "bfloat16", "packed_on": "cpu", "modules": {}, '
                '"unquantised_sha256": "", "packed": null, "versions": {}, "sha256": ""}',
    "data_file": '{"instruction": "i", "input": "x", "output": "o"}',
    "allocation": '{"formats": ["nf4", "nf4"], "ranks": [1, 2], "learning_rate": 0.001}',
    "configuration": '{"seed": 3, "train.batch": 4, "bits": [2, 4], "model": {}, "executor.workers": 2}',
    "journal": '{"event": "header", "session": 1, "elapsed": 0, "schema_version": 3, "crc": "fuzz", "planned_cost": 1}'}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=8).filter(
    lambda k: k not in ("event", "time", "session", "elapsed", "crc")), JSON, max_size=4), min_size=1, max_size=5),
    st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_every_changed_byte_of_a_journal_is_noticed(events: list[dict[str, Any]], share: float, bit: int) -> None:
    path = SCRATCH.folder / "trials.jsonl"
    path.unlink(missing_ok=True)
    written = []
    with Journal(SCRATCH.folder) as journal:
        written.append(journal.append("header", {"schema_version": 3}))
        for fields in events:
            with suppress(ContractError):  # NaN and infinity are never written
                written.append(journal.append("warning", fields))
    raw = path.read_bytes()
    read = read_journal(path)
    assert not read.damaged
    assert len(read.events) == len(written)
    at = int(share * len(raw))
    changed = bytearray(raw)
    changed[at] ^= 1 << bit
    path.write_bytes(changed)
    try:
        again = read_journal(path)
    except JournalError:
        assert at <= raw.index(b"\n")  # the header
        return
    assert all(e in read.events for e in again.events)  # nothing that was not written
    assert again.events == read.events or (len(again.events) < len(read.events) and again.warnings)


@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers(-10**400, 10**400))
def test_numbers_of_a_profile_and_an_allocation_are_floats(number: float | int) -> None:
    profile = json.loads(EXAMPLES["profile"])
    try:
        found = profile_from_json({**profile, "base_loss": number}, "here")
        assert math.isfinite(found.base_loss)
        assert profile_to_json(found)["base_loss"] == found.base_loss
    except ProfileError:
        pass
    text = json.dumps({**json.loads(EXAMPLES["allocation"]), "learning_rate": number})
    try:
        config = FINETUNE.with_changes(allocation=str(SCRATCH.file("best.json", text.encode())))
        given, _ = read_allocation(config, SPACE)
        assert 0 < given.learning_rate <= 10
    except UserError:
        pass
