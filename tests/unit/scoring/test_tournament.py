"""Scores from comparisons: arithmetic without a model."""

import pytest

from rlhf.config.choices import Engine, JudgeKind
from rlhf.config.limits import check_config
from rlhf.config.schema import Config, ScoreConfig
from rlhf.config.training import RewardModelConfig
from rlhf.errors import ConfigError
from rlhf.scoring.judge import Scored
from rlhf.scoring.tournament import Compared, Group, Tournament, opponents_of, score_groups

ASK = [{"role": "user", "content": "q"}]


class Longer:
    """P = la / (la + lb)."""

    def compare(self, comparisons):
        assert all(a != b for _, a, b in comparisons), "equal texts need no call"
        assert len({(id(m), *sorted((a, b))) for m, a, b in comparisons}) == len(comparisons), "asked twice"
        return Compared([len(a) / (len(a) + len(b)) for _, a, b in comparisons], 2 * len(comparisons), 1)


def test_round_robin_is_the_mean_probability_against_all_others():
    scored = Tournament(Longer()).score_groups([Group(ASK, ["x", "xxx", "xx"])])
    assert scored.scores == pytest.approx([(1 / 4 + 1 / 3) / 2, (3 / 4 + 3 / 5) / 2, (2 / 3 + 2 / 5) / 2])
    assert sum(scored.scores) == pytest.approx(1.5)
    assert (scored.num_calls, scored.num_truncated) == (6, 1)


def test_equal_texts_tie_without_a_call():
    scored = Tournament(Longer()).score_groups(
        [Group(ASK, ["x", "xxx", "x"]), Group(ASK, ["y", "y"]), Group(ASK, ["z"])]
    )
    assert scored.scores == pytest.approx([(1 / 4 + 1 / 2) / 2, 3 / 4, (1 / 4 + 1 / 2) / 2, 0.5, 0.5, 0.5])
    assert scored.num_calls == 2


def test_two_responses_score_p_and_one_minus_p():
    first, second = Tournament(Longer()).score_groups([Group(ASK, ["xxx", "x"])]).scores
    assert first == 0.75 and second == 1 - first


def test_against_another_policy():
    scored = Tournament(Longer()).score_groups([Group(ASK, ["xxx", "x"], ["x", "xx"])])
    assert scored.scores == pytest.approx([(3 / 4 + 3 / 5) / 2, (1 / 2 + 1 / 3) / 2])
    assert scored.num_calls == 2 * 3


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("wanted", [2, 3, 4, 7])
def test_a_ring_is_symmetric_and_gives_everyone_equally_many(n, wanted):
    found = [opponents_of(i, n, wanted) for i in range(n)]
    assert all(
        i not in others and all(i in found[other] for other in others) for i, others in enumerate(found)
    )
    assert len({len(others) for others in found}) == 1
    assert min(wanted, n - 1) <= len(found[0]) <= min(wanted + 1, n - 1)


def test_fewer_opponents_cost_fewer_calls():
    texts = ["x" * length for length in range(1, 9)]
    assert Tournament(Longer()).score_groups([Group(ASK, texts)]).num_calls == 8 * 7
    cheap = Tournament(Longer(), opponents=3).score_groups([Group(ASK, texts)])
    assert cheap.num_calls == 8 * 3
    # Longer's odds are la / lb, so strengths explain them all and the unseen comparisons come out as if made.
    assert cheap.scores == pytest.approx(Tournament(Longer()).score_groups([Group(ASK, texts)]).scores)


def test_duplicates_and_nan_among_few_opponents():
    texts = ["x", "xx", "x", "xxx", "xxxx", "x"]
    full = Tournament(Longer()).score_groups([Group(ASK, texts)])
    cheap = Tournament(Longer(), opponents=2).score_groups([Group(ASK, texts)])
    assert cheap.num_calls < full.num_calls
    assert cheap.scores == pytest.approx(full.scores)

    class Broken(Longer):
        def compare(self, comparisons):
            return Compared([float("nan")] * len(comparisons), 0)

    assert all(
        s != s
        for s in Tournament(Broken(), opponents=2).score_groups([Group(ASK, ["a", "b", "c", "d"])]).scores
    )


def test_a_judge_of_single_responses_has_the_same_interface():
    class Length:
        def score(self, items):
            return Scored([float(len(text)) for _, text in items])

    assert score_groups(Length(), [Group(ASK, ["x", "xx"]), Group(ASK, ["xxx"])]) == Scored([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("kind", "score", "says"),
    [
        (JudgeKind.scalar, ScoreConfig(opponents=3), "score.opponents=3"),
        (JudgeKind.pairwise, ScoreConfig(opponents=1), "score.opponents=1"),
        (JudgeKind.pairwise, ScoreConfig(engine=Engine.vllm), "score.engine=vllm"),
    ],
)
def test_what_cannot_be_is_refused(kind, score, says):
    check_config(
        Config(reward_model=RewardModelConfig(kind=JudgeKind.pairwise), score=ScoreConfig(opponents=3))
    )
    with pytest.raises(ConfigError, match=says):
        check_config(Config(reward_model=RewardModelConfig(kind=kind), score=score))
