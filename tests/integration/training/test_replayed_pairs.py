"""DPO on pairs of several origins, against several anchors or none."""

from __future__ import annotations

import json
import shutil

import pytest

from rlhf.config.choices import Loss
from rlhf.config.schema import ReferenceConfig
from rlhf.config.training import DpoConfig
from rlhf.data.shards import shard_name, shard_paths
from rlhf.errors import DataError
from rlhf.training.pair_file import Anchor, PairSource, TrainingPairs, write_pair_file
from tests.stage_runner import make_job, run_here, run_ranks
from tests.tiny import random_pairs, tiny_llama, write_pairs

MAX_LENGTH = 50


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two sets of pairs, and the same in one folder; each with its log-probabilities under two models."""
    folder = tmp_path_factory.mktemp("replayed")
    for number, name in enumerate(("policy", "anchor", "other"), start=1):
        tiny_llama(folder / name, number)
    rows = random_pairs(15)
    write_pairs(folder / "first", rows[:9], 9)
    write_pairs(folder / "second", rows[9:], 6)
    (folder / "both").mkdir()
    for number, name in enumerate(("first", "second")):
        [shard] = shard_paths(folder / name)
        shutil.copy(shard, folder / "both" / shard_name(number))
    for pairs in ("first", "second", "both"):
        for model in ("anchor", "other"):
            inputs = {"model": folder / model, "pairs": folder / pairs}
            out = folder / f"{pairs}_{model}"
            run_here(make_job("reference", ReferenceConfig(), inputs, out, max_length=MAX_LENGTH))
    return folder


def trained(world, out, inputs, **settings):
    """Counts, and the training's steps."""
    section = DpoConfig(learning_rate=1e-3, batch_size=4, max_length=MAX_LENGTH, gradient_checkpointing=False)
    for key, value in settings.items():
        setattr(section, key, value)
    folders = {name: world / folder for name, folder in inputs.items()}
    outcome = run_ranks(make_job("dpo", section, {"policy": world / "policy", **folders}, out))
    return outcome.counts, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_replayed_pairs_train_as_if_they_were_the_iterations_own(world, tmp_path):
    one = {"pairs": "both", "reference": "both_anchor"}
    two = {
        "pairs": "first",
        "reference": "first_anchor",
        "pairs.iteration_001": "second",
        "reference.iteration_001": "second_anchor",
    }
    counts, steps = trained(world, tmp_path / "one", one)
    counts_of_two, steps_of_two = trained(world, tmp_path / "two", two)
    assert steps == steps_of_two
    assert counts_of_two == counts | {"pairs/own": 9, "pairs/iteration_001": 6}
    assert not [key for key in counts if key.startswith("pairs/")], (
        "of one origin there is nothing to tell apart"
    )


def load_pairs(pairs, anchor, path):
    write_pair_file(path, [PairSource("own", pairs, anchor)], MAX_LENGTH)
    return TrainingPairs(path)


def test_inpo_is_held_against_both_anchors(world, tmp_path):
    share = 0.25
    reference, other = world / "both_anchor", world / "both_other"
    mixed = load_pairs(world / "both", Anchor(reference, other, share), tmp_path / "mixed")
    first = load_pairs(world / "both", Anchor(reference), tmp_path / "first")
    second = load_pairs(world / "both", Anchor(other), tmp_path / "second")
    for each, one, two in zip(mixed, first, second, strict=True):
        assert each.ref_chosen == pytest.approx(0.25 * one.ref_chosen + 0.75 * two.ref_chosen)
        assert each.ref_rejected == pytest.approx(0.25 * one.ref_rejected + 0.75 * two.ref_rejected)


def test_a_second_anchor_of_equal_weights_changes_nothing(world, tmp_path):
    inputs = {"pairs": "both", "reference": "both_anchor"}
    inpo = {"loss": Loss.inpo, "beta": 0.05, "initial_share": 0.5}
    _, alone = trained(world, tmp_path / "alone", inputs, **inpo)
    _, twice = trained(world, tmp_path / "twice", inputs | {"reference_previous": "both_anchor"}, **inpo)
    assert alone == twice
    _, mixed = trained(world, tmp_path / "mixed", inputs | {"reference_previous": "both_other"}, **inpo)
    assert mixed[0]["loss"] != alone[0]["loss"]


def test_simpo_needs_no_log_probabilities(world, tmp_path):
    settings = {"loss": Loss.simpo, "beta": 2.0}
    counts, steps = trained(world, tmp_path / "simpo", {"pairs": "both"}, num_epochs=8, **settings)
    assert counts["pairs"] == 15
    assert steps[-1]["loss"] < steps[0]["loss"]
    # Its rewards are β times log-probabilities per token, so that long responses are none the worse.
    assert -2 * 20 < steps[0]["rewards/chosen"] < 0


def test_log_probabilities_of_other_pairs_are_refused(world, tmp_path):
    with pytest.raises(DataError, match="does not go with"):
        load_pairs(
            world / "both", Anchor(world / "both_anchor", world / "first_other", 0.5), tmp_path / "pairs"
        )
    turned = tmp_path / "turned"
    write_pairs(turned, random_pairs(9)[::-1], 9)
    with pytest.raises(DataError, match="stands where"):
        load_pairs(turned, Anchor(world / "first_anchor"), tmp_path / "pairs")


def test_scores_reach_the_loss(world, tmp_path):
    inputs = {"pairs": "both", "reference": "both_anchor"}
    _, sure = trained(world, tmp_path / "sure", inputs, loss=Loss.score_aware, score_scale=1e6)
    _, plain = trained(world, tmp_path / "plain", inputs)
    _, unsure = trained(world, tmp_path / "unsure", inputs, loss=Loss.score_aware, score_scale=0.01)
    assert sure == plain, "a judge without a doubt is plain DPO"
    assert unsure != plain
