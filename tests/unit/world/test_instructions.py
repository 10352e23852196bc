"""Verifiable instructions: what follows each kind and what does not, what a prompt says, and how prompts are drawn."""

from __future__ import annotations

import math
import time
from random import Random

import pytest

from rlhf.errors import DataError
from rlhf.world import instruction_prompts, instructions
from rlhf.world.instructions import KINDS, graded, instructions_of, passed, passed_held_out, passed_seen


def ask(*lines: str, question: str = "What is love?") -> list[dict[str, str]]:
    return [{"role": "user", "content": question + "\n\n" + "\n".join(lines)}]


FOLLOWED = [
    ("Use at most 5 words.", "one two three four five"),
    ("Use at most 5 words.", "well-known don’t it's state-of-the-art 42"),
    ("Use at most 5 words.", "日本語 русский עברית"),
    ("Use at least 4 words.", "a - b — c … d"),
    ("The number of sentences must be 2.", "It is 3.5 metres long. Really!"),
    ("The number of sentences must be 2.", 'He said "no." She left'),
    ("The number of sentences must be 1.", "No full stop at all"),
    ("The number of sentences must be 2.", "What?! Yes, it is so..."),
    ('Use the word "time".', "TIME goes by"),
    ('Use the word "time".', "From time-to-time, yes"),
    ('Do not use the word "is".', "This island exists"),
    ('Do not use the word "it".', "with bits of wit"),
    ('End with the words "The end."', 'So it goes. "the end"'),
    ('End with the words "Any questions?"', "This is it. Any questions?\n"),
    ("Write at least one word in capital letters.", "it is from NASA or so"),
    ("Write at least one word in capital letters.", "it is VERY, very good"),
    ("Write at least one word in capital letters.", "das ist GRÖSSER als"),
    ("Write 2 bullet points. Each begins with *.", "Look:\n* one is red\n  * two is blue\n"),
    ("Use no commas.", "one and two and three"),
    ("Write a numbered list of 2 items.", "Here:\n1. a thing\n2) another thing"),
    ("Write one paragraph, without a line break.", " all of it here \n"),
    ('Use the word "home" at least twice.', "Home, sweet home"),
    ('Begin with the words "In short,"', "in short, it is so"),
    ('Begin with the words "In short,"', "In short,it is so"),
    ('Begin with the words "Good question."', "“Good question”, said the man"),
    ('End with the words "The end."', "It was so (the end.\n"),
    ("End with a question.", "It is so. Is it not? "),
    ("Use capital letters only.", "ALL OF IT: 3 ÉTÉS!"),
    ("Use no digits.", "one two three"),
    ("Give it a title in double angle brackets, such as <<my title>>.", "<<On love>>\nIt is fine"),
]
NOT_FOLLOWED = [
    ("Use at most 5 words.", "one two three four five six"),
    ("Use at most 5 words.", ""),
    ("Use at most 5 words.", "... !!! ???"),
    ("Use at least 4 words.", "well-known state-of-the-art don't"),
    ("The number of sentences must be 2.", "It is 3.5 metres long."),
    ("The number of sentences must be 2.", "One. Two. And a rest"),
    ('Use the word "time".', "sometimes at times, timely"),
    ('Use the word "time".', "the runtime_time of it"),
    ('Do not use the word "is".', "That IS so"),
    ('End with the words "The end."', "The end. But not quite"),
    ("Write at least one word in capital letters.", "I think A is so"),
    ("Write at least one word in capital letters.", "NASAs and iPhone do not count"),
    ("Write at least one word in capital letters.", "11 22 33"),
    ("Use capital letters only.", "日本語 11 22 33"),
    ("Write 2 bullet points. Each begins with *.", "* one thing\n* two things\n* three things"),
    ("Write 2 bullet points. Each begins with *.", "**Bold** words here\n* one thing"),
    ("Use no commas.", "one, two and three"),
    ('End with the words "The end."', "they all bathe end"),
    ('End with the words "..."', "it says nothing at all"),
    ('Begin with the words "Good question."', "Good questionable things are here"),
    ('Begin with the words "!"', "it says nothing at all"),
    ("Write a numbered list of 2 items.", "1" * 5000 + ". a thing\n2. another thing"),
    ("Write a numbered list of 2 items.", "2. a thing\n1. another thing"),
    ("Write a numbered list of 2 items.", "It was in 1999. Or in 2000. Who knows"),
    ("Write one paragraph, without a line break.", "one line\nand another one"),
    ('Use the word "home" at least twice.', "Home is homely"),
    ('Begin with the words "In short,"', "It is, in short, so"),
    ("End with a question.", "Is it not? It is so."),
    ("Use capital letters only.", "ALL BUT ONe"),
    ("Use no digits.", "on the 4th of July"),
    ("Use no digits.", "on the ٤th of July"),
    ("Give it a title in double angle brackets, such as <<my title>>.", "<< >> no title here"),
    ("Give it a title in double angle brackets, such as <<my title>>.", "<one> title here"),
]


@pytest.mark.parametrize(("line", "response"), FOLLOWED)
def test_what_follows_an_instruction(line: str, response: str) -> None:
    assert passed(ask(line), response) == 1.0
    assert graded(ask(line), response) == 2.0


@pytest.mark.parametrize(("line", "response"), NOT_FOLLOWED)
def test_what_does_not(line: str, response: str) -> None:
    assert passed(ask(line), response) == 0.0
    assert 0 <= graded(ask(line), response) < 1


def test_every_kind_stands_in_both_lists() -> None:
    for lines in (FOLLOWED, NOT_FOLLOWED):
        named = {instructions_of(ask(line))[0].kind.name for line, _ in lines}
        assert named >= {kind.name for kind in KINDS} - {"at_least_words"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_value_is_read_back_and_no_line_is_of_two_kinds(kind: instructions.Kind) -> None:
    for value in kind.values:
        line = kind.says(value)
        assert [other.name for other in KINDS if other.pattern.fullmatch(line)] == [kind.name]
        (found,) = instructions_of(ask(line))
        assert (found.kind, found.value) == (kind, value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "response", ["", " ", "\n\n", "ok", "* * *", "🙂", "\x00", "a" * 5000, "A. " * 900, "\u2028x"]
)
def test_any_text_has_a_finite_grade_that_is_one_only_where_it_passes(
    kind: instructions.Kind, response: str
) -> None:
    for value in kind.values:
        messages = ask(kind.says(value))
        grade = graded(messages, response)
        assert math.isfinite(grade)
        assert (grade == 2.0) == (passed(messages, response) == 1.0)
        if len(instructions.words(response)) < instructions.MIN_WORDS:
            assert grade == 0.0


@pytest.mark.parametrize(
    ("line", "better", "worse"),
    [
        ("Use at most 3 words.", "one two three four", "one two three four five six seven"),
        ("Use at least 9 words.", "one two three four five", "one two three"),
        (
            "The number of sentences must be 3.",
            "One is. Two are. That is.",
            "One. Two. Three. Four. Five. Six.",
        ),
        ('Do not use the word "is".', "It is what they say", "It is what it is"),
        ("Use no commas.", "one, two and three", "one, two, three, four"),
        ("Use capital letters only.", "ALL OF IT BUT me", "Next to none of it"),
        ("Write 3 bullet points. Each begins with *.", "* one thing\n* two things\n", "one and two and"),
        ('End with the words "The end."', "The end. But not quite", "Nothing of the kind"),
    ],
)
def test_nearer_is_better(line: str, better: str, worse: str) -> None:
    assert graded(ask(line), better) > graded(ask(line), worse)


def test_all_of_several_must_be_followed() -> None:
    messages = ask("Use at most 4 words.", 'Do not use the word "is".', "Use no commas.")
    assert passed(messages, "They say so often") == 1.0
    assert passed(messages, "They say it is") == 0.0
    # Two of three, and the third nearly, are worth less than all three.
    assert graded(messages, "They say it is") < 1 < graded(messages, "They say so often")


def test_seen_and_held_out_prompts_are_told_apart() -> None:
    seen, held_out = ask("Use no commas."), ask("Use no digits.")
    assert passed_seen(seen, "one two three") == 1.0
    assert math.isnan(passed_seen(held_out, "one two three"))
    assert passed_held_out(held_out, "one two 3") == 0.0
    assert math.isnan(passed_held_out(seen, "one two three"))
    both = ask("Use no commas.", "Use no digits.")
    assert math.isnan(passed_seen(both, "one two three")) and math.isnan(
        passed_held_out(both, "one two three")
    )
    assert passed(both, "one two three") == 1.0


@pytest.mark.parametrize(
    "content",
    [
        "What is love?",
        "What is love?\n\nUse at most five words.",
        "What is love?\n\nUse at most -5 words.",
        "What is love?\n\nUse no commas.\nAnd be kind.",
        'What is love?\n\nUse the word "a"b".',
        "What is love?\n\nuse no commas.",
        "",
    ],
)
def test_a_prompt_without_instructions_is_refused_with_the_way_out(content: str) -> None:
    with pytest.raises(DataError, match=r"is none\. scripts/smollm2_data\.py adds some"):
        graded([{"role": "user", "content": content}], "one two three")


def test_a_paragraph_of_the_question_is_not_read() -> None:
    messages = ask("Use no digits.", question="Here is a rule.\n\nUse no commas.")
    assert [found.kind.name for found in instructions_of(messages)] == ["no_digits"]


def test_a_regular_expression_in_a_value_is_text() -> None:
    assert passed(ask('Use the word "c++ (a.b)".'), "I like c++ (a.b) more") == 1.0
    assert passed(ask('Use the word "a.c".'), "abc abc abc") == 0.0


QUESTIONS = [f"What is the {number} of it?" for number in range(300)]


def test_drawn_prompts_have_one_to_three_instructions_of_different_groups_and_keep_the_question() -> None:
    sets = instruction_prompts.draw_sets(QUESTIONS, None, 40, 30, seed=3)
    assert (len(sets.train), len(sets.held_out)) == (230, 70)
    numbers = set()
    for place, prompt in enumerate([*sets.train, *sets.held_out]):
        found = instructions_of([{"role": "user", "content": prompt}])
        numbers.add(len(found))
        groups = [instruction.kind.group for instruction in found]
        assert len(set(groups)) == len(groups)
        is_held_out = place >= len(sets.train) + 40
        assert all(instruction.kind.is_held_out == is_held_out for instruction in found)
    assert numbers == {1, 2, 3}
    questions = [prompt.partition("\n\n")[0] for prompt in [*sets.train, *sets.held_out]]
    assert sorted(questions) == sorted(QUESTIONS)


def test_a_seed_fixes_everything_and_the_order_of_the_source_nothing() -> None:
    shuffled = [*QUESTIONS, *QUESTIONS[:9]]
    Random(1).shuffle(shuffled)
    sets = instruction_prompts.draw_sets(QUESTIONS, 50, 20, 10, seed=3)
    assert instruction_prompts.draw_sets(shuffled, 50, 20, 10, seed=3) == sets
    assert instruction_prompts.draw_sets(QUESTIONS, 50, 20, 10, seed=4) != sets
    assert len(sets.train) == 50


@pytest.mark.parametrize("question", ["", "  ", "a\nb", "x" * 161, "a\r\nb"])
def test_questions_that_do_not_fit_are_passed_over(question: str) -> None:
    assert not instruction_prompts.is_fit(question)


def test_too_few_questions_are_refused_with_both_numbers() -> None:
    with pytest.raises(
        DataError, match=r"^300 questions .* 331 wanted\. Give a larger file, or ask for fewer"
    ):
        instruction_prompts.draw_sets(QUESTIONS, None, 300, 30, seed=1)


@pytest.mark.parametrize(
    "response",
    [
        "." * 20_000 + "x y z",
        "!" * 10_000 + "*" * 10_000 + "x y z",
        ".'" * 10_000 + "x y z",
        "<<" * 10_000 + "x y z",
        "<<" + "a" * 20_000 + " y z",
        "1. " * 10_000 + "x",
        "a-" * 10_000 + " y z",
    ],
)
def test_no_response_takes_long(response):
    """Under a second in all; where a pattern gives back what it has found, some take tens of seconds each."""
    began = time.process_time()
    for kind in KINDS:
        assert 0 <= kind.grade(response, kind.values[0]) <= 1
    assert time.process_time() - began < 5


def test_a_prompt_may_have_lines_of_windows():
    messages = ask("Use at most 5 words.", "Use no commas.")
    messages[0]["content"] = messages[0]["content"].replace("\n", "\r\n")
    assert [found.kind.name for found in instructions_of(messages)] == ["at_most_words", "no_commas"]


def test_a_number_that_nobody_can_read_is_no_instruction():
    with pytest.raises(DataError, match="is none"):
        instructions_of(ask(f"Use at most {'9' * 5000} words."))
