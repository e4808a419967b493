"""Splitting, cutting and packing of records."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.load import byte_tokenizer, tiny_records
from qra_bo.finetune.data.packing import assemble, pack, pieces_of
from qra_bo.finetune.data.records import NO_LOSS, Record, batches, split_records, texts_sha256

TOKENIZER = byte_tokenizer()
texts = st.text(st.characters(min_codepoint=97, max_codepoint=122), max_size=40)
records = st.lists(st.builds(Record, texts, texts.filter(bool)), min_size=1, max_size=12)


@pytest.mark.parametrize(("prompt", "target", "length", "pieces"), [
    ([], [1, 2, 3, 4, 5], 2, [([1, 2], [1, 2]), ([3, 4], [3, 4]), ([5], [5])]),
    ([1, 2], [3, 4], 8, [([1, 2, 3, 4], [NO_LOSS, NO_LOSS, 3, 4])]),
    ([1, 2, 3, 4, 5, 6], [7, 8, 9], 4, [([5, 6, 7, 8], [NO_LOSS, NO_LOSS, 7, 8])]),
    ([1, 2, 3, 4, 5, 6], [7], 4, [([4, 5, 6, 7], [NO_LOSS, NO_LOSS, NO_LOSS, 7])])])
def test_texts_are_sliced_and_long_prompts_keep_their_end(prompt: list[int], target: list[int], length: int,
                                                          pieces: list[tuple[list[int], list[int]]]) -> None:
    assert pieces_of(prompt, target, length) == pieces


@given(records, st.integers(4, 64), st.integers(0, 3))
def test_packing_keeps_every_target_and_pads_only_at_the_end(items: list[Record], length: int, seed: int) -> None:
    blocks = pack(TOKENIZER, items, length, seed)
    assert blocks.input_ids.shape == blocks.labels.shape == (len(blocks), length)
    kept = blocks.labels != NO_LOSS
    np.testing.assert_array_equal(blocks.labels[kept], blocks.input_ids[kept])
    expected = [piece for r in items for piece in pieces_of(list(r.prompt.encode()),
                                                            [*r.target.encode(), TOKENIZER.eos_token_id], length)]
    wanted = sorted(token for _, labels in expected for token in labels if token != NO_LOSS)
    assert sorted(blocks.labels[kept].tolist()) == wanted
    pads = blocks.input_ids == TOKENIZER.pad_token_id
    assert pads.sum() == blocks.input_ids.size - sum(len(ids) for ids, _ in expected)
    assert (np.diff(pads.astype(int), axis=1) >= 0).all()


def test_rows_know_the_record_that_most_of_them_is_of() -> None:
    items = [Record("", letter * size) for letter, size in (("a", 20), ("b", 3), ("c", 9), ("d", 5))]
    blocks = pack(TOKENIZER, [*items, Record("", "e")], 8, seed=1)
    for row, document in zip(blocks.input_ids, blocks.documents, strict=True):
        letters = [chr(token) for token in row if token < 128]
        assert letters.count("abcde"[document]) == max(letters.count(x) for x in letters)
    assert blocks.take(2).documents.tolist() == blocks.documents[:2].tolist()  # type: ignore[union-attr]
    assert sorted({*blocks.documents.tolist()})[0] == 0


def test_a_tokenizer_without_end_and_pad_tokens_works() -> None:
    bare = byte_tokenizer()
    bare.pad_token = bare.eos_token = None
    blocks = pack(bare, [Record("", "abc")], 4, seed=0)
    assert blocks.input_ids.tolist() == [[97, 98, 99, 0]]
    assert blocks.labels.tolist() == [[97, 98, 99, NO_LOSS]]


def beginning(begin: str = "<s>") -> Any:
    """Return a tokenizer that begins every text with a token, as Llama's, Mistral's and Gemma's do."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": begin})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)])
    return tokenizer


@pytest.mark.parametrize("length", [8, 4, 3])
def test_texts_begin_as_the_tokenizer_begins_them(length: int) -> None:
    tokenizer = beginning()
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    a, b, c, x = b"abcx"
    rows = {8: ([begin, a, b, c, x, end], [NO_LOSS] * 4 + [x, end]), 4: ([begin, c, x, end], [NO_LOSS] * 2 + [x, end]),
            3: ([begin, x, end], [NO_LOSS, x, end])}
    for prompt in ("abc", "<s>abc"):  # of a text that has the token already
        blocks = pack(tokenizer, [Record(prompt, "x")], length, seed=0)
        assert blocks.input_ids[0][:6].tolist() == rows[length][0]
        assert blocks.labels[0][:6].tolist() == rows[length][1]
    for text in ("abcx", "<s>abcx"):
        blocks = pack(tokenizer, [Record("", text)], 8, seed=0)
        assert blocks.input_ids[0][:6].tolist() == rows[8][0]
        assert blocks.labels[0][:6].tolist() == [NO_LOSS, a, b, c, x, end]


def spaced(**steps: Any) -> Any:
    """Return a tokenizer of characters that marks spaces, and the beginning of a text, as ``steps`` say."""
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"+=24ab"]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], unk_token="<unk>",
                                byte_fallback=True))
    for name, step in steps.items():
        setattr(core, name, step)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


MARKED = normalizers.Replace(" ", "\u2581")
LLAMA2 = normalizers.Sequence([normalizers.Prepend("\u2581"), MARKED])


@pytest.mark.parametrize(("first", "tokenizer"), [
    (["\u2581"], spaced(normalizer=LLAMA2)), ([], spaced(normalizer=MARKED)),
    (["\u2581"], spaced(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False))),
    (["\u2581"], spaced(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always", split=False)))])
def test_an_answer_follows_its_prompt_without_a_space(first: list[str], tokenizer: Any) -> None:
    for prompt, target, tokens in (("2+2=", "4", [*first, *"2+2=4"]), ("a", " b", [*first, "a", "\u2581", "b"]),
                                   ("a\n", "\nb", [*first, "a", "<0x0A>", "<0x0A>", "b"]), ("", "ab", [*first, *"ab"])):
        (row,) = pack(tokenizer, [Record(prompt, target)], 16, seed=0).input_ids
        assert tokenizer.convert_ids_to_tokens(row[:len(tokens) + 1].tolist()) == [*tokens, "</s>"]


def test_a_text_ends_with_one_end_token_and_begins_without_a_loss() -> None:
    blocks = pack(TOKENIZER, [Record("", "ab<end>")], 8, seed=0)
    assert blocks.input_ids[0][:3].tolist() == [*b"ab", TOKENIZER.eos_token_id]
    assert TOKENIZER.eos_token_id not in blocks.input_ids[0][3:]
    assert blocks.n_targets == 2  # b and the end token


def talk(question: str, answer: str, system: str = "") -> Conversation:
    lead = [{"role": "system", "content": system}] if system else []
    turns = [*lead, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(json.dumps(turns), (len(lead) + 1,), "", f"line {answer}")


@pytest.mark.parametrize("make", [
    lambda q, a: Record(f"Question: {q}\nAnswer:", a, q), talk, lambda q, a: talk(q, a, f"be {a}")])
def test_all_answers_to_one_prompt_share_a_split(make: Callable[[str, str], Record | Conversation]) -> None:
    items = [make(f"question {i}", f"answer {j}") for i in range(500) for j in range(4)]
    splits = split_records(items, 0.05, 0, "x")
    train, validation, test = ({record.asked for record in split} for split in splits)
    assert train.isdisjoint(validation | test)
    assert validation.isdisjoint(test)
    assert [len(split) for split in splits] == [1800, 100, 100]
    assert split_records(items[::-1], 0.05, 0, "x") != splits == split_records(items, 0.05, 0, "x")


@pytest.mark.parametrize(("items", "held_out", "sizes"), [
    ([Record("same", str(i), "same") for i in range(40)], 0.1, [32, 4, 4]),  # one prompt: by record
    ([Record("", str(i % 40)) for i in range(100)], 0.1, [32, 4, 4]), ([Record("", c) for c in "abc"], 0.4, [1, 1, 1])])
def test_splits_are_disjoint_and_cover_every_distinct_record(items: list[Record], held_out: float,
                                                             sizes: list[int]) -> None:
    splits = split_records(items, held_out, 0, "x")
    assert [len(split) for split in splits] == sizes
    assert {record for split in splits for record in split} == set(items)


def test_calibration_is_the_head_of_train_and_the_hash_that_of_the_texts() -> None:
    splits = split_records(tiny_records(60, 0), 0.1, 0, "tiny")
    data = assemble(TOKENIZER, splits, 32, 3, 0, "tiny")
    np.testing.assert_array_equal(data.calibration.input_ids, data.train.input_ids[:3])
    assert data.sha256 == texts_sha256(splits)
    assert assemble(beginning(), splits, 32, 1, 0, "tiny").sha256 != data.sha256
    a, b = Record("p", "a"), Record("", "b")
    hashes = {texts_sha256(s) for s in ([[a, b], []], [[b, a], []], [[a], [b]], [[Record("", "pa"), b], []])}
    assert len(hashes) == 4


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 20), st.integers(0, 5))
def test_every_epoch_sees_every_block_once(n: int, batch: int, steps: int, seed: int) -> None:
    rows = batches(n, batch, steps, seed)
    assert rows.shape == (steps, batch)
    flat = rows.ravel()
    for start in range(0, len(flat) - n + 1, n):
        assert sorted(flat[start:start + n]) == list(range(n))
    np.testing.assert_array_equal(batches(n, batch, steps + 3, seed)[:steps], rows)  # a shorter run sees a prefix
