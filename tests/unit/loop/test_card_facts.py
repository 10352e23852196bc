"""What a model card says of a run: its judges, its line of policies, and the settings that made it."""

from __future__ import annotations

from types import SimpleNamespace

from rlhf.config.schema import Config
from rlhf.config.training import OtherJudge
from rlhf.loop import card, figures
from rlhf.run.artifact import Artifact


def row(iteration):
    return figures.Row(iteration, 0.5, None, None, None, None, 12.0, 0.0, 0.0, None, {})


def facts(cfg, num_policies=2, iteration=1):
    policies = [Artifact(SimpleNamespace(), str(t) * 64) for t in range(num_policies)]
    return card.facts(cfg, [row(t) for t in range(num_policies)], policies, iteration, licences={})


def test_a_card_names_all_judges_and_files():
    cfg = Config()
    cfg.reward_model.path, cfg.prompts.path = "/x/judge", ["/x/a.jsonl", "o/b"]
    cfg.reward_model.others = {"one": OtherJudge(path="/x/second"), "two": OtherJudge(rule="a:b")}
    said = facts(cfg)
    assert (said["judge"], said["prompts"]) == ("judge + second + a:b", "a.jsonl, o/b")
    cfg.reward_model.data = "/x/pairs.jsonl"
    assert facts(cfg)["judge"] == "judge, trained in this run + second + a:b"
    cfg = Config()
    cfg.reward_model.rule = "a:b"
    assert facts(cfg)["judge"] == "a:b"


def test_a_card_tells_the_line_of_the_chosen_policy():
    said = facts(Config(), num_policies=3, iteration=1)
    assert said["num_iterations"] == 2 and said["lineage"] == ["0" * 64, "1" * 64] and not said["sft"]


def test_settings_of_what_the_run_does_not_do_are_left_out():
    cfg = Config()
    shown = facts(cfg)["settings"]
    assert not {"world", "sft", "compute", "gates", "run_dir"} & shown.keys()
    assert set(shown["reward_model"]) == {"path", "revision", "dtype", "trust_remote_code"}
    cfg.world.enabled, cfg.sft.data, cfg.reward_model.rule = True, "/x/sft.jsonl", "a:b"
    shown = facts(cfg)["settings"]
    assert shown["sft"]["data"] == "sft.jsonl" and shown["world"]["enabled"] is True
    assert shown["reward_model"] == {"rule": "a:b"}
    cfg.reward_model.others = {"one": OtherJudge(path="/x/second")}
    shown = facts(cfg)["settings"]["reward_model"]
    assert set(shown) == {"rule", "weight", "others"} and shown["others"]["one"]["path"] == "second"
    cfg.reward_model.rule, cfg.reward_model.data = None, "/x/pairs.jsonl"
    shown = facts(cfg)["settings"]["reward_model"]
    assert shown["data"] == "pairs.jsonl" and "max_length" in shown
