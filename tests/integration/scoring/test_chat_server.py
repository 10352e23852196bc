"""A generative judge behind vLLM's own server: the answers of the same model in this process."""

import os

import pytest

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from rlhf.config.choices import ChatApi
from rlhf.config.stage_configs import GenerativeStage
from rlhf.data.judge_files import load_judge_file
from rlhf.errors import ModelError
from rlhf.scoring.chat_server import ChatServer
from rlhf.scoring.vllm_asker import VllmAsker
from tests.serving import Server
from tests.tiny import tiny_llama

SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # as vLLM wants on CPU
MAX_TOKENS = 512


def asked(asker, questions):
    found = {}
    asker.ask(questions, found.__setitem__)
    return [found[number] for number in range(len(questions))]


def test_server_and_engine_answer_alike(tmp_path):
    path = str(tmp_path / "model")
    server = Server(path, tmp_path / "log", MAX_TOKENS, runner="generate")
    try:
        tiny_llama(tmp_path / "model", seed=4, **SHAPE)
        server.tell("start")
        told = {"judge_file": load_judge_file("score_1_10"), "max_new_tokens": 12, "max_tokens": MAX_TOKENS}
        questions = [[{"role": "user", "content": f"question {number}"}] for number in range(20)]
        remote = ChatServer(GenerativeStage(url=server.url, served_model=path, retry_seconds=180, **told))
        of_server = asked(remote, questions)
        of_engine = asked(VllmAsker(GenerativeStage(**told), path), questions)
        for one, other in zip(of_server, of_engine, strict=True):
            assert (one.prompt_tokens, one.completion_tokens) == (
                other.prompt_tokens,
                other.completion_tokens,
            )
            # A server leaves out what a cut answer ends with of half a character.
            assert (
                one.text.rstrip("\ufffd") == other.text.rstrip("\ufffd")
                and one.finish_reason == other.finish_reason
            )
        completions = GenerativeStage(url=server.url, served_model=path, api=ChatApi.completions, **told)
        assert asked(ChatServer(completions), questions[:2])[0].completion_tokens == 12
        with pytest.raises(ModelError, match=r"(?s)HTTP 404.*generative\.model=other"):
            asked(ChatServer(GenerativeStage(url=server.url, served_model="other", **told)), questions[:1])
        long = [[{"role": "user", "content": "word " * 2000}]]
        with pytest.raises(ModelError, match=r"(?s)HTTP 400.*max_new_tokens=12"):
            asked(remote, long)
    finally:
        server.stop()
