"""The next shard's requests enter while the last one's long responses are finished: the same candidates,
whatever the order and the workers, and every shard once, whoever dies."""

import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from rlhf.config.choices import Device, Engine
from rlhf.config.schema import Config
from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import prompt_id
from rlhf.data.schemas import PROMPT_SCHEMA
from rlhf.data.shards import read_all_rows, shard_paths, write_shard
from rlhf.errors import WorkerFailed
from rlhf.launch.local import LocalLauncher
from rlhf.run.artifact import Artifact
from rlhf.run.lock import hold_run
from rlhf.run.plan import Run
from tests.tiny import tiny_llama

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from rlhf.generation.choose_engine import load_sampler
from rlhf.generation.request import Request, Sampling, seed_of

SIDE_BY_SIDE = 8
"""Responses that the engine samples at once."""
STOPS = list(range(0, 400, 40))
"""One token in fifty or so: most responses are short, and some go to the limit."""
SAMPLING = Sampling(max_new_tokens=64, top_p=1.0, top_k=0, stop_token_ids=STOPS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny_llama(tmp_path_factory.mktemp("policy"), seed=1, **shape)


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def sampler(request, model):
    settings = GenerateStage(
        engine=Engine(request.param),
        max_prompt_tokens=64,
        max_new_tokens=64,
        overlap_shards=request.param == "vllm",
        vllm_args={"max_num_seqs": SIDE_BY_SIDE} if request.param == "vllm" else {},
    )
    return load_sampler(settings, str(model), 0, 64)


def shard(index, num=6):
    """Prompts of several lengths, two responses each."""
    requests = []
    for number in range(num):
        ids = [0, 5 + index, 30 + number, 60 + 2 * number][: 2 + (index + number) % 3]
        for sample in range(2):
            requests.append(Request(ids, 1.0, seed_of(1, 0, f"{index}/{number}", sample)))
    return index, requests


def logged(shards, log):
    """The shards, with a line of the log for each that is taken."""
    for each in shards:
        log.append(("taken", each and each[0]))
        yield each


def sampled(sampler, shards, log=None):
    """The candidates by shard."""
    log = [] if log is None else log
    by_shard = {}
    for index, candidates in sampler.sample_shards(logged(shards, log), SAMPLING):
        log.append(("finished", index))
        assert index not in by_shard
        by_shard[index] = candidates
    return by_shard


def ids(by_shard):
    return {index: [c.token_ids for c in candidates] for index, candidates in by_shard.items()}


def test_the_same_candidates_as_shard_by_shard_and_in_other_orders(sampler):
    shards = [shard(index) for index in range(6)]
    alone = {index: sampler.sample(requests, SAMPLING) for index, requests in shards}
    lengths = sorted(len(c.token_ids) for candidates in alone.values() for c in candidates)
    assert lengths[-1] == 64 and lengths[len(lengths) // 2] < 40, "a long tail"
    for seed in range(3):
        order = shards if seed == 0 else random.Random(seed).sample(shards, len(shards))
        log = []
        together = sampled(sampler, order, log)
        assert ids(together) == ids(alone)
        for index, candidates in together.items():
            for one, other in zip(candidates, alone[index], strict=True):
                assert (one.finish_reason, one.seed) == (other.finish_reason, other.seed)
                assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        if hasattr(sampler, "_has_room"):
            begun_early = [i for i in range(1, 6) if log.index(("taken", order[i][0])) < i * 2]
            assert begun_early == [1, 2, 3, 4, 5], log


def test_a_shard_without_requests_is_finished_at_once(sampler):
    assert sampled(sampler, [(3, []), shard(1), (5, [])])[3] == []
    assert sampled(sampler, []) == {}


def test_who_is_told_to_wait_asks_again_when_a_shard_is_finished(sampler):
    if not hasattr(sampler, "_has_room"):
        pytest.skip("shard by shard: it asks only when it holds none")
    log = []
    waits = [shard(0, num=2), None, shard(1, num=2), shard(2, num=2), None]
    assert ids(sampled(sampler, waits, log)) == {
        i: ids(sampled(sampler, [shard(i, num=2)]))[i] for i in range(3)
    }
    assert log[:4] == [("taken", 0), ("taken", None), ("finished", 0), ("taken", 1)], log


def prompts_file(path, num=40):
    rows = []
    for number in range(num):
        messages = [{"role": "user", "content": f"Say {number}."}]
        rows.append({"id": prompt_id(messages), "messages": messages})
    write_shard(path, PROMPT_SCHEMA, rows)
    return Artifact(path, "prompts")


def generated(folder, model, prompts, workers, token, overlap):
    cfg = Config()
    cfg.compute.num_inference_workers = workers
    cfg.compute.device = Device.cpu
    cfg.compute.num_threads = 1
    run = Run(folder, cfg, LocalLauncher(folder, token, preload=False, device="cpu"))
    config = GenerateStage(
        n=4,
        max_prompt_tokens=64,
        max_new_tokens=96,
        stop_token_ids=STOPS,
        shard_size=4,
        overlap_shards=overlap,
        vllm_args={"max_num_seqs": SIDE_BY_SIDE},
    )
    return run.stage("generate", "generate", config, {"policy": Artifact(model, "m"), "prompts": prompts})


def kill_one(partial):
    """Kill a worker as soon as a shard is there."""
    while not shard_paths(partial):
        time.sleep(0.01)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


def sampled_ids(artifact):
    rows = read_all_rows(artifact.path, ["id", "candidates"])
    return [(row["id"], [candidate["token_ids"] for candidate in row["candidates"]]) for row in rows]


@pytest.mark.parametrize("overlap", [True, None])
def test_two_workers_one_of_them_killed_make_what_one_makes(model, tmp_path, overlap):
    prompts = prompts_file(tmp_path / "prompts.parquet")
    with hold_run(tmp_path / "one", print) as token:
        one = generated(tmp_path / "one", model, prompts, 1, token, None)
    folder = tmp_path / "two"
    with hold_run(folder, print) as token:
        killer = threading.Thread(target=kill_one, args=(folder / ".generate.partial",), daemon=True)
        killer.start()
        with pytest.raises(WorkerFailed, match="killed by signal 9"):
            generated(folder, model, prompts, 2, token, overlap)
        killer.join()
        kept = {path.name: path.stat().st_mtime_ns for path in shard_paths(folder / ".generate.partial")}
        assert 0 < len(kept) < 10
        two = generated(folder, model, prompts, 2, token, overlap)
    assert sampled_ids(two) == sampled_ids(one) and len(shard_paths(two.path)) == 10
    # Batches that hold several shards differ with every kill, and with them the last bits of `logprob`.
    assert overlap or two.digest == one.digest
    after = {path.name: path.stat().st_mtime_ns for path in shard_paths(two.path)}
    assert {name: after[name] for name in kept} == kept, "a finished shard is not made again"
