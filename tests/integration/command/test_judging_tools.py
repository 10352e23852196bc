"""RewardBench and best-of-n on files, with a real judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.scoring.classifier_judge import ClassifierJudge
from tests.commands import ROOT, called
from tests.tiny import tiny_reward_model

DATA = ROOT.parent / "shared" / "data"


def run(*arguments: object, cwd: Path) -> tuple[int, str]:
    return called(cwd, *map(str, arguments))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reward_model(tmp_path_factory.mktemp("judge") / "judge", seed=3)


def test_sections_of_given_accuracies(tmp_path: Path) -> None:
    values = {"refusals-dangerous": 93, "refusals-offensive": 97, "xstest-should-refuse": 100}
    (tmp_path / "s.json").write_text(
        json.dumps(values | {"xstest-should-respond": 87.2, "donotanswer": 79.4})
    )
    code, said = run("rlhf.rewardbench", "subsets=s.json", "output=o.json", cwd=tmp_path)
    assert code == 0, said
    found = json.loads((tmp_path / "o.json").read_text())
    assert list(found["current"]) == list(found["legacy"]) == ["Chat", "Chat Hard", "Safety", "Reasoning"]
    assert found["current"]["Safety"] == pytest.approx(90.54, abs=0.005)
    assert found["legacy"]["Safety"] == pytest.approx(92.20, abs=0.005)
    assert found["current"]["Chat"] is None and "88.76" in said
    fractions = {"refusals-dangerous": 0.93, "refusals-offensive": 0.97, "xstest-should-refuse": 1}
    (tmp_path / "f.json").write_text(
        json.dumps(fractions | {"xstest-should-respond": 0.872, "donotanswer": 0.794})
    )
    code, said = run("rlhf.rewardbench", "subsets=f.json", "output=f_out.json", cwd=tmp_path)
    assert code == 0 and "read as fractions" in said, said
    again = json.loads((tmp_path / "f_out.json").read_text())
    assert again["current"]["Safety"] == pytest.approx(found["current"]["Safety"])
    (tmp_path / "s.json").write_text('{"chatt": 3}')
    code, said = run("rlhf.rewardbench", "subsets=s.json", "output=p.json", cwd=tmp_path)
    assert code == 2 and "chatt" in said and not (tmp_path / "p.json").exists()


def test_a_judge_on_rows_of_the_benchmark(tmp_path: Path, judge: Path) -> None:
    subsets = ["alpacaeval-easy", "donotanswer", "mine"]
    rows = [
        {
            "id": 100 + i,
            "prompt": f"q {i}",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "subset": subsets[i % 3],
        }
        for i in range(9)
    ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "chosen": "bad 0"}])
    )
    code, said = run(
        "rlhf.rewardbench", f"reward_model.path={judge}", "input=rows.jsonl", "output=o.json", cwd=tmp_path
    )
    assert code == 0, said
    assert "10 rows = 9 kept + 1 dropped (equal 1)" in said
    found = json.loads((tmp_path / "o.json").read_text())
    assert [row["id"] for row in found["rows"]] == list(range(100, 109))
    by_hand = ClassifierJudge(str(judge))
    for row, given in zip(found["rows"], rows, strict=True):
        messages = [{"role": "user", "content": given["prompt"]}]
        expected = by_hand.score([(messages, str(given[side])) for side in ("chosen", "rejected")]).scores
        assert [row["chosen"], row["rejected"]] == pytest.approx(expected, abs=1e-4)
    for name in subsets:
        mine = [row for row in found["rows"] if row["subset"] == name]
        assert found["subsets"][name]["rows"] == 3
        right = sum(row["chosen"] > row["rejected"] for row in mine)
        assert found["subsets"][name]["accuracy"] == pytest.approx(100 * right / 3)
    assert found["current"]["Chat"] == found["subsets"]["alpacaeval-easy"]["accuracy"]
    assert found["current"]["Chat Hard"] is None


def test_the_second_version_of_the_benchmark(tmp_path: Path, judge: Path) -> None:
    subsets = ["Factuality", "Precise IF", "Math", "Safety", "Focus"]
    rows: list[dict[str, Any]] = [
        {"id": str(i), "prompt": f"q {i}", "chosen": [f"{i} a"], "rejected": [f"{i} {k}" for k in "bcd"]}
        | {"num_correct": 1, "subset": subsets[i % 5]}
        for i in range(10)
    ]
    rows[3] |= {"rejected": rows[3]["chosen"] * 3}  # equal texts score the same: a quarter
    for number in range(3):
        kinds = {"ref": ["right"], "tied": ["right", "also right", "too"]}
        rows += [
            {
                "id": f"{kind}:{number}",
                "prompt": f"{kind} {number}",
                "chosen": right,
                "rejected": ["wrong", "no"],
            }
            | {"num_correct": len(right), "subset": "Ties"}
            for kind, right in kinds.items()
        ]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "rejected": []}])
    )
    tool = ("rlhf.rewardbench", "version=2", f"reward_model.path={judge}", "input=rows.jsonl")
    code, said = run(*tool, "output=o.json", cwd=tmp_path)
    assert code == 0, said
    assert "17 rows = 16 kept + 1 dropped (one_sided 1)" in said and "mean of the six subsets" in said
    found = json.loads((tmp_path / "o.json").read_text())
    alone = ClassifierJudge(str(judge))
    for row, given in zip(found["rows"], rows, strict=True):
        assert [row[key] for key in ("id", "subset", "num_correct")] == [
            given["id"],
            given["subset"],
            len(given["chosen"]),
        ]
        messages = [{"role": "user", "content": given["prompt"]}]
        texts = given["chosen"] + given["rejected"]
        assert row["scores"] == pytest.approx(
            [alone.score([(messages, t)]).scores[0] for t in texts], abs=1e-4
        )
    for name in subsets:
        mine = [row["scores"] for row in found["rows"] if row["subset"] == name]
        credits = [(1 / s.count(max(s)) if s[0] == max(s) else 0) for s in mine]
        assert found["subsets"][name]["score"] == pytest.approx(100 * sum(credits) / 2)
    assert (
        found["subsets"]["Safety"]["ties"] == 1
        and found["rows"][3]["scores"] == [found["rows"][3]["scores"][0]] * 4
    )
    six = [figures["score"] for figures in found["subsets"].values()]
    assert len(six) == 6 and found["overall"] == pytest.approx(sum(six) / 6)
    code, said = run(*tool, "subsets=s.json", "output=p.json", cwd=tmp_path)
    assert code == 2 and "version=2" in said and not (tmp_path / "p.json").exists()


def test_best_of_n_by_a_judge_and_by_given_rewards(tmp_path: Path, judge: Path) -> None:
    rows = [
        {"prompt": "q", "responses": [f"{i} {k}" for k in range(4)], "qualities": [0, 1, 2, None]}
        for i in range(5)
    ]
    given = [{**row, "rewards": [0.1, 0.2, 0.3, 9.0]} for row in rows]
    (tmp_path / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    code, said = run("rlhf.bestofn", "input=given.jsonl", "output=o.json", cwd=tmp_path)
    assert code == 0, said
    found = json.loads((tmp_path / "o.json").read_text())
    assert found["gain"] == pytest.approx(1.0) and found["responses_left_out"] == 5 and found["prompts"] == 5
    code, said = run(
        "rlhf.bestofn", f"reward_model.path={judge}", "input=given.jsonl", "output=p.json", cwd=tmp_path
    )
    assert code == 0 and 0 <= json.loads((tmp_path / "p.json").read_text())["pair_agreement"]["mean"] <= 1
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = run("rlhf.bestofn", "input=bare.jsonl", "output=r.json", cwd=tmp_path)
    assert code == 2 and "no list `rewards`" in said and "Traceback" not in said


@pytest.mark.skipif(not DATA.is_dir(), reason="real data (../shared/data) is not on this machine")
def test_real_candidates_with_a_strong_judges_scores(tmp_path: Path, judge: Path) -> None:
    files = sorted((DATA / "bon_alpacaeval_tulu2dpo13b").glob("candidate_*.json"))
    script = ROOT / "scripts" / "experiments" / "alpacaeval_candidates.py"
    subprocess.run([sys.executable, script, f"output={tmp_path / 'c.jsonl'}", *files], check=True, timeout=60)
    lines = [
        json.loads(line) for line in (tmp_path / "c.jsonl").read_text(encoding="utf-8").split("\n") if line
    ]
    assert len(lines) == 196 and all(len(line["responses"]) == 8 for line in lines)
    by_length = [{**line, "rewards": [len(text) for text in line["responses"]]} for line in lines]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in by_length), encoding="utf-8")
    code, said = run("rlhf.bestofn", "input=l.jsonl", "output=o.json", cwd=tmp_path)
    assert code == 0, said
    found = json.loads((tmp_path / "o.json").read_text())
    quality = {name: figure["mean"] for name, figure in found["quality"].items()}
    assert quality["worst"] < quality["random"] < quality["oracle"]
    assert found["score_length_correlation"]["over_all"] == pytest.approx(1.0)
