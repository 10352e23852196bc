"""Files that cannot be used: prompts, preferences, responses and rewards."""

from __future__ import annotations

import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.data.prompts import read_prompts
from tests.unit.refusals import Case, cases, jsonl, model, refuse

LOOP = (
    "iterate model.path=m reward_model.rule=rlhf.world.tasks:gold prompts.num_held_out=1 num_iterations=1 "
    "compute.device=cpu run_dir=run prompts.num_per_iteration=2 prompts.path="
)
PAIR = "pair output=o.jsonl input="
BENCH = "rewardbench output=o.json reward_model.rule=rlhf.world.tasks:gold input="
BEST = "bestofn output=o.json input="
USER = {"role": "user", "content": "q"}
GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def loop(name, said, files=None, make=None, path="p.jsonl"):
    def both(folder):
        model(folder / "m")
        if make is not None:
            make(folder)

    return Case(f"prompts {name}", LOOP + path, said, files or {}, both)


def prompts(name, content, said):
    return loop(name, said, {"p.jsonl": content})


def pair(name, row, said):
    return Case(f"pair {name}", PAIR + "i.jsonl", said, {"i.jsonl": [row] if isinstance(row, dict) else row})


def bench(name, content, said):
    return Case(f"preferences {name}", BENCH + "i.jsonl", said, {"i.jsonl": content})


def scored(**changes):
    return {"prompt": "q", "responses": ["a", "b"], "rewards": [2, 1]} | changes


def parquet(folder, cut=None, column=None):
    table = pa.table({"prompt": column if column is not None else ["a", "b"]})
    pq.write_table(table, folder / "p.parquet")
    if cut:
        (folder / "p.parquet").write_bytes((folder / "p.parquet").read_bytes()[:-cut])


def half_text(folder):
    text = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xe9")]
    )
    parquet(folder, column=text)


def link_loop(folder):
    os.symlink("p.jsonl", folder / "p.jsonl")


@cases(
    loop("missing", ["prompts.path=p.jsonl", "no such file", ".csv or .parquet"]),
    loop(
        "folder",
        ["prompts.path=p.jsonl", "a folder, no file"],
        make=lambda folder: (folder / "p.jsonl").mkdir(),
    ),
    loop("link to itself", ["prompts.path=p.jsonl", "leads nowhere", "mend the links"], make=link_loop),
    loop("name too long", ["prompts.path=xxx", "too long"], path="x" * 300 + ".jsonl"),
    loop("of an unknown suffix", ["p.txt", "suffix", ".parquet", "Convert it"], {"p.txt": "a"}, path="p.txt"),
    loop("of a missing data set", ["prompts.path=a/b", "hf download"], path="a/b"),
    prompts("empty", "", ["p.jsonl holds no rows", "name another file"]),
    prompts("of blank lines", "\n \n\n", ["p.jsonl holds no rows", "name another file"]),
    prompts(
        "in Latin-1",
        b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n',
        ["line 2", "0xe9", "Save the file as UTF-8"],
    ),
    prompts("in UTF-16", '{"prompt": "a"}\n'.encode("utf-16"), ["line 1", "0xff", "Save the file as UTF-8"]),
    prompts("of NUL bytes", b"\0" * 4096, ["line 1", "invalid JSON", "Mend that line"]),
    prompts(
        "broken in line 3", '{"prompt": "a"}\n\n{"prompt": "b"\n', ["p.jsonl, line 3", "invalid JSON", "Mend"]
    ),
    prompts(
        "as a broken list over lines", '[\n{"prompt": "a"\n]', ["line 3", "invalid JSON", "Mend the file"]
    ),
    prompts("of numbers", "1\n2\n", ["line 1", "found a number", "must be an object"]),
    prompts(
        "too deep",
        '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}",
        ["line 1", "recursion", "Mend that line"],
    ),
    prompts(
        "without the column", [{"text": "a"}], ["row 1", "['text']", "known shapes are", "question: text"]
    ),
    prompts("of terminal codes", [{"\x1b[31mred\r": 1}], ["row 1", "\\x1b[31mred\\r", "known shapes"]),
    prompts(
        "that are numbers", [{"prompt": 7}] * 2, ["none of 2 rows is a prompt", "row 1", "must be a list"]
    ),
    prompts(
        "that are empty", [{"prompt": "  "}], ["none of 1 rows is a prompt", "prompt is empty", "Mend it"]
    ),
    prompts("with half a pair", [{"prompt": "\udc00"}], ["line 1", "not UTF-8"]),
    prompts(
        "of an unknown role",
        [{"prompt": [USER | {"role": "\x1b[2J"}]}],
        ["role '\\x1b[2J'", "known are system"],
    ),
    prompts(
        "that end on an answer", [{"prompt": [USER, USER | {"role": "assistant"}]}], ["row 1", "must be last"]
    ),
    prompts(
        "all the same",
        [{"prompt": "a"}] * 9,
        ["8 duplicate", "no prompt is left to train on", "Name another file"],
    ),
    prompts(
        "all held out",
        [{"prompt": "a"}],
        ["no prompt is left to train on", "Name another file", "hold out fewer"],
    ),
    prompts(
        "too few",
        [{"prompt": c} for c in "ab"],
        ["num_per_iteration=2 needs 2", "gives 1", "Ways out: prompts.num_per_iteration=1, more"],
    ),
    loop(
        "cut short", ["p.parquet", "no Parquet file", "anew"], make=lambda f: parquet(f, 9), path="p.parquet"
    ),
    loop("half text", ["p.parquet", "no Parquet file", "0xe9"], make=half_text, path="p.parquet"),
    loop(
        "of bytes",
        ["none of 1 rows", "must be a list"],
        make=lambda f: parquet(f, column=[b"a"]),
        path="p.parquet",
    ),
    loop("in an object", ["holds an object", "Wrap it in [ ]"], {"p.json": {"prompt": "a"}}, path="p.json"),
    bench("without chosen", [{"prompt": "a", "rejected": "b"}], ["row 1", "['prompt', 'rejected']", "known"]),
    bench(
        "equal",
        [GOOD | {"rejected": "a"}] * 3,
        ["no preference pair (3 comparisons, dropped: 3 equal)", "Give two"],
    ),
    bench("of no messages", [{"chosen": [1], "rejected": [2]}], ["no preference pair", "1 ends_on_user"]),
    bench(
        "that end on the user",
        [{"chosen": [USER], "rejected": [USER]}],
        ["no preference pair", "1 ends_on_user"],
    ),
    bench(
        "of nothing", [GOOD | {"chosen": None, "rejected": None}], ["No preference found", "known shapes are"]
    ),
    bench(
        "tied",
        [GOOD | {"score_chosen": 1, "score_rejected": 1}],
        ["no preference pair", "1 tie", "Give two different answers"],
    ),
    bench(
        "broken in row 300",
        jsonl([GOOD] * 299) + b"{",
        ["i.jsonl, line 300", "invalid JSON", "Mend that line"],
    ),
    pair("with text rewards", scored(rewards=["2", "1"]), ["none of 1 rows can be used", "found '2'"]),
    pair("with too few rewards", scored(rewards=[1]), ["rewards must be a list of 2", "found [1]"]),
    pair(
        "with NaN rewards",
        b'{"prompt": "q", "responses": ["a", "b"], "rewards": [NaN, 1]}\n',
        ["1 non_finite", "look at"],
    ),
    pair("with infinite rewards", scored(rewards=[float("inf"), 1]), ["1 non_finite", "look at the judge"]),
    pair("with null rewards", scored(rewards=[None, None]), ["1 non_finite", "look at the judge"]),
    pair("all tied", scored(rewards=[1, 1]), ["No prompt gives a preference pair", "1 all_tied", "raise"]),
    pair(
        "without rewards", {"prompt": "q", "responses": ["a"]}, ["row 1: No rewards", "python -m rlhf.score"]
    ),
    pair("without responses", {"prompt": "q"}, ["row 1: No responses", "python -m rlhf.generate"]),
    pair(
        "of no responses", scored(responses=[], rewards=[]), ["responses must be a list of text", "found []"]
    ),
    pair("of HTML", scored(responses="<script>\x1b[31m"), ["found '<script>\\x1b[31m'", "list of text"]),
    pair(
        "of huge rewards",
        b'{"prompt": "q", "responses": ["a", "b"], "rewards": [1' + b"0" * 400 + b", 1]}\n",
        ["numbers of 64 bits", "found 1000"],
    ),
    pair("of zero rows", [], ["i.jsonl holds no rows", "Put some in"]),
    Case(
        "bestofn text rewards",
        BEST + "i.jsonl",
        ["rewards must be numbers", "found 'a'"],
        {"i.jsonl": [scored(qualities=[1, 0], rewards=["a", "b"])]},
    ),
    Case(
        "bestofn without rewards",
        BEST + "i.jsonl",
        ["no list `rewards` of 2", "name a judge"],
        {"i.jsonl": [{"prompt": "q", "responses": ["a", "b"], "qualities": [1, 0]}]},
    ),
    Case(
        "bestofn NaN qualities",
        BEST + "i.jsonl",
        ["None of 2 responses", "Look at `qualities`"],
        {"i.jsonl": [scored(qualities=[None, None])]},
    ),
    Case(
        "accuracy of text",
        "rewardbench output=o.json subsets=s.json",
        ["hep-go", "'x'", "0 to 100"],
        {"s.json": {"hep-go": "x"}},
    ),
    Case(
        "accuracy NaN",
        "rewardbench output=o.json subsets=s.json",
        ["hep-go", "nan"],
        {"s.json": '{"hep-go": NaN}'},
    ),
    Case(
        "accuracies of nothing",
        "rewardbench output=o.json subsets=s.json",
        ["s.json", "one subset"],
        {"s.json": {}},
    ),
    Case(
        "accuracies in Latin-1",
        "rewardbench output=o.json subsets=s.json",
        ["s.json", "cannot be read"],
        {"s.json": b"\xe9"},
    ),
)
def test_refused(case, tmp_path, monkeypatch, capsys):
    refuse(case, tmp_path, monkeypatch, capsys)


def test_odd_but_good_prompts_are_read_as_data(tmp_path):
    """Separators of other standards, NUL, terminal codes, HTML and a long line are text like any other."""
    texts = [
        "a\u2028b\u2029c\x85d\x0b\x0ce",
        "nul \0 inside",
        "\x1b[31mred\rno",
        "<script>alert(1)</script>",
        "x" * 10**6,
    ]
    (tmp_path / "p.jsonl").write_bytes(jsonl([{"prompt": text} for text in texts]))
    counts = Counter()
    assert [prompt.messages[0]["content"] for prompt in read_prompts(tmp_path / "p.jsonl", counts)] == texts
    assert counts["rows"] == len(texts)
