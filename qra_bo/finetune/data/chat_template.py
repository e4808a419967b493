"""Token ids of conversations by a tokenizer's chat template, and the tokens on which a loss is taken.

The ids are those of ``tokenizer.apply_chat_template``. The characters of a trained turn are found, in this order:

1. by the template's own ``{% generation %}`` marks;
2. by prefixes: the conversation rendered before the turn, with the beginning of an answer, and up to its end;
3. by rendering once more with a placeholder as the turn's content: what stands around it is not the answer's.

A token is trained where it overlaps such characters, as in transformers' mask of assistant tokens. The mark that ends a
turn is trained too, with a line break after it, as in the templates with marks that TRL ships.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import date
from typing import Any

from jinja2 import Environment, TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from qra_bo.finetune.data.conversations import REASONING, Conversation, Message
from qra_bo.finetune.data.jsonl import MOST_CHARACTERS, Refused
from qra_bo.utils.errors import DataError
from qra_bo.utils.formatting import cut
from qra_bo.utils.process import bounded

PLAIN = """\
{%- if tools %}{{ 'Tools: ' + tools | tojson + '\\n' }}{% endif %}
{%- for message in messages %}
    {{- message.role | capitalize + ':' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- ' ' + message.content }}
            {%- for call in message.tool_calls or [] %}{{ ' ' + call.function | tojson }}{% endfor %}
            {{- (eos_token or '') + '\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- ' ' + message.content + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
"""The template where a tokenizer has none: ``User: hello``, ``Assistant: hello`` and an end token, a line a turn."""
TODAY = date(2024, 7, 26)
"""The date that templates write, as Llama's do where no clock is at hand; with today's, tokens would change every day.
"""
_CLOCK = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLACEHOLDER = "\ue000placeholder\ue000"
MOST_WRITTEN, MOST_BYTES, MOST_SECONDS = 2 * MOST_CHARACTERS, 5 * 10**8, 5.0
"""Characters of the longest text of a conversation, and bytes and CPU seconds that writing one may take."""
_WRITTEN = ("system", "developer", "user", "assistant")
"""Roles whose texts a template must write."""
_TELLING = 40
"""Characters of a message that a template's own text does not hold by chance."""
_AT_ONCE = 256
"""Conversations tokenised at once: their character offsets take much memory."""
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
             MemoryError, TimeoutError)
"""Errors of templates, which are programs."""
Span = tuple[int, int]
"""The first of some characters, and one past the last."""
Tools = list[dict[str, Any]] | None


class ChatTemplate:
    """The chat template of a tokenizer, or ``PLAIN`` where it has none."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def is_plain(self) -> bool:
        """Whether the tokenizer has no template of its own."""
        return not self.tokenizer.chat_template

    @property
    def ends(self) -> list[int]:
        """Ids of the special token that the template writes after an answer; none where it writes another text there.
        A base model's own end token is often another."""
        first = self.tokenizer(self._marks[1], add_special_tokens=False)["input_ids"][:1]
        return [i for i in first if (token := self.tokenizer.added_tokens_decoder.get(i)) and token.special]

    def source(self, tools: Tools = None) -> str:
        """Return the template's text for conversations with or without ``tools``: some tokenizers have one for each."""
        return PLAIN if self.is_plain else str(self.tokenizer.get_chat_template(None, tools))

    def encode(self, conversations: Sequence[Conversation],
               refused: Refused | None = None) -> Iterator[tuple[list[int], list[bool]]]:
        """Yield each conversation's token ids, and whether a loss is taken on each; none after one that is ``refused``,
        where these are noted.

        Raises:
            DataError: If the template refuses or leaves out a part of a conversation, or its answers can't be told
                from the rest; the message names its place.
        """
        if conversations and not self.tokenizer.is_fast:
            raise DataError("the tokenizer of this model gives no positions of characters, by which the answers in "
                            "conversations are found; give prompt and completion as texts, or another base model")
        for start in range(0, len(conversations), _AT_ONCE):
            rendered = []
            for c in conversations[start:start + _AT_ONCE]:
                with nullcontext() if refused is None else refused.at(c.where):
                    rendered.append(self.render(c))
            if refused:  # no text is made of the others
                continue
            coded = self.tokenizer([text for text, _ in rendered], add_special_tokens=False,
                                   return_offsets_mapping=True, verbose=False)
            for (_, spans), ids, offsets in zip(rendered, coded["input_ids"], coded["offset_mapping"], strict=True):
                yield ids, overlapping(spans, offsets)

    def render(self, conversation: Conversation) -> tuple[str, list[Span]]:
        """Return the text of a conversation, and the characters of its trained turns, on which the loss is taken.
        Errors are those of ``encode``."""
        messages, tools, where = conversation.messages, conversation.tools, conversation.where
        text, marked = self._text(messages, tools, where, marks=bool(_GENERATION.search(self.source(tools))))
        for i, message in enumerate(messages):  # of a list of parts, a template may write nothing of a text
            own = message["content"].strip() if message["role"] in _WRITTEN else ""
            if own and (len(own) < _TELLING or own not in text):
                other = [*messages[:i], {**message, "content": _PLACEHOLDER}, *messages[i + 1:]]
                if self._text(other, tools, where)[0] == text:
                    raise DataError(f"{where}: the model's chat template leaves out the text of the role "
                                    f"{message['role']!r}; leave such messages out, or take a base that has them")
        self._check_tools(conversation, text)
        _check_reasoning(conversation, text)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if marked and tuple(turns) == conversation.trained:
            return text, marked
        if marked and len(marked) == len(turns):
            return text, [s for i, s in zip(turns, marked, strict=True) if i in conversation.trained]
        return text, [self._span(messages, tools, i, text, where) for i in conversation.trained]

    def question(self, conversation: Conversation) -> str:
        """Return the text before the last trained turn, with the beginning of an answer. Raises ``DataError`` if the
        template refuses it."""
        return self._text(conversation.messages[:conversation.trained[-1]], conversation.tools, conversation.where,
                          begin=True)[0]

    def _text(self, messages: Sequence[Message], tools: Tools, where: str = "", *, begin: bool = False,
              marks: bool = False) -> tuple[str, list[Span]]:
        """Render ``messages``; ``begin`` adds the beginning of an answer, ``marks`` returns the generation's marks.
        Raises ``DataError`` if the template refuses them."""
        source = _CLOCK.sub(lambda call: repr(TODAY.strftime(call[2])), self.source(tools))
        try:
            _check_powers(source)
            with bounded(MOST_BYTES, MOST_SECONDS):  # a text can double on each pass, and loops multiply
                texts, spans = render_jinja_template(conversations=[list(messages)], tools=tools, chat_template=source,
                    add_generation_prompt=begin, return_assistant_tokens_mask=marks,
                    **self.tokenizer.special_tokens_map)
            if len(texts[0]) > MOST_WRITTEN:
                raise MemoryError
        except _REFUSALS as error:
            long = isinstance(error, MemoryError)
            why = f"it writes more than {MOST_WRITTEN:,} characters" if long else str(error)
            raise DataError(f"{where}: the model's chat template refuses the conversation ({cut(why, 200)}); mend the "
                            "record or leave it out, or take a base model whose template takes it") from error
        return texts[0], spans[0] if marks else []

    def _check_tools(self, conversation: Conversation, text: str) -> None:
        """Refuse a template that leaves out tools or their calls: answers would be learned without their reasons."""
        tools = [tool.get("function", tool).get("name") for tool in conversation.tools or []]
        calls = [call["function"]["name"] for m in conversation.messages for call in m.get("tool_calls", [])]
        missing = [str(name) for name in (*tools, *calls) if name and str(name) not in text]
        if not missing and calls:  # the name may stand in the list of tools alone
            bare = [{key: v for key, v in m.items() if key != "tool_calls"} for m in conversation.messages]
            with suppress(DataError, ValueError):
                missing = calls if self._text(bare, conversation.tools)[0] == text else []
        if missing:
            raise DataError(f"{conversation.where}: the model's chat template writes no tools or no tool calls (it "
                            f"leaves out {cut(repr(missing[0]))}); take a model whose template writes them")

    def _span(self, messages: list[Message], tools: Tools, turn: int, text: str, where: str) -> Span:
        """Return the characters of one turn of the assistant in the whole ``text``."""
        lead, mark = self._marks
        with suppress(DataError, ValueError):  # e.g. a template that wants a user's turn first
            before = self._text(messages[:turn], tools, begin=True)[0]
            after = self._text(messages[:turn + 1], tools)[0]
            if not text.startswith(after):  # some templates close the text, but not a turn, with an end token
                after = after.removesuffix(self.tokenizer.eos_token or "")
            if text.startswith(after) and after.startswith(before):
                return len(before), len(after)
        with suppress(DataError, ValueError):
            other = [*messages[:turn], {"role": "assistant", "content": _PLACEHOLDER}, *messages[turn + 1:]]
            before, after = self._text(other, tools)[0].split(_PLACEHOLDER)
            if len(before) + len(after) <= len(text) and text.startswith(before) and text.endswith(after):
                first, end = len(before), len(text) - len(after)
                return (first - len(lead) if before.endswith(lead) else first,
                        end + len(mark) if after.startswith(mark) else end)
        raise DataError(f"{where}: the answer of turn {turn + 1} can't be told from the rest of the text that the "
                        "model's chat template writes, so it can't be trained alone; use data.chat=last, or give texts")

    @functools.cached_property
    def _marks(self) -> tuple[str, str]:
        """What the template writes between the beginning of an answer and its content, and after the content."""
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PLACEHOLDER}]
        with suppress(DataError, ValueError):
            before, _, after = self._text(talk, None)[0].rpartition(_PLACEHOLDER)
            begun = self._text(talk[:1], None, begin=True)[0]
            return before[len(begun):] if before.startswith(begun) else "", after
        return "", ""


@functools.cache
def _check_powers(source: str) -> None:
    """Refuse powers of numbers, one of which can take for ever; behind a bracket or a comma the sign unpacks."""
    before = ""
    for _, kind, text in Environment().lex(source):
        if text == "**" and before not in ("(", ","):
            raise TemplateError("it has powers of numbers, which may never end")
        before = before if kind == "whitespace" else text


def _check_reasoning(conversation: Conversation, text: str) -> None:
    """Refuse a template that leaves out the thoughts of the last answer; those of earlier ones are often left out."""
    last = conversation.messages[-1]
    thoughts = next((str(last[name]).strip() for name in REASONING if name in last), "")
    if thoughts not in text:
        raise DataError(f"{conversation.where}: the model's chat template leaves out the reasoning of the last answer; "
                        "take it out of the record, put it into the content, or take a model whose template writes it")


def overlapping(spans: Sequence[Span], offsets: Sequence[Span]) -> list[bool]:
    """Return whether each token, of the characters ``offsets``, overlaps one of ``spans``; both are in order.

    A token without characters has those since the token before it: some tokenizers trim spaces from offsets.
    """
    out, at, passed = [], 0, 0
    for first, end in offsets:
        if first == end:
            first = min(first, passed)
        passed = max(passed, end)
        while at < len(spans) and first >= spans[at][1]:
            at += 1
        out.append(at < len(spans) and end > spans[at][0] and first < end)
    return out
