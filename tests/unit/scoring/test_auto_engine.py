"""What `score.engine=auto` comes to before anything is loaded."""

import json
import struct

import pytest

from rlhf.scoring import auto_engine
from rlhf.scoring.auto_engine import why_transformers


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A judge of 10 million parameters, of which only the header is there; vLLM is installed."""
    monkeypatch.setattr(auto_engine, "vllm_is_installed", lambda: True)
    num_bytes = 4 * 10**7
    tensor = {"dtype": "F32", "shape": [10**7], "data_offsets": [0, num_bytes]}
    header = json.dumps({"w": tensor}).encode()
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + num_bytes)
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


# 10 million parameters make up for vLLM's start with 10 000 tokens, and for each request with 10 more.
@pytest.mark.parametrize(
    ("lengths", "on_gpu", "taken"),
    [
        ([], False, "so little work"),
        ([100, 39_979], False, "so little work"),
        ([100, 39_980], False, ""),
        # So short that transformers is always faster.
        ([40] * 10_000, False, "so little work"),
        ([44] * 10_000, False, ""),
        ([1], True, ""),
    ],
)
def test_on_a_cpu_vllm_must_be_worth_its_start(judge, lengths, on_gpu, taken):
    reason = why_transformers(str(judge), lengths, on_gpu)
    assert reason.startswith(taken) and bool(reason) == bool(taken)


def test_no_more_is_read_than_it_takes(judge):
    lengths = iter([10**6] * 5)
    assert why_transformers(str(judge), lengths, False) == "" and len(list(lengths)) == 4


def test_what_rules_vllm_out_is_known_without_importing_it(judge, monkeypatch):
    config = {"auto_map": {"AutoModelForSequenceClassification": "own.Judge"}}
    (judge / "config.json").write_text(json.dumps(config))
    (judge / "own.py").write_text("")
    assert why_transformers(str(judge), [10**9], True) == "the judge brings code of its own"
    monkeypatch.setattr(auto_engine, "vllm_is_installed", lambda: False)
    assert why_transformers(str(judge), [10**9], True) == "vLLM is not installed"
