"""What the loop asks for: every stage by its folder, with its inputs and what it is told, by a plan that runs
nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.choices import JudgeKind, Loss, Method, Reference
from rlhf.config.fields import plain
from rlhf.config.limits import value_at
from rlhf.config.schema import Config
from rlhf.config.training import OtherJudge
from rlhf.errors import ModelError
from rlhf.iterate import iterate
from rlhf.run.plan import Run
from tests.unit.refusals import jsonl, model

RULE = "rlhf.world.tasks:gold"


class Listening(Run):
    """Remembers what each stage is told, in order: the config as JSON, and the names of its inputs."""

    def stage(self, stage, name, config, inputs, unrecorded=None):
        self.told = getattr(self, "told", {})
        self.told[name] = (
            plain(config),
            [*sorted(inputs), *(f"({key})" for key in sorted(unrecorded or {}))],
        )
        return super().stage(stage, name, config, inputs, unrecorded)


def asked(
    folder: Path, settings: dict[str, Any], **judge: Any
) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """What a run with these settings asks for, of models and files that are made here; `judge` is in the config
    of the judge's folder.
    """
    for name in ("policy", "second", "third"):
        model(folder / name)
    model(folder / "judge", **judge)
    for name in ("prompts", "pairs", "set1", "set2", "held_out"):
        (folder / f"{name}.jsonl").write_bytes(jsonl([{"prompt": f"question {name}"}]))
    cfg = Config(num_iterations=1)
    cfg.model.path, cfg.reward_model.path = str(folder / "policy"), str(folder / "judge")
    cfg.prompts.path = str(folder / "prompts.jsonl")
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if isinstance(value, str) and value.endswith(".jsonl"):
            value = str(folder / value)
        setattr(value_at(cfg, section) if section else cfg, name, value)
    for other in cfg.reward_model.others.values():
        other.path = other.path and str(folder / other.path)
    cfg.evaluate.judges = {name: str(folder / path) for name, path in cfg.evaluate.judges.items()}
    run = Listening(folder / "run", cfg, planning=True)
    iterate(cfg, run)
    return run.told


CASES = {
    "plain": {},
    "two": {"num_iterations": 2, "evaluate.gold": RULE},
    "sets": {
        "num_iterations": 2,
        "prompts.path": "set{iteration}.jsonl",
        "prompts.held_out_path": "held_out.jsonl",
    },
    "summed": {
        "reward_model.others": {"second": OtherJudge(path="second"), "rule": OtherJudge(rule=RULE)},
        "evaluate.judges": {"third": "third"},
    },
    "pairwise": {"num_iterations": 2, "reward_model.kind": JudgeKind.pairwise, "score.opponents": 3},
    "trained": {
        "sft.data": "pairs.jsonl",
        "reward_model.data": "pairs.jsonl",
        "reward_model.on_policy.prompts": "prompts.jsonl",
        "reward_model.on_policy.rule": RULE,
    },
    "given": {"pair.data": "pairs.jsonl"},
    "simpo": {"dpo.loss": Loss.simpo},
    "inpo": {"num_iterations": 2, "dpo.loss": Loss.inpo},
    "raft": {"method": Method.raft},
    "replay": {"num_iterations": 2, "replay.iterations": 3, "replay.data": "pairs.jsonl"},
    "replay_previous": {
        "num_iterations": 3,
        "replay.iterations": 1,
        "replay.data": "pairs.jsonl",
        "dpo.reference": Reference.previous,
    },
}


ITERATION = {
    "generate": "policy prompts (judge.main)",
    "score": "candidates judge",
    "pair": "candidates scores",
    "reference": "model pairs",
    "dpo": "pairs policy reference",
}
FIRST = {"generate": "policy prompts (judge.main)", "score": "candidates judge"}
KNOWN = "candidates judge known_candidates.0 known_scores.0"
KNOWN_2 = "candidates judge known_candidates.0 known_candidates.1 known_scores.0 known_scores.1"
HELD_OUT = {"generate": "policy prompts (judge.main)", "score": KNOWN, "reference": "candidates model"}
GOLD = {"gold": "candidates"}
MIX = "initial.main initial.rule initial.second scores.main scores.rule scores.second"

ASKED = {
    "plain": {
        "prompts": "prompts",
        "iteration_000/held_out": FIRST,
        "iteration_001": ITERATION,
        "iteration_001/held_out": HELD_OUT,
    },
    "two": {
        "prompts": "prompts",
        "iteration_000/held_out": FIRST | GOLD,
        "iteration_001": ITERATION,
        "iteration_001/held_out": HELD_OUT | GOLD,
        "iteration_002": ITERATION,
        "iteration_002/held_out": HELD_OUT | GOLD | {"score": KNOWN_2},
    },
    "sets": {
        "prompts": "held_out prompts",
        "iteration_002/prompts": "prompts seen_001 seen_held_out",
        "iteration_000/held_out": FIRST,
        "iteration_001": ITERATION,
        "iteration_001/held_out": HELD_OUT,
        "iteration_002": ITERATION,
        "iteration_002/held_out": HELD_OUT | {"score": KNOWN_2},
    },
    "summed": {
        "prompts": "prompts",
        "iteration_000/held_out": {
            "generate": "policy prompts (judge.main) (judge.second) (judge.third)",
            "score": "candidates judge",
            "score_second": "candidates judge",
            "score_rule": "candidates",
            "score_third": "candidates judge",
            "mix": MIX,
        },
        "iteration_001": ITERATION
        | {
            "generate": "policy prompts (judge.main) (judge.second)",
            "score_second": "candidates judge",
            "score_rule": "candidates",
            "mix": MIX,
        },
        "iteration_001/held_out": HELD_OUT
        | {
            "generate": "policy prompts (judge.main) (judge.second) (judge.third)",
            "score_second": KNOWN,
            "score_rule": "candidates",
            "score_third": KNOWN,
            "mix": MIX,
        },
    },
    "pairwise": {
        "prompts": "prompts",
        # Such a judge reads no prompt by itself, and compares with π0's responses, not with the known ones.
        "iteration_000/held_out": FIRST | {"generate": "policy prompts"},
        "iteration_001": ITERATION | {"generate": "policy prompts"},
        "iteration_001/held_out": HELD_OUT
        | {"generate": "policy prompts", "score": "against candidates judge"},
        "iteration_002": ITERATION | {"generate": "policy prompts"},
        "iteration_002/held_out": HELD_OUT
        | {
            "generate": "policy prompts",
            "score": "against candidates judge known_candidates.1 known_scores.1",
        },
    },
    "trained": {
        "sft": "data model",
        "judge": {
            "prompts": "prompts",
            "generate": "policy prompts",
            "score": "candidates",
            "pair": "candidates scores",
        },
        "reward_model": "data model on_policy",
        "prompts": "prompts",
        "iteration_000/held_out": FIRST,
        "iteration_001": ITERATION,
        "iteration_001/held_out": HELD_OUT,
    },
}


def flat(folders):
    """Stage folder → inputs."""
    inputs = {}
    for folder, stages in folders.items():
        if isinstance(stages, str):
            inputs[folder] = stages
        else:
            inputs |= {f"{folder}/{name}": keys for name, keys in stages.items()}
    return inputs


@pytest.mark.parametrize("case", ASKED)
def test_every_stage_gets_its_inputs(tmp_path, case):
    told = asked(tmp_path, CASES[case])
    assert {name: " ".join(inputs) for name, (_, inputs) in told.items()} == flat(ASKED[case])


def of_the_iterations(told):
    """Inputs of the stages that train, and of what they are trained with, by folder."""
    return {
        name: " ".join(inputs)
        for name, (_, inputs) in told.items()
        if "held_out" not in name and not name.endswith(("/generate", "/score", "/pair", "prompts"))
    }


def test_a_loss_without_a_reference_asks_for_none(tmp_path):
    assert of_the_iterations(asked(tmp_path, CASES["simpo"])) == {"iteration_001/dpo": "pairs policy"}


def test_inpo_has_a_second_anchor_once_there_is_one(tmp_path):
    assert of_the_iterations(asked(tmp_path, CASES["inpo"])) == {
        "iteration_001/reference": "model pairs",
        "iteration_001/dpo": "pairs policy reference",
        "iteration_002/reference": "model pairs",
        "iteration_002/reference_previous": "model pairs",
        "iteration_002/dpo": "pairs policy reference reference_previous",
    }


def test_raft_makes_no_pairs(tmp_path):
    told = asked(tmp_path, CASES["raft"] | {"pair.length_penalty": 0.5})
    assert of_the_iterations(told) == {"iteration_001/raft": "candidates model scores"}
    assert "iteration_001/pair" not in told and "iteration_001/held_out/reference" in told
    assert told["iteration_001/raft"][0]["pairing"]["length_penalty"] == 0.5


def test_replayed_pairs_bring_their_log_probabilities_along(tmp_path):
    assert of_the_iterations(asked(tmp_path, CASES["replay"])) == {
        "replay/preferences": "data policy",
        "replay/reference": "model pairs",
        "iteration_001/reference": "model pairs",
        "iteration_001/dpo": "pairs pairs.replay policy reference reference.replay",
        "iteration_002/reference": "model pairs",
        "iteration_002/dpo": "pairs pairs.iteration_001 pairs.replay policy "
        "reference reference.iteration_001 reference.replay",
    }


def test_under_the_previous_policy_replayed_pairs_are_asked_for_anew(tmp_path):
    told = of_the_iterations(asked(tmp_path, CASES["replay_previous"]))
    assert [name for name in told if name.startswith("iteration_003/")] == [
        "iteration_003/reference",
        "iteration_003/reference_of_replay",
        "iteration_003/reference_of_iteration_002",
        "iteration_003/dpo",
    ], "of the last iteration alone"
    assert "replay/reference" not in told


def test_given_pairs_take_the_place_of_sampled_ones(tmp_path):
    told = asked(tmp_path, CASES["given"])
    of_the_iteration = {name: " ".join(inputs) for name, (_, inputs) in told.items() if "001/" in name}
    assert of_the_iteration == {
        "iteration_001/preferences": "data policy",
        "iteration_001/reference": "model pairs",
        "iteration_001/dpo": "pairs policy reference",
        **flat({"iteration_001/held_out": HELD_OUT}),
    }


def test_each_iteration_samples_its_own_prompts_and_the_evaluation_all_held_out_ones(tmp_path):
    told = asked(tmp_path, {"num_iterations": 2, "prompts.num_per_iteration": 5, "evaluate.n": 3})
    sampled = {name: config for name, (config, _) in told.items() if name.endswith("generate")}
    shown = {name: (each["iteration"], each["slice"], each["n"]) for name, each in sampled.items()}
    assert shown == {
        "iteration_000/held_out/generate": (0, None, 3),
        "iteration_001/generate": (1, [0, 5], 8),
        "iteration_001/held_out/generate": (1, None, 3),
        "iteration_002/generate": (2, [5, 10], 8),
        "iteration_002/held_out/generate": (2, None, 3),
    }


def test_a_set_for_each_iteration_is_sampled_from_its_beginning(tmp_path):
    told = asked(tmp_path, CASES["sets"] | {"prompts.num_per_iteration": 5, "prompts.num_held_out": 2})
    assert [told[f"iteration_00{t}/generate"][0]["slice"] for t in (1, 2)] == [[0, 5], [0, 5]]
    # They were cut off the first set.
    assert [told[name][0]["num_held_out"] for name in ("prompts", "iteration_002/prompts")] == [2, 0]


def test_held_out_responses_are_scored_whole_and_pairs_as_dpo_cuts_them(tmp_path):
    told = asked(tmp_path, {"dpo.max_length": 99})
    assert told["iteration_001/reference"][0]["max_length"] == 99
    assert told["iteration_001/held_out/reference"][0]["max_length"] is None


def test_the_judges_own_samples_are_made_and_paired_whatever_the_policy_is_trained_on(tmp_path):
    settings = CASES["trained"] | {
        "reward_model.on_policy.n": 6,
        "reward_model.on_policy.max_pairs_per_prompt": 2,
        "pair.min_margin": 0.5,
    }
    told = asked(tmp_path, settings)
    sampling, pairing = told["judge/generate"][0], told["judge/pair"][0]
    assert (sampling["n"], sampling["temperatures"], sampling["iteration"]) == (6, [1.0], 0)
    assert (pairing["max_pairs_per_prompt"], pairing["truncated"], pairing["min_margin"]) == (2, "allow", 0.0)
    assert told["judge/prompts"][0]["num_held_out"] == 0 and told["judge/score"][0]["rule"] == RULE


def test_weights_of_summed_judges_go_by_name(tmp_path):
    others = {"second": OtherJudge(path="second", weight=0.5), "rule": OtherJudge(rule=RULE, weight=-1.0)}
    told = asked(tmp_path, {"reward_model.others": others, "reward_model.weight": 2.0})
    assert told["iteration_001/mix"][0] == {"weights": {"main": 2.0, "second": 0.5, "rule": -1.0}}


def test_code_runs_only_of_the_judges_that_may(tmp_path):
    others = {"second": OtherJudge(path="second", trust_remote_code=True), "rule": OtherJudge(rule=RULE)}
    told = asked(tmp_path, {"reward_model.others": others, "evaluate.judges": {"third": "third"}})
    trusted = {name: told[f"{name}/generate"][0]["trusted_judges"] for name in ("iteration_001",)}
    assert trusted == {"iteration_001": ["second"]}
    assert told["iteration_001/score_second"][0]["trust_remote_code"] is True
    for name in ("score", "score_rule", "held_out/score_third"):
        assert told[f"iteration_001/{name}"][0]["trust_remote_code"] is False


def test_a_pairwise_judge_is_told_how_many_to_compare(tmp_path):
    told = asked(tmp_path, CASES["pairwise"])
    config = told["iteration_001/score"][0]
    assert (config["kind"], config["opponents"], config["url"]) == ("pairwise", 3, None)
    assert "kind" not in asked(tmp_path / "scalar", {})["iteration_001/score"][0]


def test_a_judge_of_own_code_is_refused_unless_it_may_run_it(tmp_path):
    auto_map = {"AutoModelForSequenceClassification": "modeling.Judge"}
    with pytest.raises(ModelError, match=r"modeling\.Judge"):
        asked(tmp_path, {}, auto_map=auto_map)
    asked(tmp_path / "trusted", {"reward_model.trust_remote_code": True}, auto_map=auto_map)
    asked(tmp_path / "pairwise", CASES["pairwise"], auto_map=auto_map)


def test_greedy_answers_are_of_the_first_held_out_prompts(tmp_path):
    told = asked(tmp_path, {"evaluate.greedy": 5, "evaluate.n": 3})
    assert {name for name in told if name.endswith("/greedy")} == {
        "iteration_000/held_out/greedy",
        "iteration_001/held_out/greedy",
    }
    for iteration in ("iteration_000", "iteration_001"):
        sampled, inputs = told[f"{iteration}/held_out/generate"]
        greedy = told[f"{iteration}/held_out/greedy"]
        assert greedy == (sampled | {"n": 1, "temperatures": [0.0], "slice": [0, 5]}, inputs)
        assert sampled["n"] == 3
