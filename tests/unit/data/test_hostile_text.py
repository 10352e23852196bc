"""Names and values out of files stand in messages as one line that a terminal does not obey."""

import copy
import json
from collections import Counter

import pytest

from rlhf.data.benchmarks import read_questions
from rlhf.data.columns import unread_text
from rlhf.data.conversations import read_conversations
from rlhf.data.files import read_records
from rlhf.data.preferences import read_preferences
from rlhf.data.prompts import read_prompts
from rlhf.data.responses import read_best_of_n, read_comparisons, read_responses
from rlhf.errors import DataError, one_line, printable
from tests.unit.data import test_any_row as rows

# A command to the terminal, a mark that turns the direction of writing, and a line that looks like one of ours.
HOSTILE = "x\x1b]0;y\x07\u202e\x9b31m\r\n✓ forged\u2028✓ forged\x0b✓ forged\x85"
READERS = {
    "prompts": (read_prompts, rows.PROMPTS),
    "conversations": (read_conversations, rows.CONVERSATIONS),
    "preferences": (read_preferences, rows.PREFERENCES),
    "responses": (read_responses, rows.RESPONSES),
    "scored": (lambda path, counts: read_responses(path, counts, "rewards"), rows.RESPONSES),
    "comparisons": (read_comparisons, [*rows.PREFERENCES, *rows.BEST_OF_N]),
    "best_of_n": (read_best_of_n, rows.BEST_OF_N),
    "questions": (read_questions, rows.QUESTIONS),
}


def spoilt(row):
    """The row with hostile text in place of each value, in each key, and as a key more."""
    for number in range(len(list(rows.places(row)))):
        for how in ("value", "key", "added key", "list"):
            spoilt_row = copy.deepcopy(row)
            holder, key = list(rows.places(spoilt_row))[number]
            if how == "value":
                holder[key] = HOSTILE
            elif how == "list":
                holder[key] = [HOSTILE]
            elif not isinstance(holder, dict):
                continue
            elif how == "key":
                holder[f"{key}{HOSTILE}"] = holder.pop(key)
            else:
                holder[HOSTILE] = {HOSTILE: HOSTILE}
            yield spoilt_row


def one_plain_line(text):
    assert text.isprintable(), repr(text)


@pytest.mark.parametrize("name", READERS)
def test_whatever_a_row_holds_a_refusal_is_one_line(name, tmp_path):
    reader, valid_rows = READERS[name]
    path = tmp_path / "rows.jsonl"
    refusals = 0
    for row in valid_rows:
        for spoilt_row in spoilt(row):
            path.write_text(json.dumps(spoilt_row) + "\n")
            counts = Counter()
            try:
                list(reader(path, counts))
            except DataError as error:
                refusals += 1
                one_plain_line(str(error))
            for key in counts:
                one_plain_line(key)
            one_plain_line(unread_text(counts, "prompts") or "")
    assert refusals > 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("rows.json", f'{{"{HOSTILE}": '),
        ("rows.json", "[" + json.dumps(HOSTILE) + "]"),
        ("rows.jsonl", f'{{"a": {HOSTILE}}}'),
        ("rows.csv", f'"a{HOSTILE}","a{HOSTILE}"\n1,2\n'),
        ("rows.csv", f'a,b\n"x"{HOSTILE},2\n'),
        ("rows.parquet", HOSTILE),
        (f"rows.{one_line(HOSTILE).replace('/', '')}", "{}"),
    ],
)
def test_whatever_a_file_holds_a_refusal_is_one_line(file, content, tmp_path):
    (tmp_path / file).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError) as refusal:
        list(read_records(tmp_path / file))
    one_plain_line(str(refusal.value))


def test_the_files_of_a_folder_are_named_in_one_line(tmp_path):
    (tmp_path / f"{HOSTILE}.json").write_text("[]")
    with pytest.raises(DataError, match="forged") as refusal:
        read_records(tmp_path)
    one_plain_line(str(refusal.value))


def test_what_is_not_seen_is_escaped_and_what_is_seen_is_not():
    seen = "Füße, 你好, ありがとう, नमस्ते, مرحبا, 🙂, ∑ 1/n² → ∞"
    assert one_line(seen) == printable(seen) == seen
    unseen = [
        *map(chr, range(0x20)),
        *map(chr, range(0x7F, 0xA0)),
        "\ud800",
        "\udfff",
        "\ufeff",
        "\U000e0041",
    ]
    unseen += [chr(code) for code in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
    for character in unseen:
        assert one_line(character).isprintable()
        assert character in "\t\n" or printable(character).isprintable(), repr(character)
    assert printable("a\tb\nc") == "a\tb\nc"
    assert (
        one_line("https://me:secret@host/x") == printable("https://me:secret@host/x") == "https://***@host/x"
    )
