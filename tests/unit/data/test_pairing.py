"""Pair strategies: the paper's rule, its variants, and the reference scripts' defects."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.limits import check_stages
from rlhf.config.schema import Config, PairConfig
from rlhf.data.pairing import Drop, Terminators, make_pairs, training_target
from rlhf.data.records import Candidate, PreferencePair, ScoredPrompt
from rlhf.errors import ConfigError, DataError

EOT, EOS = 9, 8
TERMINATORS = Terminators(EOT, frozenset({EOT, EOS}))
MANY = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def candidate(text: str, finished: bool = True, end: int = EOS) -> Candidate:
    ids = [ord(c) % 7 + 10 for c in text] + ([end] if finished else [])
    return Candidate(ids, text, "stop" if finished else "length", -1.0, 0, 1.0)


def prompt(*scored: tuple[str, float] | tuple[str, float, bool], name: str = "p") -> ScoredPrompt:
    """`(text, score)` or `(text, score, finished)` for each candidate."""
    return ScoredPrompt(
        id=name,
        messages=({"role": "user", "content": "?"},),
        prompt_token_ids=[1, 2],
        candidates=tuple(candidate(s[0], s[2] if len(s) == 3 else True) for s in scored),
        scores=tuple(float(s[1]) for s in scored),
    )


def make(p: ScoredPrompt, seed: int = 0, **settings_: object) -> list[PreferencePair] | Drop:
    return make_pairs(p, PairConfig(**settings_), TERMINATORS, seed)  # type: ignore[arg-type]


def texts(result: list[PreferencePair] | Drop) -> list[tuple[str, str]] | Drop:
    return result if isinstance(result, Drop) else [(pair.chosen, pair.rejected) for pair in result]


ABC = prompt(("a", 1.0), ("b", 3.0), ("c", -2.0), ("d", 2.0))


def test_best_worst_takes_the_extremes() -> None:
    assert texts(make(ABC)) == [("b", "c")]


def test_best_second_takes_the_runner_up() -> None:
    assert texts(make(ABC, strategy=Strategy.best_second)) == [("b", "d")]


def test_best_sigma_rejects_what_lies_near_two_standard_deviations_below_the_mean() -> None:
    # By hand: they sum to 2, their squares to 166.5, so the mean is 0.1, the variance 8.325 − 0.01 and the standard
    # deviation 2.8836. Two of it below the mean is −5.667, to which −5 is nearest.
    scores = [4.0] + [1.0] * 14 + [0.5, 0.0, -1.0, -5.0, -10.5]
    assert (sum(scores), sum(score**2 for score in scores)) == (2.0, 166.5)
    p = prompt(*((f"text {number}", score) for number, score in enumerate(scores)))
    assert texts(make(p, strategy=Strategy.best_sigma)) == [("text 0", "text 18")]
    assert texts(make(p, strategy=Strategy.best_worst)) == [("text 0", "text 19")]


def test_best_sigma_of_few_is_best_worst() -> None:
    for scores in ([1.0, 0.0], [3.0, 2.0, 0.5, 0.0], [0.1, 0.7, 0.3, 0.9, 0.2, 0.4]):
        p = prompt(*((f"text {number}", score) for number, score in enumerate(scores)))
        assert texts(make(p, strategy=Strategy.best_sigma)) == texts(make(p, strategy=Strategy.best_worst))


def test_best_second_skips_a_tie_and_a_copy_of_the_best() -> None:
    p = prompt(("a", 3.0), ("b", 3.0), ("a", 2.9), ("c", 1.0))
    assert texts(make(p, strategy=Strategy.best_second)) == [("a", "c")]


def test_best_random_draws_every_worse_one_alike() -> None:
    drawn = Counter(texts(make(ABC, seed=s, strategy=Strategy.best_random))[0] for s in range(3000))
    assert set(drawn) == {("b", "a"), ("b", "c"), ("b", "d")}
    assert all(abs(number - 1000) < 130 for number in drawn.values()), drawn


def test_random_draws_every_unordered_pair_alike_and_orients_by_score() -> None:
    """The reference's "max_random" only ever takes index 0 or 1."""
    drawn = Counter(texts(make(ABC, seed=s, strategy=Strategy.random))[0] for s in range(6000))
    assert set(drawn) == {("b", "d"), ("b", "a"), ("b", "c"), ("d", "a"), ("d", "c"), ("a", "c")}
    assert all(abs(number - 1000) < 130 for number in drawn.values()), drawn


@pytest.mark.parametrize("strategy", list(Strategy))
def test_length_penalty_selects_and_orients(strategy: Strategy) -> None:
    """The reference orients a penalised pair by the raw reward, so that the longer one wins."""
    long, short = "x" * 2000, "y" * 300
    for p in (prompt((long, 2.0), (short, 1.5)), prompt((short, 1.5), (long, 2.0))):
        assert texts(make(p, strategy=strategy)) == [(long, short)]
        (pair,) = make(p, strategy=strategy, length_penalty=0.001)
        assert (pair.chosen, pair.rejected) == (short, long)
        assert pair.chosen_penalised == pytest.approx(1.2)
        assert pair.rejected_penalised == pytest.approx(0.0)
        assert (pair.chosen_score, pair.rejected_score) == (1.5, 2.0)
        assert (pair.chosen_rank, pair.rejected_rank) == (0, 1)
        assert (pair.chosen_chars, pair.rejected_chars) == (300, 2000)


def test_length_is_in_characters_not_bytes() -> None:
    (pair,) = make(prompt(("é" * 10, 1.0), ("b" * 12, 1.0)), length_penalty=0.1)
    assert pair.chosen_chars == 10
    assert pair.chosen_penalised == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("p", "settings_", "reason"),
    [
        (prompt(("a", 1.0)), {}, Drop.too_few_candidates),
        (prompt(), {}, Drop.too_few_candidates),
        (prompt(("a", math.nan), ("b", 1.0)), {}, Drop.non_finite),
        (prompt(("a", math.inf), ("b", -math.inf)), {}, Drop.non_finite),
        (prompt(("", 2.0), ("b", 1.0)), {}, Drop.empty),
        (prompt((" \n", 2.0), ("b", 1.0)), {}, Drop.empty),
        (prompt(("a", 2.0), ("a", 1.0)), {}, Drop.identical_text),
        (prompt(("a", 1.0), ("a", 1.0)), {}, Drop.identical_text),
        (prompt(("a", 1.0), ("b", 1.0), ("a", 0.5)), {"strategy": Strategy.best_second}, Drop.identical_text),
        (prompt(("a", 1.0), ("b", 1.0), ("a", 1.0)), {}, Drop.all_tied),
        (prompt(("a", 1.0), ("bb", 2.0)), {"length_penalty": 1.0}, Drop.all_tied),
        (prompt(("a", 1.0), ("b", 1.4)), {"min_margin": 0.5}, Drop.below_margin),
        (prompt(("a", 1.0, False), ("b", 2.0, False)), {}, Drop.truncated),
        (prompt(("a", 1.0, True), ("b", 2.0, False)), {}, Drop.truncated),
        (prompt(("a", 2.0, True), ("b", 1.0, False)), {"truncated": Truncated.drop}, Drop.truncated),
    ],
)
def test_reasons(p: ScoredPrompt, settings_: dict[str, object], reason: Drop) -> None:
    assert make(p, **settings_) is reason


def test_best_and_worst_of_the_same_text_drop_the_prompt() -> None:
    """The paper's rule, when the judge gives equal texts unequal scores."""
    assert make(prompt(("a", 2.0), ("b", 1.5), ("a", 1.0))) is Drop.identical_text


def test_faulty_candidates_are_left_out_and_the_rest_makes_a_pair() -> None:
    p = prompt(("a", math.inf), ("", 9.0), ("b", 1.0), ("c", 0.0), ("", -9.0), ("d", -math.inf))
    assert texts(make(p)) == [("b", "c")]


def test_never_chosen_takes_the_best_finished_one_and_may_reject_a_truncated_one() -> None:
    p = prompt(("cut good", 9.0, False), ("ok", 2.0), ("fine", 3.0), ("cut bad", 0.0, False))
    assert texts(make(p)) == [("fine", "cut bad")]
    assert texts(make(p, truncated=Truncated.allow)) == [("cut good", "cut bad")]
    assert texts(make(p, truncated=Truncated.drop)) == [("fine", "ok")]


def test_a_margin_of_exactly_min_margin_is_kept() -> None:
    assert texts(make(prompt(("a", 1.0), ("b", 1.5)), min_margin=0.5)) == [("b", "a")]


def test_ties_go_to_the_lowest_index() -> None:
    p = prompt(("a", 0.0), ("b", 1.0), ("c", 1.0), ("d", 0.0))
    assert texts(make(p)) == [("b", "a")]


def test_several_pairs_of_one_prompt() -> None:
    p = prompt(*((chr(97 + i), i) for i in range(5)))
    assert texts(make(p, max_pairs_per_prompt=4)) == [("e", "a"), ("d", "b")]
    assert texts(make(p, max_pairs_per_prompt=4, min_margin=3.0)) == [("e", "a")]


def test_num_candidates_uses_the_first_and_fewer_than_that_are_used_too() -> None:
    """In the reference a K other than the generated n drops every prompt, uncounted."""
    assert texts(make(ABC, num_candidates=2)) == [("b", "a")]
    assert texts(make(ABC, num_candidates=16)) == [("b", "c")]


def test_targets_end_with_the_template_s_end_of_turn() -> None:
    assert training_target(candidate("ab", end=EOS), TERMINATORS) == [
        *candidate("ab", finished=False).token_ids,
        EOT,
    ]
    assert training_target(candidate("ab", end=EOT), TERMINATORS) == [
        *candidate("ab", finished=False).token_ids,
        EOT,
    ]


def test_a_truncated_target_has_no_terminator() -> None:
    (pair,) = make(prompt(("good", 1.0), ("bad", 0.0, False)))
    assert pair.chosen_token_ids[-1] == EOT
    assert EOT not in pair.rejected_token_ids
    assert pair.rejected_token_ids == candidate("bad", finished=False).token_ids
    assert (pair.chosen_truncated, pair.rejected_truncated) == (False, True)


def test_a_finished_response_without_terminator_is_refused() -> None:
    with pytest.raises(DataError, match="none of the stop tokens"):
        training_target(replace(candidate("ab"), token_ids=[11, 12]), TERMINATORS)


@pytest.mark.parametrize(
    "settings_",
    [
        {"num_candidates": 1},
        {"max_pairs_per_prompt": 0},
        {"max_pairs_per_prompt": 2, "strategy": Strategy.random},
        {"min_margin": -1.0},
        {"min_margin": math.nan},
        {"length_penalty": math.inf},
    ],
)
def test_check_refuses(settings_: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="pair\\."):
        check_stages(Config(pair=PairConfig(**settings_)))  # type: ignore[arg-type]


def test_check_takes_the_defaults() -> None:
    check_stages(Config())


scored_candidates = st.lists(
    st.tuples(
        st.text(alphabet="ab ", max_size=3),
        st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf]), st.floats(-5, 5)),
        st.booleans(),
    ),
    max_size=7,
)
configs = st.builds(
    PairConfig,
    strategy=st.sampled_from(Strategy),
    truncated=st.sampled_from(Truncated),
    length_penalty=st.sampled_from([0.0, 0.001, 0.3]),
    min_margin=st.sampled_from([0.0, 0.3]),
    num_candidates=st.sampled_from([None, 2, 4]),
    max_pairs_per_prompt=st.sampled_from([1, 3]),
)


@MANY
@given(scored_candidates, configs, st.integers(0, 5))
def test_every_pair_is_valid_or_the_prompt_has_one_reason(
    scored: list[tuple[str, float, bool]], config: PairConfig, seed: int
) -> None:
    p = prompt(*scored)
    result = make_pairs(p, config, TERMINATORS, seed)
    assert result == make_pairs(p, config, TERMINATORS, seed)
    if isinstance(result, Drop):
        return
    assert 1 <= len(result) <= config.max_pairs_per_prompt
    considered = p.candidates[: config.num_candidates]
    used: list[int] = []
    for pair in result:
        assert pair.margin > 0 and pair.margin >= config.min_margin
        assert pair.chosen != pair.rejected
        assert pair.chosen.strip() and pair.rejected.strip()
        assert pair.chosen_rank < pair.rejected_rank
        assert pair.chosen in {c.text for c in considered} and pair.rejected in {c.text for c in considered}
        assert not (pair.chosen_truncated and config.truncated is not Truncated.allow)
        assert not (pair.rejected_truncated and config.truncated is Truncated.drop)
        for side in ("chosen", "rejected"):
            score, chars = getattr(pair, f"{side}_score"), getattr(pair, f"{side}_chars")
            assert getattr(pair, f"{side}_penalised") == score - config.length_penalty * chars
        used += [pair.chosen_rank, pair.rejected_rank]
    assert len(set(used)) == len(used), "pairs of a prompt are disjoint"


@MANY
@given(scored_candidates, configs)
def test_a_prompt_is_dropped_only_when_no_two_candidates_can_be_ordered(
    scored: list[tuple[str, float, bool]], config: PairConfig
) -> None:
    """For `random`, a plain double loop over the rules must agree on whether there is a pair."""
    config = replace(config, strategy=Strategy.random, min_margin=0.0, max_pairs_per_prompt=1)
    usable = [
        (text, score - config.length_penalty * len(text), finished)
        for text, score, finished in scored[: config.num_candidates]
        if math.isfinite(score) and text.strip() and (finished or config.truncated is not Truncated.drop)
    ]
    possible = any(
        a[1] > b[1] and a[0] != b[0] and (a[2] or config.truncated is Truncated.allow)
        for a in usable
        for b in usable
    )
    assert isinstance(make_pairs(prompt(*scored), config, TERMINATORS, 0), list) == possible


@MANY
@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=6, unique=True), st.sampled_from(Strategy), st.randoms()
)
def test_order_of_candidates_does_not_matter_to_the_extremes(
    scores: list[float], strategy: Strategy, rng: random.Random
) -> None:
    scored = [(f"text {i}", score) for i, score in enumerate(scores)]
    mixed = rng.sample(scored, len(scored))
    here, there = make(prompt(*scored), strategy=strategy), make(prompt(*mixed), strategy=strategy)
    assert isinstance(here, list) and isinstance(there, list)
    assert here[0].margin > 0 and there[0].margin > 0
    if strategy in (Strategy.best_worst, Strategy.best_second):
        assert texts(here) == texts(there)
    if strategy is Strategy.best_random:
        assert here[0].chosen == there[0].chosen


@pytest.mark.parametrize("strategy", [Strategy.random, Strategy.best_random])
def test_draws_depend_on_seed_and_id_alone(strategy: Strategy) -> None:
    prompts = [replace(ABC, id=f"prompt {i}") for i in range(30)]
    forward = [texts(make(p, seed=3, strategy=strategy)) for p in prompts]
    backward = [texts(make(p, seed=3, strategy=strategy)) for p in reversed(prompts)]
    other_seed = [texts(make(p, seed=4, strategy=strategy)) for p in prompts]
    assert forward == backward[::-1]
    assert forward != other_seed
    assert len(set(map(str, forward))) > 1
