"""How many steps a training has, how many warm up, and what is said of it."""

import pytest

from rlhf.config.step_count import StepCount


def count(items, batch=16, epochs=2, ratio=0.03, **more):
    return StepCount("dpo", items, "pairs", batch, epochs, ratio, **more)


@pytest.mark.parametrize(
    ("counted", "steps", "warmup"),
    [
        (count(320), 40, 2),
        (count(321), 42, 2),
        (count(320, ratio=0), 40, 0),
        (count(320, ratio=1), 40, 39),  # transformers would take 1 for one step
        (count(320, ratio=0.999), 40, 39),
        (count(1, epochs=1), 1, 0),  # one step at learning rate 0 would learn nothing
        (count(17, epochs=1), 2, 1),
        (count(320, max_steps=3), 3, 1),
        (count(320, max_steps=1), 1, 0),
        (count(320, scheduler="constant", ratio=0.5), 40, 0),
        (count(320, scheduler="constant_with_warmup", ratio=0.5), 40, 20),
        (count(20000, batch=128), 314, 10),
    ],
)
def test_steps_and_warmup(counted, steps, warmup):
    assert (counted.steps, counted.warmup) == (steps, warmup)


@pytest.mark.parametrize(
    ("counted", "texts"),
    [
        (count(320), []),
        (count(20000, batch=128), []),
        (count(80, batch=16), ["the first of 10 steps"]),
        (count(88, batch=16, epochs=2), []),
        (count(144, epochs=1), ["fewer than 10", "the first of 9 steps"]),
        (count(144, epochs=1, ratio=0), ["fewer than 10"]),
        (count(320, ratio=0.5), []),
        (count(320, ratio=0.51), ["rises over 21 of 40 steps"]),
        (count(320, ratio=1), ["rises over 39 of 40 steps"]),
        (count(1, epochs=1), ["fewer than 10"]),
    ],
)
def test_what_is_odd_is_said_and_nothing_else(counted, texts):
    found = list(counted.warnings())
    assert len(found) == len(texts)
    for warning, text in zip(found, texts, strict=True):
        assert text in warning and "dpo." in warning


def test_the_arithmetic_is_said():
    assert str(count(320)) == (
        "320 pairs / batch 16 × 2 epochs = 40 steps, 2 of them warm-up, the first at learning rate 0"
    )
    assert str(count(320, epochs=1, ratio=0)) == "320 pairs / batch 16 = 20 steps, 0 of them warm-up"
    assert "no warm-up (lr_scheduler=constant)" in str(count(320, scheduler="constant"))
    assert "= 3 steps (dpo.trainer_args.max_steps)" in str(count(320, max_steps=3))
