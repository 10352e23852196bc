"""The columns that are known, those that a user maps, and those that nobody reads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data.rows import Row, has_value, plain_name, words
from rlhf.errors import DataError, one_line

Columns = Mapping[str, str | Sequence[str]]
"""Which columns of a file hold a part of the question: `{"context": "evidence", "system": ["role",
"tone"]}`."""

PARTS = ("question", "context", "system", "history", "answer", "chosen", "rejected")

_UNREAD = "unread/"
# A file may have a key of its own in every row; the counts must not grow with it.
_MAX_UNREAD = 40
_REST = "(other columns)"
_MAX_NAME = 60

_ANSWERS = """
    response responses output outputs answer answers completion completions chosen rejected reject target
    targets label solution solutions generation generations prediction predictions reference
    reference_answer ground_truth gold gold_answer final_answer correct_answer correct_answers
    incorrect_answers best_answer canonical_solution buggy_solution explanation rationale reasoning cot
    thought thoughts thinking summary summaries reply replies choice winner preference preferred margin
    penalised_margin verdict feedback critique bon_best loser_list real generated candidates y_w y_l
"""
_FIGURES = """
    score scores reward rewards quality qualities rating ratings rank ranks ranking helpfulness
    correctness coherence complexity verbosity safety toxicity perplexity logprob logprobs confidence
    difficulty level count votes upvote_ratio finish_reason finish_reasons stop_reason stop_reasons
    temperature temperatures seed seeds token_ids tokens length price cost time seconds
"""
_ORIGINS = """
    id ids uid uuid guid idx index key hash sha row number source sources origin data_source dataset
    datasets subset split datasplit config category categories subcategory category_path type types kind
    domain subject topic topics cluster tag tags task tasks task_name task_type style language lang locale
    license author annotator annotators annotations worker judge model models model_name generator engine
    labelling_model labelling_prompt raw_labelling_response timestamp tstamp date datetime time created
    updated url uri link path file filename title_id name motivation_app metadata meta extra extra_info
    version batch status state order redacted toxic moderation openai_moderation anony turn synthetic
    deleted review_count review_result emojis lang_detect detoxify message_tree_id tree_state parent_id
    post_id created_utc c_root_id_a c_root_id_b seconds_difference hashed_ip country header language_code
    kto_tag test tests test_list unit_tests entry_point evaluation_session_id evaluation_order
    conv_metadata is_code bug_type failure_symptoms example_test full_conversation error error_key
    good_natured num_responses raw_completion
"""
# Generous: a false alarm over an id would teach people to overlook the line that matters.
_KNOWN = words(f"{_ANSWERS} {_FIGURES} {_ORIGINS}")
_KNOWN_PATTERNS = (
    # response_0, output_2, conversation_a, "prediction 3", answer_b_score, …
    re.compile(
        r"(response|output|answer|completion|generation|prediction|conversation|human_ref|candidate|summary|model"
        r"|assistant|generator|tokens|quotes|score|c_root_id|created_at_utc)_?(\d+|[ab])(_.*)?"
    ),
    re.compile(
        r"(answer|chosen|rejected|winner|winning|loser|better|safer|preference|overall_preference)_.*"
    ),
    re.compile(
        r"(is|has|num|n|original|annotator|individual|labelling|price|time|created|updated)_.*|in_\w+_train"
    ),
    re.compile(
        r".*_(id|ids|uid|idx|index|model|models|score|scores|rating|ratings|reward|label|labels|rank|url|hash)"
    ),
    re.compile(
        r".*metadata.*|.*_(time|timestamp|date|at|tokens|length|count|category|preference|chosen|rejected|answers?|score_\w)"
    ),
)
"""Answers, scores, names and sources: what is no part of a question, in the spellings that are common."""

_LETTERED = re.compile(r"(answer|option|ending|sol)_?([a-e]|\d)")
"""Columns of multiple-choice data: `answerA`, `answer_0`, `ending2`."""

_KNOWN_TURN_KEYS = words("""
    role from speaker author sender content value text message parts
    id index idx model timestamp created_at language toxic redacted score scores rank hash turn_identifier
    country state hashed_ip header openai_moderation moderation type status message_id parent_id replies
    lang date
""")


def column_map(columns: Columns | None) -> dict[str, list[str]]:
    """What the user maps, with a list of names for every part.

    Raises:
        DataError: an unknown part, or what is no name.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise DataError(
            f"columns={columns!r:.80}: must be a mapping such as {{context: evidence}}, or null for what the "
            "names say."
        )
    mapped = {}
    for part, names in columns.items():
        if part not in PARTS:
            raise DataError(
                f"columns: {part!r} is no part of a row that can be mapped; known are {', '.join(PARTS)}."
            )
        mapped[part] = _names(part, names)
    return mapped


def _names(part: str, names: Any) -> list[str]:
    if isinstance(names, str):
        return [names]
    if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
        return list(names)
    raise DataError(f"columns: {part}={names!r:.80} must be the name of a column, or a list of names.")


def check_mapped(mapped: Mapping[str, Sequence[str]], there: set[str]) -> None:
    """Refuse a mapping to a column that no row of a file has; `there` are the columns it has.

    Raises:
        DataError: names the columns there are.
    """
    # A mapped name may be spelled as the tables spell it.
    spelled = there | {plain_name(name) for name in there}
    for part, names in mapped.items():
        for name in names:
            if name not in spelled:
                columns = ", ".join(shown(column) for column in sorted(there)[:_MAX_UNREAD])
                raise DataError(f"columns: {part}={name}: no row has such a column; there are {columns}.")


def is_known(name: str) -> bool:
    """Whether a column is known to be no part of a question."""
    plain = plain_name(name)
    if plain in _KNOWN:
        return True
    return any(pattern.fullmatch(plain) for pattern in _KNOWN_PATTERNS)


def is_lettered(name: str) -> bool:
    """Whether a column may be one of several choices: `answerA`, `option_2`."""
    return _LETTERED.fullmatch(plain_name(name)) is not None


def unread_of(row: Row) -> list[str]:
    """The columns of a row that hold something, were not read, and may belong to the question.

    Keys of turns that hold something are among them, as `messages[].name`.
    """
    names = []
    # Of two such columns one compares; three and more are choices, which belong to the question.
    lettered = [name for name in row.record if is_lettered(name)]
    choices = lettered if len(lettered) > 2 else []
    for name, value in row.record.items():
        # Of a column that was read only the keys of its turns may be left over.
        if name not in row.read:
            if has_value(value) and (name in choices or not is_known(name)):
                names.append(shown(name))
        elif isinstance(value, list | dict):
            turns = value if isinstance(value, list) else [value]
            keys = sorted(_unread_turn_keys(turns))
            names += [f"{shown(name)}[].{shown(key)}" for key in keys]
    return names + [shown(name) for name in row.unread_inside]


def _unread_turn_keys(turns: list[Any]) -> set[str]:
    """Keys beside role and content that hold something in a list of turns."""
    keys = set()
    for turn in turns:
        # Lists of passages or of content parts are no turns: nobody speaks there.
        if not isinstance(turn, dict) or not any(turn.get(key) for key in ("role", "from", "speaker")):
            continue
        for key, value in turn.items():
            if has_value(value) and key not in _KNOWN_TURN_KEYS:
                keys.add(key)
    return keys


def count_unread(counts: Counter[str], row: Row) -> None:
    """Add one for each column of a row that was not read."""
    for name in unread_of(row):
        key = _UNREAD + name
        # Counted all the same, under one name.
        if key not in counts and len(unread_columns(counts)) >= _MAX_UNREAD:
            key = _UNREAD + _REST
        counts[key] += 1


def shown(name: str) -> str:
    """A column's name as it may be printed and written."""
    text = one_line(name)
    if len(text) > _MAX_NAME:
        text = f"{text[: _MAX_NAME - 1]}…"
    return text


def unread_columns(counts: Mapping[str, int]) -> dict[str, int]:
    """How many rows had each column that was not read: the counts `unread/<column>`.

    Example:
        {"rows": 9, "unread/evidence": 7} gives {"evidence": 7}
    """
    columns = {}
    for key, count in counts.items():
        if key.startswith(_UNREAD) and count:
            columns[key.removeprefix(_UNREAD)] = count
    return columns


def unread_text(counts: Mapping[str, int], key: str) -> str | None:
    """The columns that were not read and how to have them read, as a sentence; None where there are none.

    Args:
        counts: what a reader counted.
        key: the config section of the file, such as "prompts".

    Example:
        {"rows": 9, "unread/evidence": 7} gives "column `evidence` (7 of 9 rows) is not read;
        prompts.columns={context: evidence} maps it"
    """
    columns = unread_columns(counts)
    if not columns:
        return None
    rows = counts.get("rows", 0)
    # The most frequent first: that is the one which is hardest to miss.
    names = sorted(columns, key=lambda name: (-columns[name], name))
    listed = [f"`{name}` ({columns[name]} of {rows} rows)" for name in names]
    several = len(names) > 1
    sentence = f"columns {', '.join(listed)} are not read" if several else f"column {listed[0]} is not read"
    # A key of a turn or object is no column, and "the other columns" are no name.
    mappable = [_quoted(name) for name in names if "." not in name and name != _REST]
    if not mappable:
        return sentence
    value = mappable[0] if len(mappable) == 1 else f"[{', '.join(mappable)}]"
    section = key if key.endswith("columns") else f"{key}.columns"
    return f"{sentence}; {section}={{context: {value}}} maps {'them' if len(mappable) > 1 else 'it'}"


def _quoted(name: str) -> str:
    """A name as a command line takes it."""
    is_plain = re.fullmatch(r"\w+", name)
    return name if is_plain else f"'{name}'"
