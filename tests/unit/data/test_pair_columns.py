"""Pairs made on columns are those that the row functions make: the same bytes, the same counts."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf.config.choices import Strategy, Truncated
from rlhf.config.schema import PairSettings
from rlhf.data.pair_columns import pair_table
from rlhf.data.pairing import Drop, Terminators, fault, make_pairs
from rlhf.data.records import scored_prompt, to_row
from rlhf.data.schemas import CANDIDATES_SCHEMA, PAIRS_SCHEMA, SCORES_SCHEMA
from rlhf.data.shards import read_table, write_shard, write_table
from rlhf.errors import DataError

EOT, EOS = 9, 8
TERMINATORS = Terminators(EOT, frozenset({EOT, EOS}))
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "bon_alpacaeval_tulu2dpo13b"
Rows = list[dict[str, Any]]


def by_rows(
    rows: Rows, config: PairSettings, terminators: Terminators | None, seed: int
) -> tuple[Rows, Counter[str]]:
    """The readable definition: one prompt after the other."""
    pairs_rows = []
    counts = Counter[str]()
    for row in rows:
        prompt = scored_prompt(row, row)
        pairs = make_pairs(prompt, config, terminators, seed)
        counts["prompts"] += 1
        counts["prompts_with_pairs"] += 0 if isinstance(pairs, Drop) else 1
        counts["pairs"] += 0 if isinstance(pairs, Drop) else len(pairs)
        looked_at = list(zip(prompt.candidates, prompt.scores, strict=True))[: config.num_candidates]
        counts["candidates"] += len(looked_at)
        for candidate, score in looked_at:
            reason = fault(candidate, score)
            if reason is not None:
                counts[f"candidates/{reason.value}"] += 1
        if isinstance(pairs, Drop):
            counts[f"dropped/{pairs.value}"] += 1
        else:
            pairs_rows += [to_row(pair) for pair in pairs]
    return pairs_rows, counts


def check(
    folder: Path,
    rows: Rows,
    config: PairSettings,
    terminators: Terminators | None = TERMINATORS,
    seed: int = 3,
) -> pa.Table:
    """Both ways give the same file; the table of the one on columns."""
    # Through files, as the stage does: what is read is laid out otherwise than what was made.
    write_shard(folder / "candidates.parquet", CANDIDATES_SCHEMA, rows)
    write_shard(folder / "scores.parquet", SCORES_SCHEMA, rows)
    candidates = read_table(folder / "candidates.parquet", leave_out=("logprob", "seed", "temperature"))
    scores = read_table(folder / "scores.parquet")
    pairs, counts = pair_table(candidates, scores, config, terminators, seed)
    expected, expected_counts = by_rows(rows, config, terminators, seed)
    assert counts == expected_counts
    assert dict(counts) == dict(expected_counts)
    write_shard(folder / "rows.parquet", PAIRS_SCHEMA, expected, expected_counts)
    write_table(folder / "columns.parquet", pairs, counts)
    assert pairs.to_pylist() == pa.Table.from_pylist(expected, schema=PAIRS_SCHEMA).to_pylist()
    assert (folder / "columns.parquet").read_bytes() == (folder / "rows.parquet").read_bytes()
    return pairs


def row(name: str, *answers: tuple[str, float, bool]) -> dict[str, Any]:
    candidates = []
    for text, _, finished in answers:
        ids = [ord(letter) % 7 + 10 for letter in text] + ([EOS] if finished else [])
        reason = "stop" if finished else "length"
        about = {"finish_reason": reason, "logprob": math.nan, "seed": 1, "temperature": 1.0}
        candidates.append({"token_ids": ids, "text": text, **about})
    return {
        "id": name,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": name}],
        "prompt_token_ids": [1, 2, len(name)],
        "candidates": candidates,
        "scores": [score for _, score, _ in answers],
    }


texts = st.one_of(
    st.text(alphabet="ab ", max_size=3),
    # White space of Python and of Arrow are not the same, nor are bytes and characters.
    st.text(alphabet="é日\x1c\x85\u2028\u200b\x00 ", max_size=2),
)
scores = st.one_of(
    st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 5e-324]),
    st.floats(-5, 5),
)
shards = st.lists(st.lists(st.tuples(texts, scores, st.booleans()), max_size=6), max_size=5)
configs = st.builds(
    PairSettings,
    strategy=st.sampled_from(Strategy),
    truncated=st.sampled_from(Truncated),
    length_penalty=st.sampled_from([0.0, 0.001, 0.3, 1e308]),
    min_margin=st.sampled_from([0.0, 0.3]),
    num_candidates=st.sampled_from([None, 2, 4]),
    max_pairs_per_prompt=st.sampled_from([1, 2, 5]),
)


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(shards, configs, st.sampled_from([TERMINATORS, None]), st.integers(0, 3))
def test_any_shard_gives_the_pairs_of_the_row_functions(
    tmp_path: Path,
    shard: list[list[tuple[str, float, bool]]],
    config: PairSettings,
    terminators: Terminators | None,
    seed: int,
) -> None:
    rows = [row(f"p{number}", *answers) for number, answers in enumerate(shard)]
    check(tmp_path, rows, config, terminators, seed)


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("truncated", list(Truncated))
def test_ties_faults_and_widths_in_one_shard(
    tmp_path: Path, strategy: Strategy, truncated: Truncated
) -> None:
    rows = [
        row("plain", ("a", 1.0, True), ("b", 3.0, True), ("c", -2.0, True)),
        row("ties", ("a", 0.0, True), ("b", 1.0, True), ("c", 1.0, True), ("d", 0.0, True)),
        row("all tied", ("a", 1.0, True), ("b", 1.0, True)),
        row("same text", ("a", 2.0, True), ("b", 1.5, True), ("a", 1.0, True)),
        row("faults", ("a", math.inf, True), (" \u2028", 9.0, True), ("b", 1.0, True), ("c", 0.0, True)),
        row("cut", ("good", 9.0, False), ("ok", 2.0, True), ("bad", 0.0, False)),
        row("all cut", ("good", 9.0, False), ("bad", 0.0, False)),
        row("one", ("a", 1.0, True)),
        row("none"),
        row("wide", *((f"t{place}", float(place % 7), True) for place in range(300))),
    ]
    pairs = check(tmp_path, rows, PairSettings(strategy=strategy, truncated=truncated))
    assert {"plain", "ties", "faults", "wide"} <= set(pairs["id"].to_pylist())


def test_a_shard_larger_than_parquet_s_pages(tmp_path: Path) -> None:
    rows = []
    for number in range(3000):
        answers = [(f"{number} {place} " + "x" * 300, float(place), place % 3 > 0) for place in range(6)]
        rows.append(row(f"p{number}", *answers))
    assert len(check(tmp_path, rows, PairSettings(max_pairs_per_prompt=2))) == 6000


def test_no_rows(tmp_path: Path) -> None:
    assert len(check(tmp_path, [], PairSettings())) == 0


@pytest.mark.parametrize("ids", [[], [11, 12]])
def test_a_finished_response_without_terminator_is_refused_in_the_same_words(ids: list[int]) -> None:
    rows = [row("p", ("a", 1.0, True), ("b", 3.0, True)), row("q", ("a", 1.0, True), ("b", 3.0, True))]
    rows[1]["candidates"][0]["token_ids"] = ids
    rows[1]["candidates"][1]["token_ids"] = [7]
    with pytest.raises(DataError) as by_row:
        by_rows(rows, PairSettings(), TERMINATORS, 0)
    candidates = pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)
    scores = pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)
    with pytest.raises(DataError) as by_column:
        pair_table(candidates, scores, PairSettings(), TERMINATORS, 0)
    assert str(by_column.value) == str(by_row.value)


@pytest.mark.parametrize("part", ["text", "finish_reason", "token_ids", "candidates", "scores", "messages"])
def test_a_null_is_refused_by_name(part: str) -> None:
    rows = [row("p", ("a", 1.0, True), ("b", 3.0, True))]
    if part in rows[0]:
        rows[0][part] = None
    else:
        rows[0]["candidates"][1][part] = None
    candidates = pa.Table.from_pylist(rows, schema=CANDIDATES_SCHEMA)
    scores = pa.Table.from_pylist(rows, schema=SCORES_SCHEMA)
    with pytest.raises(DataError, match=f"{part} is null"):
        pair_table(candidates, scores, PairSettings(), TERMINATORS, 0)


@pytest.mark.skipif(not REAL.is_dir(), reason="real data (../shared/data) is not on this machine")
@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize("penalty", [0.0, 0.001])
def test_real_candidates(tmp_path: Path, strategy: Strategy, penalty: float) -> None:
    files = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(REAL.glob("candidate_*.json"))]
    rows = []
    for answers in zip(*files, strict=True):
        named = []
        for answer in answers:
            preference = answer["preference"]
            score = math.nan if preference is None else preference - 1
            named.append((answer["output_2"], score, len(answer["output_2"]) < 2500))
        rows.append(row(answers[0]["instruction"], *named))
    for truncated in Truncated:
        config = PairSettings(strategy=strategy, truncated=truncated, length_penalty=penalty)
        assert len(check(tmp_path, rows, config)) > 150
