"""Conversations: their forms, token ids by chat templates, and the tokens on which a loss is taken."""

import functools
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers.processors import ByteLevel

from qra_bo.finetune.data.chat_template import ChatTemplate, overlapping
from qra_bo.finetune.data.conversations import Conversation
from qra_bo.finetune.data.jsonl import to_record
from qra_bo.finetune.data.load import load_data
from qra_bo.finetune.data.packing import assemble, pack, piece_of_conversation
from qra_bo.finetune.data.records import NO_LOSS, split_records
from qra_bo.report.tables import print_data
from qra_bo.utils.errors import DataError
from tests.data.chat_templates import GEMMA, LLAMA3, MISTRAL, PHI, TEMPLATES, THINKING, TOOLS, chat_tokenizer, marked
from tests.data.test_sources import config, write

CONTENTS = ("Hi", "", "  two  spaces ", "line\nline\n", "Noël 你好 🙂", "{{ 'jinja' }} <b>&amp;</b>", "a",
            "\tπ ≈ 3.14\n\n")


def talk(*contents: str, system: str | None = None) -> Conversation:
    """Return a conversation of user and assistant in turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    return chat({"messages": messages})


def chat(fields: Any) -> Conversation:
    record = to_record(fields, "f.jsonl, line 1")
    assert isinstance(record, Conversation)
    return record


def random_talks(n: int, systems: bool) -> list[Conversation]:
    rng = np.random.default_rng(0)
    return [talk(*rng.choice(CONTENTS, size=2 * int(rng.integers(1, 5))).tolist(),
                 system=str(rng.choice(CONTENTS)) if systems and rng.random() < 0.5 else None) for _ in range(n)]


def trained_text(tokenizer: Any, conversation: Conversation) -> list[str]:
    text, spans = ChatTemplate(tokenizer).render(conversation)
    return [text[first:end] for first, end in spans]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_and_masks_are_those_of_transformers(name: str) -> None:
    tokenizer, twin = chat_tokenizer(TEMPLATES[name]), chat_tokenizer(marked(TEMPLATES[name]))
    talks = random_talks(200, systems=name not in ("gemma", "mistral"))
    found = list(ChatTemplate(tokenizer).encode(talks))
    by_marks = list(ChatTemplate(twin).encode(talks))
    for conversation, (ids, trained), of_twin in zip(talks, found, by_marks, strict=True):
        assert ids == tokenizer.apply_chat_template(conversation.messages, tokenize=True)["input_ids"]
        wanted = twin.apply_chat_template(conversation.messages, tokenize=True, return_dict=True,
                                          return_assistant_tokens_mask=True)
        assert (ids, trained) == (wanted["input_ids"], [bool(m) for m in wanted["assistant_masks"]])
        assert of_twin == (ids, trained)


@pytest.mark.parametrize("name", TEMPLATES)
def test_spaces_are_trained_where_offsets_are_trimmed(name: str) -> None:
    tokenizer, trimming = (chat_tokenizer(TEMPLATES[name]) for _ in range(2))
    trimming.backend_tokenizer.post_processor = ByteLevel(trim_offsets=True)
    talks = [talk("?", "def f(x):\n    if x:\n        return 1\n"),
             *random_talks(50, systems=name not in ("gemma", "mistral"))]
    assert list(ChatTemplate(trimming).encode(talks)) == list(ChatTemplate(tokenizer).encode(talks))


def test_tokens_without_characters_of_their_own_are_not_trained() -> None:
    offsets = [(0, 0), (2, 2), (2, 3), (0, 0), (5, 5), (5, 6), (6, 6), (9, 9), (0, 0)]
    assert overlapping([(3, 6)], offsets) == [False, False, False, False, True, True, False, False, False]
    assert overlapping([(0, 2), (7, 8)], offsets) == [False, True, False, False, False, False, False, True, False]


ASKED = {"role": "user", "content": "?"}
CALL = {"function": {"name": "f", "arguments": {"x": 1}}, "type": "function"}


@pytest.mark.parametrize(("turns", "messages"), [
    ([{"role": "assistant", "content": [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "b"}]}],
     [{"role": "assistant", "content": "b", "reasoning_content": "hm"}]),
    ([{"role": "assistant", "content": [{"type": "thinking", "thinking": "h"}, {"type": "reasoning", "text": "m"}]}],
     [{"role": "assistant", "content": "", "reasoning_content": "h\nm"}]),
    ([{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "2"}]}],
     [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]},
      {"role": "tool", "content": "2", "tool_call_id": "1"}]),
    ([{"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'},
      {"role": "tool_response", "content": "2"}],
     [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "2"}]),
    ([{"role": "assistant", "content": [], "tool_calls": [CALL]}],
     [{"role": "assistant", "content": "", "tool_calls": [CALL]}]),
    ([{"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": '{"x": 1}'}},
      {"role": "function", "name": "f", "content": "2"}],
     [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "function", "name": "f", "content": "2"}]),
    ([{"role": "gpt", "content": [{"type": "output_text", "text": "b"}]}], [{"role": "assistant", "content": "b"}]),
    ([{"role": "assistant", "content": [{"type": "tool_call", "name": "f", "arguments": '{"x": 1}', "input": None}]}],
     [{"role": "assistant", "content": "", "tool_calls": [CALL]}]),
    ([{"role": "assistant", "content": "b"}, {"role": "user", "content": [
        {"type": "function_call_output", "call_id": "7", "output": "2"}, {"type": "input_text", "text": "and?"}]}],
     [{"role": "assistant", "content": "b"}, {"role": "tool", "content": "2", "tool_call_id": "7"},
      {"role": "user", "content": "and?"}])])
def test_parts_and_roles_of_other_makers_become_what_templates_take(turns: Any, messages: Any) -> None:
    assert chat({"messages": [ASKED, *turns]}).messages == [ASKED, *messages]


FOUR = ("a", "b", "c", "d")


@pytest.mark.parametrize(("template", "contents", "trained"), [
    (TEMPLATES["chatml"], FOUR, ["b<|im_end|>\n", "d<|im_end|>\n"]),
    (marked(TEMPLATES["chatml"]), FOUR, ["b<|im_end|>\n", "d<|im_end|>\n"]),
    # earlier turns are changed; an answer begins with <think>, which the prompt gives
    (THINKING, ("a", "<think>x</think>b", "c", "<think>y</think>d"), ["b<|im_end|>\n", "y</think>d<|im_end|>\n"]),
    (THINKING, FOUR, ["b<|im_end|>\n", "d<|im_end|>\n"]),
    (PHI, FOUR, ["b<|end|>\n", "d<|end|>\n<end>"]), (None, FOUR, [" b<end>\n", " d<end>\n"])])
def test_answers_end_with_their_mark(template: str | None, contents: tuple[str, ...], trained: list[str]) -> None:
    tokenizer = chat_tokenizer(template)
    assert trained_text(tokenizer, talk(*contents)) == trained
    last = replace(talk(*contents), trained=talk(*contents).trained[-1:])
    assert trained_text(tokenizer, last) == trained[1:]


@pytest.mark.parametrize(("template", "ends"), [
    (TEMPLATES["chatml"], ["<|im_end|>"]), (None, ["<end>"]), (PHI, [])])  # there <|end|> is a text
def test_answers_are_ended_by_the_special_token_of_the_template(template: str | None, ends: list[str]) -> None:
    tokenizer = chat_tokenizer(template)
    assert [tokenizer.decode([token]) for token in ChatTemplate(tokenizer).ends] == ends


@pytest.mark.parametrize(("template", "conversation", "reason"), [
    ("{{ messages | map(attribute='content') | map('upper') | sort | join(' ') }}", talk("b", "a"),
     "the answer of turn 2 can't be told from the rest"),
    (GEMMA, talk("a", "b", system="c"), r".* template refuses the conversation \(System role not supported\)"),
    # as Mistral's, which writes the system's text before a last turn that is the user's
    ("{% for m in messages if m.role != 'system' %}{% if loop.last and m.role == 'user' %}{{ messages[0].content }}"
     "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}", talk("a", "b", system="c"),
     "the model's chat template leaves out the text of the role 'system'; leave such messages out"),
    ("{{ 1 / 0 }}", talk("a", "b"), "the model's chat template refuses the conversation"),
    ("{{ messages[7].content }}", talk("a", "b"), "the model's chat template refuses the conversation"),
    ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", talk("a", "b"), ".* template refuses the conversation"),
    *((f"{{% for m in messages %}}<{{{{ m.role }}}}>{body}{{% endfor %}}", talk(*said),
       f"the model's chat template leaves out the text of the role '{role}'")
      for said in (("Question?", "Answer."), ("Is it a user?", "An assistant is.")) for body, role in (
        ("{% for part in m.content %}{{ part.text }}{% endfor %}", "user"),
        ("{% for part in m.content %}{{ part['text'] }}{% endfor %}", "user"),
        ("{% if m.content is not string %}{{ m.content[0].text }}{% endif %}", "user"),
        ("{% if m.role != 'user' %}{{ m.content }}{% endif %}", "user"),
        ("{% if m.role != 'assistant' %}{{ m.content }}{% endif %}", "assistant"),
        ("{{ m.content.text }}", "user")))])
def test_a_template_that_refuses_a_conversation_names_its_line(template: str, conversation: Conversation,
                                                               reason: str) -> None:
    with pytest.raises(DataError, match=f"line 1: {reason}"):
        ChatTemplate(chat_tokenizer(template)).render(conversation)


def test_all_forms_of_a_conversation_are_the_same() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"}]
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}], "name": None} for m in messages]
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    forms = [{"messages": messages}, {"messages": parts}, {"conversations": messages},
             {"conversations": turns, "system": "s"},
             {"conversations": [{"from": "system", "value": "s"}, *turns]},
             {"messages": messages[1:], "system_prompt": "s"},
             {"messages": messages[1:], "system": "s"}, {"conversations": messages[1:], "system": "s"},
             {"messages": messages, "system": "another"}, {"messages": messages, "prompt": None, "completion": None},
             {"prompt": messages[:2], "completion": messages[2:]},
             {"prompt": messages[1:2], "completion": messages[2:], "system": "s"}]
    assert {chat(form) for form in forms} == {chat({"messages": messages})}


def test_which_turns_are_trained() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    assert chat({"messages": turns}).trained == (1, 3)
    assert chat({"prompt": turns, "completion": turns[1:2]}).trained == (4,)
    weighted = [turns[0], {**turns[1], "loss_weight": 0.0}, turns[2], {**turns[3], "weight": 1}]
    assert chat({"messages": weighted}).trained == (3,)
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
    calls = [{"from": "human", "value": "a"}, {**call, "weight": 0}, {"from": "tool", "value": "1"}, call]
    assert chat({"conversations": calls}).trained == (3,)
    with pytest.raises(DataError, match=r"'weight' of a message must be 0 \(no loss\) or 1; got 0\.5"):
        chat({"messages": [turns[0], {**turns[1], "weight": 0.5}]})


CALL = {"name": "add", "arguments": {"a": 1}}
TOOL = {"name": "add", "description": "Adds", "parameters": {"type": "object"}}
CALLED = {"tools": json.dumps([TOOL]), "conversations": [
    {"from": "human", "value": "1+1?"}, {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Two."}]}


def test_the_date_in_a_template_does_not_change() -> None:
    written = "{{ strftime_now('%d %b %Y') }}{% set day = strftime_now(\"%Y-%m-%d\") %} {{ day }}"
    assert ChatTemplate(chat_tokenizer(TEMPLATES["chatml"] + written)).render(talk("a", "b"))[0].endswith(
        "26 Jul 2024 2024-07-26")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_rendered_or_refused(name: str) -> None:
    answer = {"role": "assistant", "content": "b", name: "\nhm\n"}
    thought = chat({"messages": [{"role": "user", "content": "a"}, answer]})
    writes = TEMPLATES["chatml"].replace("{{ message['content'] +",
                                         "{{ (message.reasoning_content or '') | trim + message['content'] +")
    assert trained_text(chat_tokenizer(writes), thought) == ["hmb<|im_end|>\n"]
    with pytest.raises(DataError, match=r"line 1: .* template leaves out the reasoning of the last answer"):
        ChatTemplate(chat_tokenizer(TEMPLATES["chatml"])).render(thought)


def test_tool_calls_are_rendered_and_trained() -> None:
    conversation, tokenizer = chat(CALLED), chat_tokenizer(TOOLS)
    assert conversation.tools == [{"type": "function", "function": TOOL}]
    assert conversation.messages[1] == {"role": "assistant", "content": "",
                                        "tool_calls": [{"type": "function", "function": CALL}]}
    assert trained_text(tokenizer, conversation) == [
        '<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>\n', "Two.<|im_end|>\n"]
    openai = [{"role": "user", "content": "1+1?"},
              {"role": "assistant", "content": None, "tool_calls": [
                  {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
              {"role": "tool", "content": "2", "tool_call_id": "c1"}, {"role": "assistant", "content": "Two."}]
    filled = {**TOOL, "returns": None}  # as tables of the hub fill missing keys
    for other in ({"tools": [{"type": "function", "function": filled}]}, {"functions": [filled]}):
        assert (ChatTemplate(tokenizer).render(chat({"messages": openai, **other}))[0]
                == ChatTemplate(tokenizer).render(conversation)[0])
    ((ids, _),) = ChatTemplate(tokenizer).encode([conversation])
    assert ids == tokenizer.apply_chat_template(conversation.messages, tools=conversation.tools)["input_ids"]


def test_nulls_of_json_texts_are_kept() -> None:
    arguments, schema = {"city": "Bern", "unit": None}, {"name": "add", "parameters": {"unit": {"default": None}}}
    call = {"name": "add", "arguments": arguments}
    question = {"role": "user", "content": "?"}
    openai = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {**call, "arguments": json.dumps(arguments)}}]}
    sharegpt = [{"from": "human", "value": "?"}, {"from": "function_call", "value": json.dumps(call)}]
    for fields in ({"messages": [question, openai]}, {"conversations": sharegpt}):
        found = chat({**fields, "tools": json.dumps([schema])})
        assert found.messages[1]["tool_calls"] == [{"type": "function", "function": call}]
        assert found.tools == [{"type": "function", "function": schema}]
        assert '"unit": null' in trained_text(chat_tokenizer(TOOLS), found)[0]
    objects = [question, {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}]
    [filled] = chat({"messages": objects}).messages[1]["tool_calls"]
    assert filled["function"]["arguments"] == {"city": "Bern"}  # as tables of the hub fill missing keys


def nested(levels: int) -> Any:
    """An object in an object, and so on."""
    return functools.reduce(lambda inner, _: {"a": inner}, range(levels), "x")


@pytest.mark.parametrize(("fields", "message"), [
    ({"messages": []}, "'messages' must be a list of objects with 'role' and 'content'"),
    ({"messages": [{"role": "user"}]}, "content of a message must be a text or a list of parts; got NoneType"),
    ({"messages": [{"role": "asistant", "content": "a"}]}, "role of a message must be one of .* got 'asistant'"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "no message of the role 'assistant'"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "got a part of the type 'image'"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "got a part of the type 'str'"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
     "the arguments of a tool call must be JSON"),
    ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "f"}], "tool_calls": 5}]},
     "a tool call must be an object with 'name'"),
    *(({"system": "s", "messages": [{"role": role, "content": []}]}, "no message of the role 'assistant'")
      for role in ("user", "tool")),
    ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "a tool call must be an object with 'name'"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "'from' must be one of human, .* got 'alien'"),
    ({"conversations": [], "system": "s"}, "a list of objects with the texts 'from' and 'value'"),
    ({"conversations": [{"from": "human"}]}, "a list of objects with the texts 'from' and 'value'"),
    ({"conversations": [{"from": "function_call", "value": "f()"}]}, "value of a function_call must be JSON"),
    ({"conversations": [{"from": "gpt", "value": "x"}], "tools": "[1]"}, "'tools' must be a list of objects"),
    *(({"conversations": [{"from": "gpt", "value": "x"}], "tools": [{"type": "function", "function": wrong}]},
       "'tools' must be a list of objects whose 'function' is one") for wrong in ("name", ["name"], 3, True, [])),
    *(({"messages": [ASKED, {"role": "assistant", "content": "b"}], "tools": tools}, "nested too deeply")
      for tools in (nested(600), [nested(600)], {"function": nested(2000)}, [{"function": {"a": nested(700)}}])),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": nested(600)}}
                                                               ]}]}, "nested too deeply"),
    ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "half of a surrogate pair"),
    ({"prompt": [{"role": "user", "content": "x"}], "completion": "y"}, "the field 'prompt' must be text, got list"),
])
def test_malformed_conversations_name_the_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"f.jsonl, line 1: .*{message}"):
        chat(fields)


def test_all_conversations_that_a_template_refuses_are_named_whatever_their_split(tmp_path: Path) -> None:
    path = write(tmp_path, *[{"messages": talk(str(i), "b", system="s" if i % 2 else None).messages}
                             for i in range(40)])
    message = r"20 malformed records: .*, line 2, line 4, line 6 and 17 more: .* refuses the conversation \(System role"
    with pytest.raises(DataError, match=message):
        load_data(config("jsonl", path=path), chat_tokenizer(GEMMA), 64)


def test_a_template_that_never_ends_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qra_bo.finetune.data.chat_template.MOST_SECONDS", 0.1)
    tokenizer = chat_tokenizer("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match=r"^f.jsonl, line 1: .* refuses the conversation \(it computes for too long"):
        assemble(tokenizer, [[talk("a", "b"), talk("c", "d")]] * 3, 64, 1, 0, "f")


def test_a_conversation_is_cut_at_its_end_and_keeps_an_answer() -> None:
    ids, loss = list(range(10)), [False] * 4 + [True] * 2 + [False] * 2 + [True] * 2
    assert piece_of_conversation(ids, loss, 10)[1] == [NO_LOSS] * 4 + [4, 5] + [NO_LOSS] * 2 + [8, 9]
    assert piece_of_conversation(ids, loss, 6) == ([0, 1, 2, 3, 4, 5], [NO_LOSS] * 4 + [4, 5])
    assert piece_of_conversation(ids, loss, 4) == ([2, 3, 4, 5], [NO_LOSS, NO_LOSS, 4, 5])
    assert piece_of_conversation(ids, [False] * 9 + [True], 4) == ([6, 7, 8, 9], [NO_LOSS] * 3 + [9])


def test_too_many_cut_answers_are_refused_until_they_are_accepted(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(LLAMA3)
    path = write(tmp_path, *[{"messages": talk(str(i), "x" * 60).messages} for i in range(20)])
    fields = config("jsonl", path=path)
    with pytest.raises(DataError, match=r"=32 cuts 100% of .* 88% of .*train\.length=128.*max_cut=0\.88$"):
        load_data(fields, tokenizer, 32)
    data = load_data(config("jsonl", path=path, max_cut=0.88), tokenizer, 32)
    assert data.train.facts.cut_records == data.train.facts.records == 16
    assert data.train.facts.cut_tokens == 16 * 61 - (data.train.labels != NO_LOSS).sum()
    assert load_data(fields, tokenizer, 86).train.facts.cut_tokens == 0


def test_conversations_are_packed_beside_texts_and_split_once() -> None:
    tokenizer = chat_tokenizer(LLAMA3)
    talks = [talk(str(i), "b") for i in range(12)]
    twice = split_records([*talks, *talks], 0.2, 0, "x")
    assert sum(len(split) for split in twice) == 12
    blocks = pack(tokenizer, talks, 128, 0)
    assert blocks.facts.used_tokens == sum(len(ids) for ids, _ in ChatTemplate(tokenizer).encode(talks))
    assert (blocks.labels != NO_LOSS).sum() == blocks.facts.answer_tokens == 24
    last = [replace(t, trained=t.trained[-1:]) for t in random_talks(12, False)]
    hashes = {assemble(chat_tokenizer(t), split_records(chosen, 0.2, 0, "x"), 64, 2, 0, "x").sha256
              for t in (LLAMA3, MISTRAL) for chosen in (talks, last)}
    assert len(hashes) == 4


ASKING = [{"instruction": f"Add {i}.", "input": "1 2", "output": "3"} for i in range(9)]


@pytest.mark.parametrize(("render", "template", "chat"), [
    ("auto", TEMPLATES["chatml"], True), ("auto", None, False), ("plain", TEMPLATES["chatml"], False),
    ("chat", None, True)])
def test_instructions_are_rendered_as_chats_where_there_is_a_template(tmp_path: Path, render: str, template: str | None,
                                                                      chat: bool) -> None:
    tokenizer, path = chat_tokenizer(template), write(tmp_path, *ASKING)
    data = load_data(config("jsonl", path=path, render=render), tokenizer, 256)
    assert data.render == ("chat" if chat else "plain")
    shown = io.StringIO()
    print_data(Console(width=200, file=shown), data)
    assert ("rendered by the model's chat template" in shown.getvalue()) == chat
    talks = write(tmp_path, *[{"messages": [{"role": "user", "content": f"{a['instruction']}\n\n{a['input']}"},
                                            {"role": "assistant", "content": a["output"]}]} for a in ASKING])
    same = load_data(config("jsonl", path=talks), tokenizer, 256)
    assert (data.sha256 == same.sha256) == chat
    if chat:
        np.testing.assert_array_equal(data.train.labels, same.train.labels)  # of the answer alone
    else:
        assert "### Instruction:" in tokenizer.decode(data.train.input_ids[0])
    assert same.render == ""
