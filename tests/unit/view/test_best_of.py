"""Best of k: the formula against every draw, and the share of pairs against the loop's own pairing."""

from __future__ import annotations

import itertools
import math
import random
from statistics import fmean

import pytest

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.schema import PairSettings
from rlhf.data.pairing import Drop, make_pairs
from rlhf.data.records import Candidate, ScoredPrompt
from rlhf.view.best_of import BestOf, best_and_worst, ladder, weights
from rlhf.view.pair_tables import best_of_section
from tests.unit.view.test_pair_lab import tables

SCORES = [[1.0], [1.0, 2.0], [3.0, -1.0, 2.5, 2.5, 0.0], [1.0] * 4, [-5.0, 1e9, 0.0, 3.0, 7.5, 7.5, 7.5, 2.0]]


@pytest.mark.parametrize("scores", SCORES)
def test_the_formula_is_the_mean_over_every_draw(scores):
    for k in range(1, len(scores) + 1):
        draws = list(itertools.combinations(scores, k))
        best, worst = best_and_worst(scores, k)
        assert best == pytest.approx(fmean(map(max, draws)))
        assert worst == pytest.approx(fmean(map(min, draws)))
    assert best_and_worst(scores, len(scores)) == (max(scores), min(scores))
    assert best_and_worst(scores, 100) == (max(scores), min(scores)), "no more than there are"


def test_weights_are_shares():
    for num_scores in (1, 2, 8, 64):
        for k in range(1, num_scores + 1):
            assert weights(num_scores, k).sum() == pytest.approx(1)
    assert weights(3, 2) == pytest.approx([0, 1 / 3, 2 / 3])


def test_the_ladder():
    assert [ladder(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def prompts(num, n, seed):
    rng = random.Random(seed)
    return [[(rng.choice("abcde "), float(rng.randint(0, 3))) for _ in range(n)] for _ in range(num)]


@pytest.mark.parametrize(
    "settings",
    [
        PairSettings(),
        PairSettings(min_margin=2.0, length_penalty=0.5),
        PairSettings(strategy=Strategy.best_random, truncated=Truncated.drop),
        PairSettings(strategy=Strategy.random, num_candidates=2),
    ],
)
def test_the_share_of_pairs_is_that_of_every_draw(settings):
    of_prompts = prompts(12, 6, 1)
    best_of = BestOf(6, settings, 42, len(of_prompts))
    best_of.add(*tables(*of_prompts))
    assert best_of.is_exact
    for each in best_of.of:
        with_pairs = draws = 0
        for number, responses in enumerate(of_prompts):
            for drawn in itertools.combinations(responses, each.k):
                candidates = tuple(Candidate([], text, "stop", 0.0, 0, 1.0) for text, _ in drawn)
                prompt = ScoredPrompt(f"p{number}", (), [], candidates, tuple(score for _, score in drawn))
                all_drawn = PairSettings(**(vars(settings) | {"num_candidates": None}))
                with_pairs += not isinstance(make_pairs(prompt, all_drawn, None, 42), Drop)
                draws += 1
        assert (each.num_with_pairs, each.num_draws) == (with_pairs, draws)


def test_all_n_give_what_the_run_has():
    of_prompts = prompts(50, 8, 2)
    best_of = BestOf(8, PairSettings(), 42, 50)
    best_of.add(*tables(*of_prompts))
    last = best_of.of[-1]
    assert last.k == 8 and last.num_draws == 50
    assert last.best / 50 == pytest.approx(fmean(max(score for _, score in each) for each in of_prompts))


def test_of_many_prompts_some_draws_stand_for_all_and_are_the_same_each_time():
    of_prompts = prompts(40, 8, 3)

    def drawn():
        best_of = BestOf(8, PairSettings(), 42, 20_000)
        best_of.add(*tables(*of_prompts))
        return best_of

    one = drawn()
    assert not one.is_exact and one.draws == 4
    assert [each.num_draws for each in one.of] == [160, 160, 160, 40]
    assert one.of == drawn().of
    assert "4 random choices a prompt" in best_of_section(one).notes[0]
    assert BestOf(8, PairSettings(), 42, 10**9).draws == 1


def test_scores_that_are_not_finite_are_left_out():
    best_of = BestOf(2, PairSettings(), 42, 2)
    best_of.add(*tables([("a", math.nan), ("b", 1.0)], [("a", math.inf), ("b", math.nan)]))
    assert [(each.k, each.best, each.margin, each.num_scored) for each in best_of.of] == [
        (1, 1.0, 0.0, 1),
        (2, 1.0, 0.0, 1),
    ]
    empty = BestOf(2, PairSettings(), 42, 0)
    assert best_of_section(empty).rows == [["1", "–", "–", "–", "0.0 %"], ["2", "–", "–", "–", "0.0 %"]]
