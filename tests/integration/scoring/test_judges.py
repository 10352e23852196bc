"""The judge against the published snippet, batches against single rows."""

import math

import pytest
import torch
from transformers import pipeline

from rlhf.errors import ModelError
from rlhf.models.batches import bins_by_tokens
from rlhf.models.chat_template import load_tokenizer
from rlhf.scoring.classifier_judge import ClassifierJudge
from rlhf.scoring.judge import RuleJudge
from tests.tiny import tiny_reward_model

WORDS = [
    "sort",
    "the",
    "letters",
    "of",
    "this",
    "word",
    "and",
    "give",
    "them",
    "back",
    "in",
    "upper",
    "case",
    "please",
]


def items(num, longest):
    made = []
    for i in range(num):
        length = 1 + (longest - 1) * i // max(1, num - 1)
        text = " ".join(WORDS[(i + j) % len(WORDS)] for j in range(length))
        messages = [{"role": "user", "content": f"question {i}"}]
        if i % 3 == 2:
            messages = [{"role": "system", "content": "be brief"}, *messages]
        if i % 4 == 3:
            messages += [{"role": "assistant", "content": "why?"}, {"role": "user", "content": "because"}]
        made.append((messages, text))
    return made


def published(path, pairs):
    """The reward model card's way: a text-classification pipeline over the templated text, one row at a
    time."""
    tokenizer = load_tokenizer(path)
    pipe = pipeline(
        "text-classification", model=str(path), tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    scores = []
    for messages, response in pairs:
        chat = [*messages, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
        text = text.removeprefix(tokenizer.bos_token)
        scores.append(pipe(text, top_k=None, function_to_apply="none", batch_size=1)[0]["score"])
    return scores


@pytest.fixture(scope="module")
def judge_path(tmp_path_factory):
    return tiny_reward_model(tmp_path_factory.mktemp("judge"), seed=3)


def test_scores_equal_the_published_snippet(judge_path):
    pairs = items(24, 60)
    ours = ClassifierJudge(str(judge_path)).score(pairs).scores
    assert ours == pytest.approx(published(judge_path, pairs), abs=1e-4)
    assert max(ours) - min(ours) > 1e-2  # a judge that says the same of everything would pass too


def test_scores_equal_the_published_snippet_at_4096_tokens(judge_path):
    pairs = [
        ([{"role": "user", "content": "q"}], "abcdefghij " * 470),
        ([{"role": "user", "content": "q"}], "short"),
    ]
    judge = ClassifierJudge(str(judge_path), max_tokens=8000)
    lengths = [len(load_tokenizer(judge_path)(text)["input_ids"]) for _, text in pairs]
    assert lengths[0] > 4096
    assert judge.score(pairs).scores == pytest.approx(published(judge_path, pairs), abs=1e-4)


def test_a_score_does_not_depend_on_its_batch(judge_path):
    pairs = items(32, 80)
    alone = ClassifierJudge(str(judge_path), batch_tokens=1).score(pairs).scores
    together = ClassifierJudge(str(judge_path), batch_tokens=10**6).score(pairs).scores
    shuffled = ClassifierJudge(str(judge_path), batch_tokens=700).score(pairs[::-1]).scores[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert shuffled == pytest.approx(alone, abs=1e-5)


def test_a_pad_token_equal_to_the_end_of_turn_does_no_harm(tmp_path):
    path = tiny_reward_model(tmp_path / "judge", seed=3)
    pairs = items(8, 30)
    expected = ClassifierJudge(str(path)).score(pairs).scores
    tokenizer = load_tokenizer(path)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    config.pad_token_id = tokenizer.eos_token_id
    config.save_pretrained(path)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    assert ClassifierJudge(str(path)).score(pairs).scores == pytest.approx(expected, abs=1e-6)


def test_the_score_is_a_raw_logit(judge_path):
    judge = ClassifierJudge(str(judge_path))
    small = judge.score(items(24, 60)).scores
    with torch.no_grad():
        judge._head.weight *= -1000
    large = judge.score(items(24, 60)).scores
    assert large == pytest.approx([-1000 * score for score in small], rel=1e-3)


def test_long_conversations_lose_tokens_on_the_left_and_are_counted(judge_path):
    long = ([{"role": "user", "content": "q"}], "word " * 300)
    other_start = ([{"role": "user", "content": "another question"}], "word " * 300)
    scored = ClassifierJudge(str(judge_path), max_tokens=64).score([long, other_start, items(1, 1)[0]])
    assert scored.num_truncated == 2
    assert scored.scores[0] == pytest.approx(scored.scores[1], abs=1e-6)  # what differed was cut away


def test_the_head_stays_in_fp32_when_the_body_does_not(judge_path):
    judge = ClassifierJudge(str(judge_path), dtype="bfloat16")
    assert judge._head.weight.dtype == torch.float32
    assert next(judge._body.parameters()).dtype == torch.bfloat16
    exact = ClassifierJudge(str(judge_path)).score(items(8, 30)).scores
    assert judge.score(items(8, 30)).scores == pytest.approx(exact, abs=0.1)


def test_a_judge_with_two_labels_is_refused(tmp_path):
    path = tiny_reward_model(tmp_path / "judge")
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(path)
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    with pytest.raises(ModelError, match="2 labels, and which of them is the reward is not known"):
        ClassifierJudge(str(path))


def test_batches_fit_the_budget_and_hold_every_row_once():
    lengths = [5, 90, 17, 17, 3, 200, 40, 40, 41]
    batches = bins_by_tokens(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100
    assert batches[0] == [5]


def test_a_rule_is_a_judge_too():
    scored = RuleJudge("rlhf.world.tasks:gold").score(
        [([{"role": "user", "content": "Reverse: a b c"}], "c b a.")]
    )
    assert scored.scores == [1.0] or math.isfinite(scored.scores[0])
