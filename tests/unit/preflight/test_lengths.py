"""How long prompts and responses are, and how many rows files have: measured, or assumed and said."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.config.schema import Config
from rlhf.preflight import lengths as module
from rlhf.preflight.lengths import lengths_of, sampled_lengths
from tests.unit.refusals import jsonl


def test_what_nothing_tells_is_assumed_and_said():
    cfg = Config()
    cfg.sft.data = "some/conversations"
    cfg.reward_model.data = "hendrydong/preference_700K"
    found = lengths_of(cfg)
    assert (found.prompt_tokens, found.response_tokens, found.num_held_out) == (200, 550, 256)
    assert found.rows == {"sft.data": 100_000, "reward_model.data": 700_000}
    assert found.row_tokens == {"sft.data": 750, "reward_model.data": 1500}
    assert found.measured == []
    said = "\n".join(found.assumed)
    assert "200 tokens a prompt (prompt_tokens=…): RLHFlow/iterative-prompt-v1-iter1-20K not measured" in said
    assert "550 tokens a response (response_tokens=…)" in said
    assert "100,000 rows in sft.data=some/conversations (not here, and its name says nothing)" in said
    assert "700,000 rows in reward_model.data=hendrydong/preference_700K (by its name)" in said


def test_a_response_is_at_most_half_of_its_room():
    cfg = Config()
    cfg.generate.max_new_tokens = 100
    cfg.generate.max_prompt_tokens = 50
    assert (lengths_of(cfg).response_tokens, lengths_of(cfg).prompt_tokens) == (50, 50)


def test_what_a_person_says_counts():
    found = lengths_of(Config(), None, 123, 45)
    assert (found.prompt_tokens, found.response_tokens) == (123, 45)
    assert not any("tokens a" in sentence for sentence in found.assumed)


def test_files_that_are_here_are_measured(tmp_path):
    cfg = Config()
    cfg.prompts.path = str(tmp_path / "p.jsonl")
    cfg.prompts.held_out_path = str(tmp_path / "h.csv")
    cfg.sft.data = str(tmp_path / "s.jsonl")
    cfg.reward_model.data = str(tmp_path / "r.parquet")
    (tmp_path / "p.jsonl").write_bytes(jsonl([{"prompt": f"{i:080d}"} for i in range(400)]))
    (tmp_path / "h.csv").write_text("prompt\n" + "".join(f"question {i}\n" for i in range(6)))
    turns = [{"role": "user", "content": "q" * 100}, {"role": "assistant", "content": "a" * 300}]
    (tmp_path / "s.jsonl").write_bytes(jsonl([{"messages": turns}] * 7))
    pair = {"prompt": ["q" * 40] * 5, "chosen": ["a" * 20] * 5, "rejected": ["b" * 60] * 5}
    pq.write_table(pa.table(pair), tmp_path / "r.parquet")
    found = lengths_of(cfg)
    assert found.prompt_tokens == 80 / 4 + module.TEMPLATE_TOKENS
    assert found.measured == ["35 tokens a prompt, of the first 300 of prompts.path at 4 characters a token"]
    assert found.num_held_out == pytest.approx(7), "the line of the heads counts: it is a plan"
    assert found.rows == {"sft.data": 7, "reward_model.data": 5}
    assert found.row_tokens["sft.data"] == 400 / 4 + module.TEMPLATE_TOKENS
    assert found.row_tokens["reward_model.data"] == (2 * 40 + 20 + 60) / 4 + module.TEMPLATE_TOKENS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b'{"prompt": "cut',
        b"\xff\xfe\x00",
        b'{"nothing": "known"}\n',
        b'{"prompt": ""}\n',
        None,
    ],
)
def test_prompts_that_cannot_be_read_are_no_reason_to_have_no_plan(tmp_path, content):
    cfg = Config()
    cfg.prompts.path = str(tmp_path / "p.jsonl")
    cfg.sft.data = cfg.reward_model.data = cfg.prompts.held_out_path = cfg.prompts.path
    if content is not None:
        (tmp_path / "p.jsonl").write_bytes(content)
    found = lengths_of(cfg)
    assert found.prompt_tokens == module.PROMPT_TOKENS
    assert "p.jsonl" in "\n".join(found.assumed)
    for kind in (".parquet", ".json", ".csv", ""):
        cfg.prompts.path = str(tmp_path / f"x{kind}")
        (tmp_path / f"x{kind}").write_bytes(content or b"")
        cfg.prompts.held_out_path = cfg.prompts.path
        assert lengths_of(cfg).prompt_tokens > 0


@pytest.mark.parametrize("path", ["", "x" * 5000, "\0", "/", ".", "~nobody/x", "@elsewhere/x"])
def test_paths_that_lead_nowhere_are_no_reason_either(path):
    cfg = Config()
    cfg.prompts.path = cfg.prompts.held_out_path = cfg.sft.data = path
    assert lengths_of(cfg).prompt_tokens == module.PROMPT_TOKENS


def finished(folder, responses, tokens, prompt):
    folder.mkdir(parents=True)
    counts = {"responses": responses, "response_tokens": tokens}
    (folder / "artifact.json").write_text(json.dumps({"counts": counts, "seconds": 2.5}))
    pq.write_table(
        pa.table({"prompt_token_ids": [[1] * prompt, [1] * prompt]}), folder / "shard_00000.parquet"
    )


def test_the_newest_samples_of_a_run_are_measured(tmp_path):
    finished(tmp_path / "iteration_000" / "held_out" / "generate", 10, 30, 7)
    assert sampled_lengths(tmp_path) == ("iteration_000/held_out/generate", 7.0, 3.0)
    finished(tmp_path / "iteration_001" / "generate", 10, 50, 8)
    finished(tmp_path / "iteration_002" / "generate", 10, 60, 9)
    found = lengths_of(Config(), tmp_path)
    assert (found.prompt_tokens, found.response_tokens) == (9, 6)
    assert found.measured == [
        "9 tokens a prompt in iteration_002/generate",
        "6 tokens a response in iteration_002/generate",
    ]
    # Damaged, of an older version, or without rows: the one before it.
    (tmp_path / "iteration_002" / "generate" / "artifact.json").write_text('{"counts": {}}')
    assert sampled_lengths(tmp_path) == ("iteration_001/generate", 8.0, 5.0)
    (tmp_path / "iteration_001" / "generate" / "shard_00000.parquet").write_bytes(b"x")
    assert sampled_lengths(tmp_path) is None
    assert sampled_lengths(tmp_path / "nothing") is None
