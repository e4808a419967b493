"""Conversations from the fields of a record: messages, ShareGPT, prompt and completion as lists of messages.

All forms become messages as chat templates of transformers take them: a role, a text, and tool calls with their
arguments as objects. The formats are those of OpenAI, ShareGPT and TRL ("conversational" data sets). Every reader
raises ``DataError`` if a message is malformed, or the assistant has no turn that is trained.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qra_bo.utils.errors import DataError
from qra_bo.utils.files import strict_json
from qra_bo.utils.formatting import cut

Fields = Mapping[str, Any]
Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SHAREGPT = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
            "bot": "assistant", "model": "assistant", "system": "system", "tool": "tool", "observation": "tool",
            "function_response": "tool", "tool_response": "tool", "tool_result": "tool", "function_call": "assistant",
            "tool_call": "assistant", "tool_use": "assistant"}
"""Roles of messages by ShareGPT's ``from``, and by names of roles that templates lack."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of the thoughts of a message, which transformers passes to templates by any of them."""
TEXTS, THOUGHTS = ("text", "input_text", "output_text"), ("reasoning_text", *REASONING)
CALLS, RESULTS = ("function_call", "tool_call", "tool_use"), ("tool_result", "tool_response", "function_call_output")
"""Types of the parts of a message, as OpenAI and Anthropic name them; ``CALLS`` are roles too."""
_KEPT = ("name", "tool_call_id", *REASONING)
"""Keys of a message beside role, content and tool calls that templates read."""
_WEIGHTS = ("weight", "loss_weight", "train")
"""Keys by which data sets say whether the loss is taken on a turn of the assistant."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One example of several turns; the tokenizer's chat template renders it.

    Args:
        messages_json: The messages, as a JSON list.
        trained: Positions of the assistant's messages on which the loss is taken.
        tools_json: Descriptions of the tools, as a JSON list; empty for none.
        where: Its place in the source, for messages; equal conversations may have several.
    """

    messages_json: str
    trained: tuple[int, ...]
    tools_json: str = ""
    where: str = field(default="", compare=False)

    @property
    def messages(self) -> list[Message]:
        """The messages, as a chat template takes them."""
        found: list[Message] = json.loads(self.messages_json)
        return found

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The descriptions of the tools, as a chat template takes them."""
        found: list[dict[str, Any]] | None = json.loads(self.tools_json) if self.tools_json else None
        return found

    @property
    def characters(self) -> int:
        """Length of the contents of all messages."""
        return sum(len(message["content"]) for message in self.messages)

    @property
    def asked(self) -> str:
        """The user's turns before the first answer; empty where there are none."""
        before = itertools.takewhile(lambda message: message["role"] != "assistant", self.messages)
        return "\n".join(message["content"] for message in before if message["role"] == "user")

    @property
    def is_empty(self) -> bool:
        """Whether no trained turn has a text, thoughts or a tool call."""
        messages = self.messages
        return not any(messages[i]["content"].strip() or any(messages[i].get(key) for key in ("tool_calls", *REASONING))
                       for i in self.trained)


def from_messages(fields: Fields, where: str) -> Conversation:
    """Return the conversation of a record with ``messages``."""
    return _conversation(_messages(fields["messages"], "messages", where), fields, where)


def from_sharegpt(fields: Fields, where: str) -> Conversation:
    """Return the conversation of a record with ``conversations``: ``from`` and ``value``, or role and content."""
    turns = fields["conversations"]
    if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "role" in turns[0]:
        return _conversation(_messages(turns, "conversations", where), fields, where)
    if not isinstance(turns, list) or not turns or not all(
            isinstance(t, Mapping) and isinstance(t.get("from"), str) and isinstance(t.get("value"), str)
            for t in turns):
        raise DataError(f"{where}: 'conversations' must be a list of objects with the texts 'from' and 'value', or "
                        "with 'role' and 'content'")
    messages: list[Message] = []
    for turn in turns:
        if turn["from"] not in SHAREGPT:
            raise DataError(f"{where}: 'from' must be one of {', '.join(SHAREGPT)}; got {cut(repr(turn['from']))}")
        if turn["from"] in CALLS:
            made = _tool_calls(_parsed(turn["value"], f"the value of a {turn['from']}", where), where, filled=False)
            message: Message = {"role": "assistant", "content": "", "tool_calls": made}
        else:
            message = {"role": SHAREGPT[turn["from"]], "content": turn["value"]}
        messages.append(message | {key: turn[key] for key in _WEIGHTS if turn.get(key) is not None})
    return _conversation(messages, fields, where)


def from_prompt_and_completion(fields: Fields, where: str) -> Conversation:
    """Return the conversation of lists of messages in ``prompt`` and ``completion``; only the completion is trained."""
    prompt = _messages(fields["prompt"], "prompt", where)
    return _conversation(prompt, fields, where, _messages(fields["completion"], "completion", where))


def _conversation(messages: Sequence[Message], fields: Fields, where: str,
                  completion: Sequence[Message] = ()) -> Conversation:
    """Return the conversation with the loss on the assistant's turns, of ``completion`` alone where that is given.

    The record's ``system`` or ``system_prompt`` goes before messages that begin with no such message of their own.
    """
    system = fields.get("system") or fields.get("system_prompt")
    if system and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": _text(system, False, where)}, *messages]
    first, messages = len(messages) if completion else 0, [*messages, *completion]
    trained = [i for i, message in enumerate(messages)
               if message["role"] == "assistant" and i >= first and _is_trained(message, where)]
    if not trained:
        raise DataError(f"{where}: no message of the role 'assistant' on which a loss could be taken")
    plain = [{key: value for key, value in message.items() if key not in _WEIGHTS} for message in messages]
    tools = _tools(fields.get("tools") or fields.get("functions"), where)
    return Conversation(json.dumps(plain, ensure_ascii=False), tuple(trained),
                        json.dumps(tools, ensure_ascii=False) if tools else "", where)


def _messages(turns: Any, name: str, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns or not all(
            isinstance(t, Mapping) and isinstance(t.get("role"), str) for t in turns):
        raise DataError(f"{where}: {name!r} must be a list of objects with 'role' and 'content'")
    out = []
    for turn in itertools.chain.from_iterable(_converted(turn, where) for turn in turns):
        if turn["role"] not in ROLES:
            raise DataError(f"{where}: the role of a message must be one of {', '.join(ROLES)}; "
                            f"got {cut(repr(turn['role']))}")
        calls = turn.get("tool_calls") or turn.get("function_call")  # the second is OpenAI's older name
        message = {"role": turn["role"], "content": _text(turn.get("content"), bool(calls), where)}
        if calls:
            message["tool_calls"] = _tool_calls(calls, where)
        message |= {key: turn[key] for key in (*_KEPT, *_WEIGHTS) if turn.get(key) is not None}
        out.append(message)
    return out


def _converted(turn: Fields, where: str) -> list[Fields]:
    """Return a message as templates take it: its role by a name that they have, and its thoughts, tool calls and their
    results as fields or messages of their own, where it holds them as parts."""
    role, parts = turn["role"], turn.get("content")
    named = turn if role in ROLES else {**turn, "role": SHAREGPT.get(role, role)}
    if role in CALLS and isinstance(parts, str):
        return [{**named, "content": "", "tool_calls": _parsed(parts, f"the content of a {role}", where)}]
    if not isinstance(parts, list):
        return [named]
    texts, thoughts, calls, results = list[Any](), list[str](), list[Any](), list[Fields]()
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in THOUGHTS and named["role"] == "assistant":
            thoughts.append(_text([{"type": "text", "text": next(
                (part[key] for key in ("text", kind, "content") if part.get(key) is not None), None)}], False, where))
        elif kind in CALLS and named["role"] == "assistant":
            calls.append({"arguments": part.get("input") or {}, **without_none(part)})
        elif kind in RESULTS:
            of = next((part[key] for key in ("tool_use_id", "tool_call_id", "call_id") if part.get(key)), None)
            results.append({"role": "tool", "content": part.get("content", part.get("output")), "tool_call_id": of})
        else:
            texts.append({**part, "type": "text"} if kind in TEXTS else part)
    if results and not (thoughts or calls or texts):
        return results
    changed = {**named, "content": texts, "tool_calls": [*_listed(turn.get("tool_calls") or []), *calls]}
    return [*results, changed | ({"reasoning_content": "\n".join(thoughts)} if thoughts else {})]


def _text(content: Any, may_be_missing: bool, where: str) -> str:
    """Return a message's content; parts of text are joined."""
    if content is None and may_be_missing:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(f"{where}: the content of a message must be a text or a list of parts; "
                        f"got {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = next((part[key] for key in ("text", "value") if isinstance(part.get(key), str)), None) \
            if isinstance(part, Mapping) else None
        if kind != "text" or text is None:
            raise DataError(f"{where}: the parts of a message must be texts, such as "
                            f'{{"type": "text", "text": "hello"}}, or thoughts, tool calls and results as OpenAI and '
                            f"Anthropic write them; got a part of the type {cut(repr(kind))}")
        texts.append(text)
    return "".join(texts)


def _is_trained(message: Message, where: str) -> bool:
    for key in _WEIGHTS:
        if key in message:
            if message[key] not in (0, 1):  # also false, true, 0.0 and 1.0
                raise DataError(f"{where}: {key!r} of a message must be 0 (no loss) or 1; "
                                f"got {cut(repr(message[key]))}")
            return bool(message[key])
    return True


def _tool_calls(calls: Any, where: str, *, filled: bool = True) -> list[dict[str, Any]]:
    """Return tool calls as chat templates take them; ``filled``: they may hold ``None`` for missing keys."""
    out = []
    for call in _listed(calls):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: a tool call must be an object with 'name' and 'arguments', or with such an "
                            f"object as its 'function'; got {cut(repr(call))}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):  # OpenAI's form; chat templates write objects as JSON themselves
            arguments = _parsed(arguments, "the arguments of a tool call", where)
        elif filled:
            arguments = without_none(arguments)
        extra = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        out.append({"type": "function", **extra, "function": {"name": function["name"], "arguments": arguments}})
    return out


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _tools(tools: Any, where: str) -> list[dict[str, Any]]:
    """Return the descriptions of tools in the form ``{"type": "function", "function": {...}}``."""
    if isinstance(tools, str):
        tools = _parsed(tools, "the field 'tools'", where) if tools.strip() else []
    else:
        tools = without_none(tools)
    tools = tools or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and isinstance(tool.get("function", {}), dict)
                                              for tool in tools):
        raise DataError(f"{where}: 'tools' must be a list of objects whose 'function' is one too, or the JSON text of "
                        f"such a list; got {cut(repr(tools))}")
    return [tool if "function" in tool or "type" in tool else {"type": "function", "function": tool} for tool in tools]


def without_none(value: Any) -> Any:
    """Return a JSON value without the keys of objects that are ``None``.

    Tables of the hub fill in the missing keys of objects. A JSON text is not filled, and its nulls are its own.
    """
    if isinstance(value, Mapping):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return [without_none(inner) for inner in value] if isinstance(value, list) else value


def _parsed(text: str, name: str, where: str) -> Any:
    try:
        return strict_json(text)
    except ValueError as error:
        raise DataError(f"{where}: {name} must be JSON; got {cut(repr(text))} ({error})") from error
