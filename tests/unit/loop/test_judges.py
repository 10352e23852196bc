"""Which judge a config names, what of it is part of a fingerprint, and rules in place of a model."""

import json
import struct

import pytest

from rlhf.config.fields import plain
from rlhf.config.limits import check_config, check_stages
from rlhf.config.schema import Config
from rlhf.config.stage_configs import ReadStage
from rlhf.data.digest import digest_of
from rlhf.data.shards import read_all_rows
from rlhf.errors import ConfigError, DataError
from rlhf.iterate import iterate
from rlhf.loop import judges
from rlhf.run.plan import Run
from rlhf.scoring.judge import RuleJudge
from tests.unit.run.test_plan import InProcess

GOLD = "rlhf.world.tasks:gold"


def identity(tmp_path, **score):
    cfg = Config()
    cfg.reward_model.url = score.pop("url", None)
    for key, value in score.items():
        setattr(cfg.score, key, value)
    return digest_of(Run(tmp_path, cfg)._identity("score", judges.training_judge_config(cfg), {}))


def test_where_and_how_patiently_a_judge_is_asked_is_no_part_of_the_fingerprint(tmp_path):
    local = identity(tmp_path)
    assert identity(tmp_path, url="http://a:8000") == identity(tmp_path, url="http://b:8000") == local
    assert identity(tmp_path, concurrency=99, timeout_seconds=1.0, retry_seconds=0.0) == local
    assert identity(tmp_path, max_tokens=99) != local


def test_the_source_of_a_rule_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    cfg = Config()
    cfg.reward_model.rule = "a_rule_of_this_test:judge"
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "a_rule_of_this_test.py"
    file.write_text("def judge(messages, response):\n    return 1\n")
    before = plain(judges.training_judge_config(cfg))
    file.write_text("def judge(messages, response):\n    return 2\n")
    after = plain(judges.training_judge_config(cfg))
    assert {key for key in before if before[key] != after[key]} == {"rule_source"}


class Listening(Run):
    """Remembers what each stage is told."""

    def stage(self, stage, name, config, inputs, unrecorded=None):
        self.told = getattr(self, "told", {}) | {name: (plain(config), sorted(inputs))}
        return super().stage(stage, name, config, inputs, unrecorded)


def test_a_rule_judges_the_whole_loop_and_no_other_judge(tmp_path):
    for name in ("policy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        (tmp_path / name / "model.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(4)
        )
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(9))
    )
    cfg = Config(num_iterations=1)
    cfg.model.path, cfg.prompts.path = str(tmp_path / "policy"), str(tmp_path / "prompts.jsonl")
    cfg.reward_model.path, cfg.reward_model.rule = "/there/is/no/such/model", GOLD
    cfg.evaluate.judges = {"other": str(tmp_path / "other")}
    run = Listening(tmp_path / "run", cfg, planning=True)
    iterate(cfg, run)
    for name in ("iteration_000/held_out/score", "iteration_001/score", "iteration_001/held_out/score"):
        config, inputs = run.told[name]
        assert inputs == ["candidates"] and config["rule"] == GOLD and config["rule_source"]
    config, inputs = run.told["iteration_001/held_out/score_other"]
    assert inputs == ["candidates", "judge", "known_candidates.0", "known_scores.0"]
    assert config["rule"] is None and "rule_source" not in config


def a_policy(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    return folder


def test_a_judge_that_only_evaluates_may_be_a_rule(tmp_path):
    cfg = Config(num_iterations=1)
    cfg.model.path = str(a_policy(tmp_path / "policy"))
    cfg.prompts.path = str(tmp_path / "prompts.jsonl")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Reverse: a b c"}\n')
    cfg.reward_model.rule = "tests.unit.rules:length"
    cfg.evaluate.judges = {"exact": GOLD}
    run = Listening(tmp_path / "run", cfg, planning=True)
    iterate(cfg, run)
    for t in range(2):
        config, inputs = run.told[f"iteration_00{t}/held_out/score_exact"]
        assert (config["rule"], inputs) == (GOLD, ["candidates"])
        assert config["rule_source"]
    assert "iteration_001/score_exact" not in run.told
    assert judges.rules_of(cfg)["evaluate.judges.exact"] == GOLD
    assert "evaluate.judges.exact" not in judges.models_of(cfg)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("rlhf.world.tasks:gold", True),
        ("mine:gold", True),
        ("größe:größe", True),
        ("owner/name", False),
        ("owner/name@v1:x", False),
        ("@reward_model/model", False),
        ("/models/a:b", False),
        ("./a:b", False),
        ("~/a:b", False),
        ("a:", False),
        (":b", False),
        ("1a:b", False),
        ("a:b:c", False),
        ("a b:c", False),
        ("", False),
    ],
)
def test_a_rule_is_told_from_a_model_by_its_name(path, expected):
    assert judges.is_rule(path, "evaluate.judges.x") == expected


def test_a_folder_that_is_called_like_a_rule_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a_policy(tmp_path / "my:judge")
    assert not judges.is_rule("my:judge", "evaluate.judges.x")
    cfg = Config()
    cfg.evaluate.judges = {"x": "my:judge"}
    assert judges.models_of(cfg)["evaluate.judges.x"] == ("my:judge", None)


def test_a_rule_that_evaluates_and_is_not_there_is_named(tmp_path):
    cfg = Config()
    cfg.evaluate.judges = {"x": "no_such_module_of_anybody:gold"}
    with pytest.raises(
        ConfigError, match=r"evaluate\.judges\.x=no_such_module_of_anybody:gold: expected module"
    ):
        judges.evaluation_judges(cfg, Run(tmp_path, cfg, planning=True))


def test_a_rule_scores_a_file(tmp_path):
    cfg = Config()
    cfg.reward_model.rule = GOLD
    (tmp_path / "in.jsonl").write_text(
        json.dumps({"prompt": "Reverse: a b c", "responses": ["c b a.", "a"]}) + "\n"
    )
    run = Run(tmp_path / "run", cfg, InProcess())
    file = judges.sources.data_file(run, str(tmp_path / "in.jsonl"), "input")
    read = run.stage("read", "read", ReadStage("responses", 8), {"file": file})
    scores = judges.scores_of(run, read.part("candidates"))
    assert [row["scores"] for row in read_all_rows(scores.path)] == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rule": GOLD, "url": "http://a"}, r"reward_model\.rule=.*reward_model\.url=.*only one"),
        ({"rule": GOLD, "data": "x.jsonl"}, r"reward_model\.rule=.*reward_model\.data=.*only one"),
        ({"url": "http://a", "data": "x.jsonl"}, r"reward_model\.url=.*reward_model\.data=.*only one"),
        ({"url": "localhost:8000"}, r"reward_model\.url=localhost:8000: must be the base URL"),
        ({"url": "http://a", "path": ""}, r"needs reward_model\.path"),
    ],
)
def test_judges_that_cannot_be_are_refused_by_the_loop_and_the_tools(given, said):
    cfg = Config()
    for key, value in given.items():
        setattr(cfg.reward_model, key, value)
    for check in (check_config, check_stages):
        with pytest.raises(ConfigError, match=said):
            check(cfg)


def test_a_rule_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"rlhf\.world\.tasks has no function 'nothing'"):
        RuleJudge("rlhf.world.tasks:nothing")
    judge = RuleJudge("tests.unit.rules:no_number")
    with pytest.raises(
        DataError, match=r"rules:no_number: gave back 'good', .* response 'yes' to 'really\?'"
    ):
        judge.score([([{"role": "user", "content": "really?"}], "yes")])


def test_a_rule_that_changes_its_question_changes_no_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changing.py").write_text(
        "def rule(messages, response):\n"
        "    said = len(messages) + len(messages[0]['content'])\n"
        "    messages[0]['content'] += response\n"
        "    messages.append({'role': 'assistant', 'content': response})\n"
        "    return said\n"
    )
    messages = [{"role": "user", "content": "q"}]
    scores = RuleJudge("changing:rule").score([(messages, "a"), (messages, "b")]).scores
    assert scores == [2, 2] and messages == [{"role": "user", "content": "q"}]
