"""Task files are read or refused with the line; scores agree with log-likelihoods and texts computed by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qra_bo.finetune import evaluation
from qra_bo.finetune.data.load import byte_tokenizer
from qra_bo.finetune.evaluation import Answer, TaskScore, answer_file, read_task_file, same_answer, scores_of
from qra_bo.utils.errors import DataError
from tests.finetune.models import tiny_llama

ANIMALS = ("cat", "horse", "a very large whale", "ox")

VOCABULARY = 512  # rows of the embedding; ids from 258 on are unused


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.parametrize(("written", "target", "same"), [
    (" So 3 x 4 = 12.\n#### 12\nQuestion: next", "3 x 4\n#### 12", True), (" it is 1,200", "x\n#### 1200", True),
    (" it is 12, as asked", "x\n#### 12", True), (" it is 1,200, so there", "x\n#### 1200", True),
    (" it is 13, no 12.", "x\n#### 12", True), (" none", "x\n#### 12", False), ("#### 13", "x\n#### 12", False),
    (" Paris.\nQuestion: more", "Paris", True), (" Paris  is", "Paris is", True), ("London", "Paris", False),
])
def test_answers_are_compared_as_a_reader_would(written: str, target: str, same: bool) -> None:
    assert same_answer(written, target) is same


def log_likelihood(model: Any, prompt: list[int], text: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, t]) for i, t in enumerate(text))


def test_multiple_choice_scores_are_those_of_log_likelihoods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' (lm-eval) is not installed")
    model, tokenizer = tiny_llama(vocab=VOCABULARY)[0], byte_tokenizer()
    records = [{"question": f"Which is number {i}?", "choices": list(ANIMALS), "answer": i % 4} for i in range(12)]
    best: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for r in records:
        prompt = tokenizer(f"Question: {r['question']}\nAnswer:")["input_ids"]
        found = [log_likelihood(model, prompt, tokenizer(f" {c}")["input_ids"]) for c in ANIMALS]
        best["acc"].append(max(range(4), key=found.__getitem__) == r["answer"])
        by_length = [v / len(c) for v, c in zip(found, ANIMALS, strict=True)]
        best["acc_norm"].append(max(range(4), key=by_length.__getitem__) == r["answer"])
    before = torch.get_rng_state()
    monkeypatch.setattr(evaluation, "AT_ONCE", 5)
    asked = list(answer_file(model, tokenizer, write(tmp_path / "animals.jsonl", *records), batch=3))
    assert [(len(digests), len(answers)) for digests, answers in asked] == [(12, 0), (12, 5), (12, 5), (12, 2)]
    answers = [a for _, some in asked for a in some]
    assert [a.target == a.answer for a in answers] == best["acc"]
    scores = scores_of("animals", answers)
    assert {s.metric: s.value for s in scores} == pytest.approx({k: sum(v) / 12 for k, v in best.items()})
    for s in scores:
        share = s.value
        assert s.stderr == pytest.approx((share * (1 - share) / 11) ** .5)
        assert (s.task, s.questions) == ("animals", 12)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training  # as it was


def says_yes() -> Any:
    """A model that goes on after a colon with `` yes`` and line ends, whatever was asked: a byte decides the next."""
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
                         vocab_size=VOCABULARY, tie_word_embeddings=False, pad_token_id=256, bos_token_id=None,
                         eos_token_id=257)
    model = LlamaForCausalLM(config)
    embedding = torch.randn(VOCABULARY, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.zero_()
        model.model.embed_tokens.weight.copy_(embedding)
        for now, following in zip(": yes\n", " yes\n\n", strict=True):
            model.lm_head.weight[ord(following)] += embedding[ord(now)]
    return model


def test_generated_answers_are_matched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", reason="the extra 'eval' (lm-eval) is not installed")
    monkeypatch.chdir(tmp_path)  # where git finds no repository
    model = says_yes()
    records = [{"question": f"Is {i} a number?", "answer": "no" if i == 2 else "yes"} for i in range(4)]
    path = write(tmp_path / "say.jsonl", *records, records[3])  # a repeat counts once
    [_, (digests, answers)] = answer_file(model, byte_tokenizer(), path, batch=2)
    assert capfd.readouterr().err == ""
    [score] = scores_of("say", answers)
    assert (digests, score) == ([a.question for a in answers], TaskScore("say", "exact_match", .75, score.stderr, 4))
    assert score.stderr == pytest.approx((.75 * .25 / 3) ** .5)
    [_, (_, first)] = answer_file(model, byte_tokenizer(), path, batch=2, limit=1)
    assert first == answers[:1]
    [_, (again, others)] = answer_file(model, byte_tokenizer(), path, batch=2, known={a.question for a in first})
    assert (again, others) == (digests, answers[1:])
    assert answers[2] == Answer(answers[2].question, "Question: Is 2 a number?\nAnswer:", "no", answers[2].answer,
                                {"exact_match": 0.0})
    assert answers[2].answer.strip() == "yes"
    monkeypatch.setattr(evaluation, "SPARE_TOKENS", 0)
    path = write(tmp_path / "s.jsonl", {"question": "Yes?", "answer": "y"}, {"question": "No?", "answer": "yes, yes"})
    few, every = (list(answer_file(model, byte_tokenizer(), path, batch=2, limit=limit))[1][1] for limit in (1, None))
    assert few == every[:1]  # they are kept: no answer is shorter for the questions asked beside it
    assert few[0].answer.strip() == "yes"


def test_all_malformed_questions_are_named(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"question": "q", "answer": "7"}\n{"question": "q"}\n{"prompt": 3, "answer": "8"}\nnot json\n')
    with pytest.raises(DataError, match=r"^3 malformed records: .* line 2: .* line 3: .* line 4: not valid"):
        read_task_file(file)
    with pytest.raises(DataError, match="different texts"):
        read_task_file(write(file, {"question": "q", "choices": ["a", "b", "a"], "answer": 2}))
