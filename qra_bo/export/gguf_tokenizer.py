"""Tokenizers of transformers as keys of a GGUF header.

Two kinds have a form there: byte-level BPE whose split into words is one of llama.cpp's (``gpt2``), and SentencePiece's
BPE with byte fallback (``llama``). llama.cpp keeps a score a token for the second kind, not a list of merges; the two
are the same where every pair that makes a token is a merge, and merges are in the order of the tokens that they make.
What has no such form is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType

from qra_bo.utils.errors import ConfigError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS: Mapping[tuple[str, bool], str] = {
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", True): "llama-bpe",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}", False): "dbrx",
    (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}", False): "qwen2",
}
"""llama.cpp's name of a split into words, by its regular expression and whether whole words skip the merges."""
_SPACE = "\u2581"
"""SentencePiece's mark of a space."""
_PHI_KEEPS = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Special tokens of Phi-3 that keep the white space after them; all others take it."""
_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as GGUF holds it.

    Args:
        kind: ``gpt2`` or ``llama``.
        split: llama.cpp's name of the split into words.
        tokens: By id, one for every row of the embedding.
        types: Of every token, as ``gguf.TokenType``.
        merges: Of ``gpt2``, best first: two tokens with a space between them.
        scores: Of ``llama``, of every token.
        prefix: Whether a text gets a space before it (``llama``).
        like_phi: Whether special tokens take the white space after them as Phi-3's do; see ``title``.
        notes: What llama.cpp does otherwise, in words.
    """

    kind: str
    split: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    prefix: bool
    like_phi: bool
    notes: tuple[str, ...]

    def title(self, name: str) -> str:
        """Return a model's name as the header may have it: llama.cpp takes the rules of white space beside special
        tokens from it, and fails where a model that is called Phi-3 lacks that model's tokens."""
        if not self.like_phi:
            return re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)
        return name if re.search("phi-?3", name, re.IGNORECASE) else f"{name} (phi-3)"


def vocabulary_of(tokenizer: Any, rows: int) -> Vocabulary:
    """Describe a fast tokenizer of transformers whose model's embedding has ``rows`` rows.

    Raises:
        ConfigError: If it has no form in GGUF.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it is not a fast tokenizer of transformers (there is no tokenizer.json)")
    data = json.loads(backend.to_str())
    model = data["model"]
    if model["type"] != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused(f"its model is {model['type']}, and byte-level BPE or SentencePiece's BPE is needed")
    sentencepiece = bool(model.get("byte_fallback"))
    added = {int(entry["id"]): entry for entry in data["added_tokens"]}
    tokens, types = _tokens(model["vocab"], added, rows, sentencepiece)
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    like_phi = {entry["content"] for entry in added.values()} > {"</s>", *_PHI_KEEPS} and all(
        not entry["lstrip"] and entry["rstrip"] == (entry["content"] not in _PHI_KEEPS) for entry in added.values())
    notes = [f"the tokenizer strips white space beside {entry['content']!r}, and llama.cpp keeps it"
             for entry in added.values() if not like_phi and (entry["lstrip"] or entry["rstrip"])]
    if marked := [entry["content"] for entry in added.values() if entry["normalized"] and _SPACE in entry["content"]]:
        raise _refused(f"it seeks the added token {marked[0]!r} in the text after its spaces are marked")
    if sentencepiece:
        prefix = _prefix(data, notes)
        scores = _scores(tokens, types, pairs, model["vocab"])
        return Vocabulary("llama", "default", tokens, types, (), scores, prefix, like_phi, tuple(notes))
    split = _split(data, bool(pairs), bool(model.get("ignore_merges")), notes)
    # llama.cpp wants a merge: one of two empty tokens never applies
    merges = [" ".join(pair) for pair in pairs] or [" "]
    return Vocabulary("gpt2", split, tokens, types, merges, (), False, like_phi, tuple(notes))


def add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, tokenizer: Any, ends: Iterable[int]) -> None:
    """Write the keys of a tokenizer; ``ends`` are the ids that end a text by the model's generation configuration."""
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.kind == "llama":
        writer.add_token_scores(list(vocabulary.scores))
    else:
        writer.add_token_merges(list(vocabulary.merges))
    writer.add_add_space_prefix(vocabulary.prefix)
    ids = tokenizer("a").input_ids
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    writer.add_add_bos_token(begin is not None and ids[0] == begin)
    writer.add_add_eos_token(end is not None and ids[-1] == end)
    for token, add in ((begin, writer.add_bos_token_id), (end, writer.add_eos_token_id),
                       (tokenizer.unk_token_id, writer.add_unk_token_id),
                       (tokenizer.pad_token_id, writer.add_pad_token_id),
                       (next((token for token in ends if token != end), None), writer.add_eot_token_id)):
        if token is not None:
            add(token)
    if tokenizer.chat_template:
        template = tokenizer.chat_template
        writer.add_chat_template(template if isinstance(template, str) else
                                 [{"name": name, "template": text} for name, text in template.items()])


def _tokens(vocab: Mapping[str, int], added: Mapping[int, Mapping[str, Any]], rows: int,
            sentencepiece: bool) -> tuple[list[str], list[int]]:
    """Return token and type by id; ids that the tokenizer does not know are unused."""
    by_id = {**{token_id: token for token, token_id in vocab.items()},
             **{token_id: entry["content"] for token_id, entry in added.items()}}
    if max(by_id) >= rows:
        raise _refused(f"it has the id {max(by_id)}, and the model's embedding only {rows} rows")
    tokens, types = [], []
    for token_id in range(rows):
        token, entry, kind = by_id.get(token_id), added.get(token_id), TokenType.NORMAL
        if token is None:
            token, kind = f"[PAD{token_id}]", TokenType.UNUSED
        elif entry is not None and entry["special"]:
            kind = TokenType.CONTROL
        elif sentencepiece and token in _BYTES:
            kind = TokenType.BYTE
        # sought in the text before its spaces are marked, an added token with marks is found nowhere: merges make it
        elif entry is not None and not (sentencepiece and _SPACE in token and token in vocab):
            kind = TokenType.USER_DEFINED
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _scores(tokens: Sequence[str], types: Sequence[int], pairs: Sequence[tuple[str, ...]],
            vocab: Mapping[str, int]) -> list[float]:
    """Return a score for every token by which llama.cpp merges as the list of merges does: the first is best."""
    first: dict[str, int] = {}
    for left, right in pairs:
        first.setdefault(left + right, len(first))
    places = [first[left + right] for left, right in pairs]
    unmade = (token for token, kind in zip(tokens, types, strict=True) if token not in first and
              (kind == TokenType.NORMAL or (kind == TokenType.USER_DEFINED and _SPACE in token)))
    splits = ((token[:at], token[at:]) for token in (*first, *unmade) for at in range(1, len(token)))
    known = set(pairs)
    missing = next((pair for pair in splits if pair[0] in vocab and pair[1] in vocab and pair not in known), None)
    if places != sorted(places) or missing is not None:
        raise _refused("its merges are not those of SentencePiece's BPE (" +
                       (f"{' + '.join(missing)} makes a token and is none)" if missing else "they are out of order)"))
    return [-float(first[token]) if token in first else -1e6 for token in tokens]


def _prefix(data: Mapping[str, Any], notes: list[str]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before a text."""
    normaliser, words = data["normalizer"], data["pre_tokenizer"]
    steps = (normaliser.get("normalizers", [normaliser]) if normaliser else []) + ([words] if words else [])
    kinds = [step["type"] for step in steps]
    if kinds == ["Metaspace"] and not steps[0]["split"] and steps[0]["replacement"] == _SPACE:
        scheme = steps[0]["prepend_scheme"]
        if scheme == "first":
            notes.append("a text that follows a special token gets a space before it in llama.cpp, and none here")
        if scheme != "never":
            notes.append("a text that begins with a space gets another one in llama.cpp, and none here")
        return bool(scheme != "never")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    rest = [step for step in steps if step != spaces]
    if len(rest) < len(steps):
        if not rest or (len(rest) == 1 and rest[0]["type"] == "Split" and rest[0]["pattern"] == {"String": " "}):
            return False
        if rest == [{"type": "Prepend", "prepend": _SPACE}] and kinds == ["Prepend", "Replace"]:
            return True
    raise _refused(f"it prepares texts by {', '.join(kinds) or 'nothing'}, which SentencePiece's BPE in llama.cpp does "
                   "not")


def _split(data: Mapping[str, Any], merges: bool, whole_words: bool, notes: list[str]) -> str:
    """Return llama.cpp's name of the split of a byte-level tokenizer."""
    normaliser, words = data["normalizer"], data["pre_tokenizer"]
    if normaliser is not None and normaliser["type"] == "NFC":
        notes.append("a text that is not in Unicode's NFC form (letters with separate accents) gets other tokens")
    elif normaliser is not None:
        raise _refused(f"it changes texts by {normaliser['type']}, which llama.cpp does not")
    steps = words.get("pretokenizers", [words]) if words else []
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        raise _refused("it is not byte-level BPE without a space before the text")
    *before, last = steps
    if not merges:
        return "gpt-2"  # every byte is a token of its own, however texts are split
    if last["use_regex"] and not whole_words:
        if not before:
            return "gpt-2"
        if before == [{"type": "Digits", "individual_digits": True}]:
            return "smollm"
    if not last["use_regex"] and len(before) == 1 and before[0]["type"] == "Split" \
            and before[0]["behavior"] == "Isolated" and not before[0]["invert"]:
        pattern = before[0]["pattern"].get("Regex", "")
        if (name := _PATTERNS.get((pattern, whole_words))) is not None:
            return name
    raise _refused("its split into words is none of GPT-2's, SmolLM's, Llama 3's, Qwen 2's or cl100k's")


def _refused(reason: str) -> ConfigError:
    return ConfigError("export.targets=[gguf]: this base model's tokenizer has no form in GGUF that llama.cpp reads "
                       f"the same: {reason}. Choose another base model, or another export target")
