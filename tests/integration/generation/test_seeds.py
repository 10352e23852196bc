"""`generate.seeds`: a seed of its own for every response, or one for the engine."""

import pytest

from rlhf.config.choices import Seeds
from rlhf.config.schema import GenerateConfig
from rlhf.data.records import prompt_id
from rlhf.data.responses import candidates_line
from rlhf.data.schemas import CANDIDATES_SCHEMA, PROMPT_SCHEMA
from rlhf.data.shards import read_all_rows, shard_name, write_shard
from tests.stage_runner import make_job, run_here
from tests.tiny import tiny_llama


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("policy"), seed=1)


def sampled(folder, policy, **section):
    """The rows of two shards with the same prompt; a shard that is there already is left as it is."""
    messages = [{"role": "user", "content": "Name a colour"}]
    row = {"id": prompt_id(messages), "messages": messages}
    (folder / "prompts").mkdir(exist_ok=True)
    for index in range(2):
        write_shard(folder / "prompts" / shard_name(index), PROMPT_SCHEMA, [row])
    inputs = {"policy": policy, "prompts": folder / "prompts"}
    told = {"n": 4, "temperatures": [1.0], "max_new_tokens": 12, "engine": "transformers"} | section
    run_here(make_job("generate", GenerateConfig(), inputs, folder / "out", **told))
    return list(read_all_rows(folder / "out"))


def ids(rows):
    return [[candidate["token_ids"] for candidate in row["candidates"]] for row in rows]


def seeds(rows):
    return [candidate["seed"] for row in rows for candidate in row["candidates"]]


def test_a_request_has_its_own_seed(tmp_path, policy):
    rows = sampled(tmp_path, policy)
    assert seeds(rows)[:4] == seeds(rows)[4:] and len(set(seeds(rows))) == 4
    assert ids(rows)[0] == ids(rows)[1], "the same prompt and seeds in another shard"


def test_an_engines_seed_is_no_responses_seed(tmp_path, policy):
    rows = sampled(tmp_path, policy, seeds=Seeds.engine)
    assert seeds(rows) == [None] * 8
    assert ids(rows)[0] != ids(rows)[1], "the engine goes on drawing"
    assert len({tuple(each) for each in ids(rows)[0]}) == 4
    assert candidates_line(rows[0])["seeds"] == [None] * 4
    # Others read it as before: a column of 64-bit numbers.
    assert str(CANDIDATES_SCHEMA.field("candidates").type.value_type.field("seed").type) == "int64"


def test_after_a_kill_the_engine_draws_other_numbers_and_nothing_is_lost(tmp_path, policy):
    undisturbed = sampled(tmp_path, policy, seeds=Seeds.engine)
    (tmp_path / "out" / shard_name(1)).unlink()
    resumed = sampled(tmp_path, policy, seeds=Seeds.engine)
    assert len(resumed) == 2 and ids(resumed)[0] == ids(undisturbed)[0]
    # Not shard 0's once more, which the engine's seed alone would have given.
    assert ids(resumed)[1] not in (ids(undisturbed)[0], ids(undisturbed)[1])


def test_another_iteration_draws_other_numbers(tmp_path, policy):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    one = sampled(first, policy, seeds=Seeds.engine, iteration=1)
    two = sampled(second, policy, seeds=Seeds.engine, iteration=2)
    assert ids(one) != ids(two)
