"""RAFT trains on the best response of each prompt, and on its tokens as they were sampled."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rlhf.config.choices import Truncated
from rlhf.config.schema import PairSettings
from rlhf.config.training import RaftConfig
from rlhf.data.schemas import CANDIDATES_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import shard_name, write_shard
from tests.stage_runner import make_job, run_ranks
from tests.tiny import tiny_llama

EOT = 9
PROMPTS = [[1, 30 + number, 40] for number in range(6)]


def responses_of(number):
    """Two of a prompt, the second of which is the better one for odd prompts."""
    return [[50 + number, 60, EOT], [70 + number, 80, 81, 82, EOT]], [0.0, 1.0 if number % 2 else -1.0]


@pytest.fixture
def world(tmp_path):
    tiny_llama(tmp_path / "policy", 1)
    rows, scores = [], []
    one = {"text": "x", "logprob": -1.0, "seed": 1, "temperature": 1.0}
    for number, prompt in enumerate(PROMPTS):
        responses, values = responses_of(number)
        candidates = [{"token_ids": ids, "finish_reason": "stop", **one} for ids in responses]
        messages = [{"role": "user", "content": str(number)}]
        rows.append(
            {"id": str(number), "messages": messages, "prompt_token_ids": prompt, "candidates": candidates}
        )
        scores.append({"id": str(number), "scores": values})
    for name, schema, lines in (("candidates", CANDIDATES_SCHEMA, rows), ("scores", SCORES_SCHEMA, scores)):
        (tmp_path / name).mkdir()
        for index in range(2):
            write_shard(tmp_path / name / shard_name(index), schema, lines[3 * index : 3 * index + 3])
    (tmp_path / "candidates" / "tokens.json").write_text(
        json.dumps({"end_of_turn_id": EOT, "stop_token_ids": [EOT]})
    )
    return tmp_path


def job(world, out, pairing=None, **settings):
    section = RaftConfig(batch_size=6, learning_rate=1e-3, gradient_checkpointing=False)
    inputs = {"model": world / "policy", "candidates": world / "candidates", "scores": world / "scores"}
    return make_job("raft", section, inputs, out, pairing=pairing or PairSettings(), **settings)


def steps_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def mean_nll(folder):
    """Of the best responses under a model, over all their tokens: what the first step's loss is."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    losses = []
    for number, prompt in enumerate(PROMPTS):
        response = responses_of(number)[0][number % 2]
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)
        places = range(len(prompt) - 1, ids.shape[1] - 1)
        losses += [-logprobs[0, place, ids[0, place + 1]].item() for place in places]
    return math.fsum(losses) / len(losses)


def test_it_learns_the_best_responses_and_nothing_of_the_prompts(world):
    outcome = run_ranks(job(world, world / "raft", num_epochs=12))
    steps = steps_of(world / "raft")
    assert steps[0]["loss"] == pytest.approx(mean_nll(world / "policy"), abs=1e-5)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    counts = outcome.counts
    assert (counts["prompts"], counts["conversations"], counts["cut"], counts["steps"]) == (6, 6, 0, 12)
    assert mean_nll(world / "raft" / "model") < mean_nll(world / "policy") - 0.5


@pytest.mark.parametrize("packing", [False, True])
def test_ranks_and_packs_have_the_same_first_loss(world, packing):
    settings = {"packing": packing, "max_length": 16, "batch_size": 2 if packing else 6}
    run_ranks(job(world, world / "ranks", **settings), 2)
    if not packing:
        assert steps_of(world / "ranks")[0]["loss"] == pytest.approx(mean_nll(world / "policy"), abs=1e-5)
    assert steps_of(world / "ranks")


def test_responses_are_cut_at_the_end_and_long_prompts_dropped(world):
    outcome = run_ranks(job(world, world / "cut", max_length=5))
    # Of three tokens of prompt each; the responses have 3 or 5, of which 2 are left.
    assert (outcome.counts["cut"], outcome.counts["conversations"]) == (6, 6)
    with pytest.raises(
        AssertionError, match=r"no response to train on \(6 prompts, dropped: 6 long_prompt\)"
    ):
        run_ranks(job(world, world / "none", max_length=3))


def test_what_may_be_chosen_is_as_for_pairs(world):
    pairing = PairSettings(truncated=Truncated.drop, num_candidates=2)
    assert run_ranks(job(world, world / "raft", pairing=pairing)).counts["conversations"] == 6
