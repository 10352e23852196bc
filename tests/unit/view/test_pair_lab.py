"""The pair laboratory makes pairs as the loop does, and says what others would have been."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.schema import PairSettings
from rlhf.config.view_tools import OtherPairs
from rlhf.data.pair_columns import pair_table
from rlhf.data.schemas import CANDIDATES_SCHEMA, PAIRS_SCHEMA, SCORES_SCHEMA
from rlhf.data.scored_shards import read_terminators, scored_shard
from rlhf.data.shards import read_table, shard_name, shard_paths
from rlhf.errors import ConfigError, DataError
from rlhf.run.artifact import open_artifact
from rlhf.view.best_of import BestOf
from rlhf.view.other_pairs import tried_settings
from rlhf.view.pair_lab import Outcome, outcomes_of
from rlhf.view.pair_tables import pair_section
from rlhf.view.run_folder import open_run
from rlhf.view.scored_runs import read_of, scored_iterations
from rlhf.view.sound import sound
from tests.unit.old_run import old_run, remake


@pytest.fixture
def run(tmp_path):
    return old_run(tmp_path)


def iterations_of(folder, *wanted):
    return scored_iterations(sound(open_run(str(folder)), read_of), wanted)


def no_draws():
    return BestOf(1, PairSettings(), 42, 0)


def test_the_runs_own_settings_give_its_very_pairs(run):
    iterations, notes = iterations_of(run)
    assert [each.iteration for each in iterations] == [1, 2] and notes == []
    for scored in iterations:
        made = []
        stored = []
        for path in shard_paths(scored.candidates.path):
            name = path.name
            tables = scored_shard(scored.candidates.path / name, scored.scores.path / name)
            terminators = read_terminators(scored.candidates.path)
            made.append(pair_table(*tables, scored.settings, terminators, scored.seed)[0])
            stored.append(read_table(scored.pairs.path / name))
        assert pa.concat_tables(made).equals(pa.concat_tables(stored).cast(PAIRS_SCHEMA))
        (outcome,) = outcomes_of(scored, [scored.settings], no_draws())
        recorded = scored.pairs
        assert outcome.counts == Counter(recorded.counts)
        assert outcome.shared == recorded.counts["pairs"]
        margin = np.concatenate(outcome.margins).mean()
        assert margin == pytest.approx(recorded.metrics["mean_margin"])
        gap = recorded.metrics["mean_chosen_chars"] - recorded.metrics["mean_rejected_chars"]
        assert outcome.char_gap / outcome.pairs == pytest.approx(gap)


def test_other_settings_give_what_the_stage_would(run):
    (scored,), _ = iterations_of(run, 1)
    others = [
        replace(scored.settings, strategy=strategy, length_penalty=penalty, min_margin=1.0)
        for strategy in Strategy
        for penalty in (0.0, 0.3)
    ]
    outcomes = outcomes_of(scored, [scored.settings, *others], no_draws())
    own = set()
    for each, outcome in zip([scored.settings, *others], outcomes, strict=True):
        keys = set()
        longer = 0
        for path in shard_paths(scored.candidates.path):
            tables = scored_shard(path, scored.scores.path / path.name)
            terminators = read_terminators(scored.candidates.path)
            pairs, _ = pair_table(*tables, each, terminators, scored.seed)
            for row in pairs.to_pylist():
                keys.add((row["id"], row["chosen"], row["rejected"]))
                longer += len(row["chosen_token_ids"]) > len(row["rejected_token_ids"])
        own = own or keys
        assert (outcome.pairs, outcome.shared, outcome.longer) == (len(keys), len(keys & own), longer)
        assert outcome.counts["prompts"] == 10
        assert outcome.counts["prompts_with_pairs"] + sum(outcome.prompts_without.values()) == 10


def test_the_scores_are_those_that_the_pairs_were_made_of(run):
    (scored,), _ = iterations_of(run, 1)
    assert scored.scores.path.name == "mix"
    digest = open_artifact(run / "iteration_001" / "score").digest
    remake(run / "iteration_001" / "pair", lambda record: record["identity"]["inputs"].update(scores=digest))
    (scored,), _ = iterations_of(run, 1)
    assert scored.scores.path.name == "score"
    remake(
        run / "iteration_001" / "pair", lambda record: record["identity"]["inputs"].update(scores="f" * 64)
    )
    found, notes = iterations_of(run)
    assert [each.iteration for each in found] == [2] and "others than its pairs were made of" in notes[0]


def test_before_the_pairs_are_made_the_settings_are_the_runs(run):
    shutil.rmtree(run / "iteration_002" / "pair")
    _, scored = iterations_of(run)[0]
    assert scored.pairs is None and scored.settings.truncated is Truncated.allow and scored.seed == 42
    assert scored.scores.path.name == "mix"
    (outcome,) = outcomes_of(scored, [scored.settings], no_draws())
    assert outcome.shared == outcome.pairs == 10
    shutil.rmtree(run / "iteration_002" / "mix")
    found, notes = iterations_of(run)
    assert [each.iteration for each in found] == [1] and notes, "the sum is not there yet"


def test_damage_is_told_and_the_other_iterations_are_looked_at(run):
    shard = next((run / "iteration_001" / "generate").glob("*.parquet"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    (run / "iteration_002" / "score").rename(run / "iteration_002" / ".score.partial")
    found, notes = iterations_of(run)
    assert [each.iteration for each in found] == [2]
    assert "iteration 1 is left out:" in notes[0] and "SHA-256" in notes[0]
    with pytest.raises(ConfigError, match=r"iterations=1: .* but of 2\. iteration 1 is left out"):
        iterations_of(run, 1)
    shutil.rmtree(run / "iteration_002")
    with pytest.raises(DataError, match=r"no iteration has scored candidates\. iteration 1 is left out"):
        iterations_of(run)
    shutil.rmtree(run / "iteration_001")
    with pytest.raises(DataError, match=r"trains on given pairs \(pair.data\)"):
        iterations_of(run)


def other(**values):
    return OtherPairs(**{key: value if isinstance(value, list) else [value] for key, value in values.items()})


def test_every_value_with_every_value():
    own = PairSettings()
    tried, notes = tried_settings(
        other(strategy=list(Strategy)[:2], length_penalty=[0.0, 0.5], num_candidates=None), own, 8
    )
    assert [each.name for each in tried] == [
        "own (strategy=best_worst length_penalty=0.0 num_candidates=null)",
        "strategy=best_worst length_penalty=0.5 num_candidates=null",
        "strategy=best_random length_penalty=0.0 num_candidates=null",
        "strategy=best_random length_penalty=0.5 num_candidates=null",
    ]
    assert notes == [] and tried[0].changes == {}
    assert tried_settings(OtherPairs(), own, 8)[0] == [type(tried[0])("own", {})]
    assert len(tried_settings(other(min_margin=[1.0, 1.0]), own, 8)[0]) == 2


def test_combinations_that_do_not_go_together_are_told():
    tried, notes = tried_settings(
        other(strategy=[Strategy.best_worst, Strategy.random], max_pairs_per_prompt=[1, 2]), PairSettings(), 8
    )
    assert len(tried) == 3
    assert notes == [
        "strategy=random max_pairs_per_prompt=2 is left out: pair.max_pairs_per_prompt=2: only with "
        "pair.strategy=best_worst, not random."
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"length_penalty": [-1.0, 0.0]}, "pair.length_penalty=-1.0: must not be negative"),
        ({"min_margin": float("inf")}, "pair.min_margin=inf: .*finite"),
        ({"num_candidates": [1, 4]}, "pair.num_candidates=1: a pair needs two"),
        ({"num_candidates": [16, 4]}, "pair.num_candidates=16: the run has 8 responses"),
        ({"max_pairs_per_prompt": 0}, "pair.max_pairs_per_prompt=0: must be a positive number"),
        (
            {"strategy": Strategy.random, "max_pairs_per_prompt": 2},
            "pair.max_pairs_per_prompt=2: only with pair.strategy=best_worst",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        tried_settings(other(**values), PairSettings(), 8)


def tables(*prompts):
    """Shards of prompts, each a list of (text, score)."""
    candidates = []
    scores = []
    for number, responses in enumerate(prompts):
        each = {"finish_reason": "stop", "logprob": 0.0, "seed": 1, "temperature": 1.0, "token_ids": [5]}
        sampled = [each | {"text": text} for text, _ in responses]
        candidates.append({"id": f"p{number}", "messages": [], "prompt_token_ids": [], "candidates": sampled})
        scores.append({"id": f"p{number}", "scores": [score for _, score in responses]})
    return (
        pa.Table.from_pylist(candidates, schema=CANDIDATES_SCHEMA),
        pa.Table.from_pylist(scores, schema=SCORES_SCHEMA),
    )


def outcome_of(settings, *prompts):
    outcome = Outcome()
    pairs, counts = pair_table(*tables(*prompts), settings, None, 42)
    outcome.add(pairs, counts, Counter())
    return outcome


def test_the_table_of_an_outcome():
    outcome = outcome_of(
        PairSettings(),
        [("long text", 2.0), ("short", 1.0)],
        [("a", 1.0), ("bcd", 4.0)],
        [("a", 1.0), ("b", 1.0)],
    )
    tried, _ = tried_settings(OtherPairs(), PairSettings(), 2)
    found = pair_section("Iteration 1", tried, [outcome], 4)
    assert found.rows == [
        ["own", "2", "66.7 %", "2.000", "1.50 2.00 2.50", "+0.0", "+3.0", "0.0 %", "0 (0.0 %)", "all_tied 1"]
    ]
    nothing = outcome_of(PairSettings(), [("a", 1.0), ("b", 1.0)])
    assert pair_section("", tried, [nothing], 0).rows == [
        ["own", "0", "0.0 %", "–", "–", "–", "–", "–", "–", "all_tied 1"]
    ]


def test_pairs_that_are_there_twice_are_shared_as_often_as_the_run_has_them():
    prompt = [("a", 4.0), ("a", 3.0), ("b", 2.0), ("b", 1.0)]
    pairs, counts = pair_table(*tables(prompt), PairSettings(max_pairs_per_prompt=2), None, 42)
    outcome = Outcome()
    outcome.add(pairs, counts, Counter({("p0", "a", "b"): 1}))
    assert (outcome.pairs, outcome.shared) == (2, 1)


def test_shards_of_any_number(run):
    assert shard_name(0) in {path.name for path in shard_paths(run / "iteration_001" / "generate")}
