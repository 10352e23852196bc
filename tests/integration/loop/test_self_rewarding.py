"""The real loop with the policy as its own judge."""

import json
import os
import signal
import threading
import time

import pytest

from rlhf.data.shards import read_all_rows
from tests.chat_server import fake_chat
from tests.commands import loop, quick_loop
from tests.tiny import tiny_llama

# What a random model writes has no verdict in it: the first plain character is one here.
TEMPLATE = """
prompt: "{question} {response}"
pattern: "(?P<choice>[ -~])"
take: first
choices: {%s}
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("self_rewarding")
    tiny_llama(folder / "policy", seed=1, hidden_size=64, num_attention_heads=2, num_key_value_heads=1)
    rows = [{"prompt": f"Say {i} in words"} for i in range(18)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choices = ", ".join(f"{json.dumps(chr(code))}: {code % 7}" for code in range(32, 127))
    (folder / "first_letter.yaml").write_text(TEMPLATE % choices)
    return folder, [
        f"model.path={folder / 'policy'}",
        "reward_model.kind=generative",
        "reward_model.path=@policy",
        f"reward_model.generative.template={folder / 'first_letter.yaml'}",
        "reward_model.generative.max_new_tokens=40",
        "reward_model.generative.temperature=1",
        "score.max_tokens=600",
        f"prompts.path={folder / 'prompts.jsonl'}",
        "prompts.num_per_iteration=6",
        "prompts.num_held_out=6",
        "num_iterations=2",
        "evaluate.n=2",
        "generate.n=4",
        "generate.max_new_tokens=8",
        "generate.shard_size=5",
        "pair.truncated=allow",
        "dpo.batch_size=4",
        "dpo.gradient_checkpointing=false",
        "dpo.learning_rate=1e-3",
    ]


def test_each_iteration_is_judged_by_the_policy_that_it_begins_with(told):
    folder, overrides = told
    run = folder / "run"
    code, said = quick_loop(run, *overrides)
    assert code == 0, said
    judges = {}
    for path in run.glob("iteration_*/**/score/artifact.json"):
        judges[str(path.parent.relative_to(run))] = json.loads(path.read_bytes())["identity"]["inputs"][
            "judge"
        ]
    initial = judges["iteration_000/held_out/score"]
    assert judges["iteration_001/score"] == initial
    assert judges["iteration_001/held_out/score"] == judges["iteration_002/held_out/score"] == initial
    assert judges["iteration_002/score"] not in (None, initial)
    answers = list(read_all_rows(run / "iteration_002" / "score" / "answers"))
    assert answers and all(row["answer"] for row in answers if row["unread"] is None)
    code, said = quick_loop(run, *overrides)
    assert code == 0 and ", 0 to do" in said, said


def test_a_killed_driver_loses_no_answer_of_a_server(told, tmp_path):
    _, overrides = told
    folder = tmp_path / "served"
    folder.mkdir()
    run = folder / "run"
    resumed, held = threading.Event(), threading.Event()

    def behave(number, body):
        if number >= 5 and not resumed.is_set():
            held.wait(120)
            return 500, {}, {}
        return 200, {}, f"Rating: {1 + len(body['messages'][-1]['content']) % 10}"

    with fake_chat(behave) as fake:
        served = [word for word in overrides if not word.startswith(("reward_model.", "num_iterations"))]
        served += ["reward_model.kind=generative", f"reward_model.url={fake.url}", "num_iterations=1"]
        served += [
            "reward_model.generative.model=m",
            "reward_model.generative.api_key_variable=A_KEY_OF_MINE",
        ]
        os.environ["A_KEY_OF_MINE"] = "sk-very-secret"
        driver = loop(run, *served, wait=False)
        kept = run / "iteration_000" / "held_out" / ".score.partial" / ".answers" / "00000.jsonl"
        for _ in range(2400):
            if kept.is_file() and kept.read_bytes().count(b"\n") == 5:
                break
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate(timeout=60)
        assert sum(fake.answered.values()) == 5
        resumed.set()
        held.set()
        code, said = loop(run, *served, "until=held_out/score")
        del os.environ["A_KEY_OF_MINE"]
        assert code == 0, said
        assert set(fake.answered.values()) == {1} and len(fake.answered) > 5
        assert fake.headers[0]["Authorization"] == "Bearer sk-very-secret"
    for path in folder.rglob("*"):
        assert not path.is_file() or b"sk-very-secret" not in path.read_bytes(), path
