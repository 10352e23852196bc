"""SmolLM2-135M-Instruct through the real commands: ChatML, a BOS that opens turns, pad equal to eos, tied
embeddings.

Random tiny models hid that such ordinary models were refused. Skipped where the model is not there (see
conftest.py).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
QUESTIONS = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the opposite of hot?", "cold"),
    ("How many days are there in a week?", "7|seven"),
    ("Which planet do we live on?", "Earth"),
    ("What colour is the sky on a clear day?", "blue"),
    ("Write one sentence about a cat.", "cat"),
    ("Name a fruit that is yellow.", ""),
    ("Say hello to my friend Ann.", "Ann"),
    ("What do bees make?", "honey"),
    ("Finish the sentence: The sun rises in the", ""),
    ("Give me a synonym of big.", ""),
    ("Translate 'good morning' into Spanish.", ""),
    ("What is 2 plus 2?", "4|four"),
    ("List three animals.", ""),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("What is water made of?", "hydrogen|oxygen"),
    ("Explain in one sentence what a computer is.", "computer"),
    ("What season comes after winter?", "spring"),
    ("Is fire hot or cold?", "hot"),
)
SYSTEM = {"role": "system", "content": "You answer in one short sentence."}
LEAST_SENSIBLE = 9
"""Of the questions with a known answer (15), so many are answered; the model gets 11 to 13 of them, chance
none."""


def run(*arguments, cwd, code=0, timeout=900):
    """One of the project's commands, as a person gives it."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1")
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == code, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, real_model):
    """Twenty ordinary prompts, one in four with a system turn."""
    folder = tmp_path_factory.mktemp("real")
    rows = []
    for number, (question, _) in enumerate(QUESTIONS):
        system = [SYSTEM] if number % 4 == 3 else []
        rows.append({"messages": [*system, {"role": "user", "content": question}]})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_check_has_no_false_alarm(folder, real_model):
    said = run(
        "rlhf.check",
        f"model.path={real_model}",
        "reward_model.rule=tests.unit.rules:length",
        "prompts.path=prompts.jsonl",
        "prompts.num_per_iteration=12",
        "prompts.num_held_out=4",
        "num_iterations=1",
        "dpo.learning_rate=1.0e-5",
        # 12 pairs in 24 steps: with fewer than 10 steps a warning is right.
        "dpo.batch_size=1",
        "compute.device=cpu",
        "json=true",
        cwd=folder,
    )
    document = json.loads(said)
    odd = [finding for finding in document["findings"] if finding["level"] != "ok"]
    # What a small machine lacks is no alarm about the model.
    assert [finding for finding in odd if finding["subject"] not in ("machine", "versions")] == []


@pytest.fixture(scope="module")
def answers(folder, real_model):
    """Greedy answers of both engines."""
    found = {}
    for engine in ("vllm", "transformers"):
        run(
            "rlhf.generate",
            f"model.path={real_model}",
            "input=prompts.jsonl",
            f"output={engine}.jsonl",
            f"generate.engine={engine}",
            "generate.n=1",
            "generate.temperatures=[0]",
            "generate.max_new_tokens=32",
            cwd=folder,
        )
        found[engine] = lines(folder / f"{engine}.jsonl")
    return found


def test_both_engines_answer_alike_and_with_sense(answers):
    texts = {engine: [row["responses"][0] for row in rows] for engine, rows in answers.items()}
    assert texts["vllm"] == texts["transformers"], "greedy answers of the same ids in fp32"
    assert len(texts["vllm"]) == len(QUESTIONS)
    right = 0
    for text, (_, wanted) in zip(texts["vllm"], QUESTIONS, strict=True):
        assert text.strip() and "<|im_" not in text
        right += bool(wanted) and any(word.lower() in text.lower() for word in wanted.split("|"))
    assert right >= LEAST_SENSIBLE, texts["vllm"]
    stopped = sum(row["finish_reasons"] == ["stop"] for row in answers["vllm"])
    assert stopped >= len(QUESTIONS) // 3, "answers end at the template's end of turn"


@pytest.fixture(scope="module")
def judge(tmp_path_factory, real_model):
    """A judge with the real model's body and tokenizer, and a seeded score head."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("judge") / "judge"
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(real_model, num_labels=1, dtype=torch.float32)
    model.generation_config = None
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(real_model).save_pretrained(folder)
    return folder


def test_both_engines_score_alike(folder, answers, judge):
    scores = {}
    for engine in ("vllm", "transformers"):
        run(
            "rlhf.score",
            f"reward_model.path={judge}",
            "input=vllm.jsonl",
            f"output=scored_{engine}.jsonl",
            f"score.engine={engine}",
            "score.max_tokens=1024",
            cwd=folder,
        )
        scores[engine] = [row["rewards"][0] for row in lines(folder / f"scored_{engine}.jsonl")]
    assert len(set(scores["transformers"])) == len(QUESTIONS), "each conversation is read at its own end"
    assert scores["vllm"] == pytest.approx(scores["transformers"], abs=2e-3)


@pytest.mark.parametrize("lora", [0, 4], ids=["full", "lora"])
def test_one_iteration_to_a_policy_that_others_load(folder, real_model, lora):
    name = f"run_{lora}"
    said = run(
        "rlhf.iterate",
        f"run_dir={name}",
        f"model.path={real_model}",
        "reward_model.rule=tests.unit.rules:length",
        "prompts.path=prompts.jsonl",
        "prompts.num_per_iteration=12",
        "prompts.num_held_out=4",
        "num_iterations=1",
        "generate.n=2",
        "generate.temperatures=[1.0]",
        "generate.max_new_tokens=16",
        "pair.truncated=allow",
        "dpo.num_epochs=1",
        "dpo.batch_size=16",
        "dpo.batch_tokens=512",
        "dpo.learning_rate=1.0e-5",
        f"dpo.lora.rank={lora}",
        "reference.batch_tokens=512",
        "evaluate.n=1",
        "compute.device=cpu",
        cwd=folder,
    )
    assert "best policy" in said
    manifest = json.loads((folder / name / "iteration_001" / "dpo" / "artifact.json").read_text())
    assert manifest["counts"]["steps"] == 1
    assert manifest["metrics"]["first_loss"] == pytest.approx(0.6931, abs=1e-3)
    exported = folder / name / "iteration_001" / "dpo" / "model"
    for engine in ("vllm", "transformers"):
        run(
            "rlhf.generate",
            f"model.path={exported}",
            "input=prompts.jsonl",
            f"output={name}_{engine}.jsonl",
            f"generate.engine={engine}",
            "generate.n=1",
            "generate.temperatures=[0]",
            "generate.max_new_tokens=12",
            cwd=folder,
        )
    of_vllm = [row["responses"] for row in lines(folder / f"{name}_vllm.jsonl")]
    of_transformers = [row["responses"] for row in lines(folder / f"{name}_transformers.jsonl")]
    assert of_vllm == of_transformers
    assert (folder / name / "best").exists()
