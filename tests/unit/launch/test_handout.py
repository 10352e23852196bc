"""Who makes which shard: every shard once, and none is hoarded."""

import random

import pytest

from rlhf.launch.handout import LATER, Handout


def test_who_holds_none_gets_one_or_the_end():
    shards = Handout([3, 5], 3)
    assert [shards.take(rank) for rank in (2, 0, 1)] == [3, 5, None]
    assert shards.in_hand(2) == [3] and shards.num_made() == 0


def test_the_first_worker_to_start_does_not_hoard():
    """Held-out prompts are cut into as many shards as there are workers: each is to have one."""
    shards = Handout(list(range(4)), 4)
    assert [shards.take(0) for _ in range(3)] == [0, LATER, LATER]
    assert [shards.take(rank) for rank in (1, 2, 3)] == [1, 2, 3]
    assert shards.take(0) is None


def test_a_worker_begins_the_next_shard_while_it_makes_one():
    shards = Handout(list(range(6)), 2)
    assert [shards.take(0) for _ in range(4)] == [0, 1, 2, LATER]
    shards.made(0, 1)
    # 5 are not made yet, 3 of them for it.
    assert shards.take(0) == 3 and shards.in_hand(0) == [0, 2, 3]
    assert (shards.num_made(), shards.total) == (1, 6)


def test_the_last_shard_goes_to_the_worker_that_has_nothing():
    shards = Handout(list(range(3)), 2)
    assert [shards.take(0), shards.take(1), shards.take(0)] == [0, 1, 2]
    shards = Handout(list(range(2)), 2)
    assert [shards.take(0), shards.take(0), shards.take(1)] == [0, LATER, 1]


def test_a_slow_worker_keeps_only_what_it_began():
    shards = Handout(list(range(20)), 2)
    slow = shards.take(0)
    fast = []
    while (shard := shards.take(1)) not in (None, LATER):
        fast.append(shard)
        shards.made(1, shard)
    assert slow == 0 and fast == list(range(1, 20))


@pytest.mark.parametrize("seed", range(50))
def test_every_shard_is_made_once_whoever_asks_and_whenever(seed):
    rng = random.Random(seed)
    numbers = sorted(rng.sample(range(100), rng.randint(0, 30)))
    num_workers = rng.randint(1, 9)
    shards = Handout(numbers, num_workers)
    made = []
    working = set(range(num_workers))
    while working:
        rank = rng.choice(sorted(working))
        in_hand = shards.in_hand(rank)
        if in_hand and rng.random() < 0.5:
            shard = rng.choice(in_hand)
            shards.made(rank, shard)
            made.append(shard)
            continue
        answer = shards.take(rank)
        assert answer != LATER or in_hand, "who holds none is never sent away"
        if answer is None and not in_hand:
            working.remove(rank)
    assert sorted(made) == numbers and shards.num_made() == len(numbers)


def test_what_a_lost_worker_had_in_hand_is_next():
    shards = Handout([1, 2, 3, 4])
    for rank in (5, 6):
        shards.join(rank)
    assert [shards.take(5), shards.take(6)] == [1, 2]
    assert shards.made(6, 2) and shards.leave(5) == [1]
    assert [shards.take(6) for _ in range(3)] == [1, 3, 4]
    assert shards.leave(6) == [1, 3, 4] and shards.num_made() == 1


def test_a_shard_in_two_hands_counts_once():
    shards = Handout([1, 2])
    for rank in (0, 1):
        shards.join(rank)
    assert [shards.take(0), shards.take(1)] == [1, 2] and shards.made(1, 2)
    assert shards.in_one_hand() == [(1, 0)]
    shards.take_again(1, 1)
    assert shards.in_one_hand() == []
    assert shards.made(1, 1) and not shards.made(0, 1) and shards.num_made() == 2


def test_a_shard_that_another_makes_is_not_lost_with_one_of_them():
    shards = Handout([1])
    for rank in (0, 1):
        shards.join(rank)
    shards.take(0)
    shards.take_again(1, 1)
    assert shards.leave(0) == [] and shards.made(1, 1)
