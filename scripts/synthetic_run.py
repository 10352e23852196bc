"""Make a run folder of any size without a model: `python scripts/synthetic_run.py out=FOLDER [key=value …]`.

`prompts=20000` of one iteration, `n=8` responses each, `held_out=256`, `iterations=3`, `seed=0`, `greedy=0`
held-out prompts that are answered at temperature 0 too, `hostile=false` (some responses are HTML, terminal
commands, a line of a megabyte), `until=` the stage to stop after. Only what models would do is made up: the
loop itself asks for every stage, and prompts, pairs, sums, figures and gates are made by its own code and
committed by it. So the folder is a run's in every respect.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from rlhf.command.saved import write_saved  # noqa: E402
from rlhf.config.choices import TRAINED, Device, Dtype, Engine  # noqa: E402
from rlhf.config.schema import Config  # noqa: E402
from rlhf.data.json_text import json_text  # noqa: E402
from rlhf.data.schemas import CANDIDATES_SCHEMA, LOGPROBS_SCHEMA, SCORES_SCHEMA  # noqa: E402
from rlhf.data.shards import make_folders, shard_name, write_table  # noqa: E402
from rlhf.generation.request import temperatures_of  # noqa: E402
from rlhf.iterate import iterate  # noqa: E402
from rlhf.run.job import Job, Kind, Outcome  # noqa: E402
from rlhf.run.plan import AloneDone, Run  # noqa: E402
from rlhf.run.stage_table import num_shards, sliced_rows, stage_function  # noqa: E402

END_OF_TURN = 2
"""Token that ends a response."""
TOPICS = (
    "gradient descent",
    "sourdough",
    "the French Revolution",
    "binary search",
    "tides",
    "a cover letter",
)
QUESTIONS = (
    "Explain {topic} to a twelve-year-old.",
    "What do most people get wrong about {topic}?",
    "¿Puedes explicarme {topic} en pocas palabras?",
    "请用简单的话解释 {topic}。",
    "Объясни, что такое {topic}.",
)
SENTENCES = (
    "Start with the simplest case and see what changes. ",
    "In practice the first step matters more than all the others together. ",
    "**Note:** the numbers below are rounded. ",
    "This works because every part is smaller than the whole. ",
    "\n\n1. Look at the input.\n2. Split it.\n3. Put the parts together.\n\n",
    "\n\n```python\ndef step(x):\n    return x - 0.1 * gradient(x)\n```\n\n",
    "So the answer follows from the definition alone. ",
    "I hope this helps! ",
    "Think of it as a hill: you walk down, and stop where it is flat. ",
    "First of all, thank you for the excellent question. ",
)
HOSTILE = (
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"><b>bold?</b> <!-- --> <a href='javascript:alert(1)'>x</a>",
    "[link](javascript:alert(1)) ![picture](https://example.com/x.png) <iframe src=https://example.com>",
    "\x1b[2J\x1b[31mred\x1b[0m \x07 \x00 \r overwritten",
    "left \u202ethgir ot\u202c \u2066isolated\u2069 \u200b\u2028line\u2029paragraph \ufeff",
    "x" * 1_000_000,
    "",
    "שלום עולם, مرحبا بالعالم, 世界你好 🎉" * 3,
)


class _Worker:
    """The one process of every stage: this one."""

    rank = 0
    world_size = 1
    num_threads = 1

    def __init__(self, shards: list[int]) -> None:
        self._shards = shards

    def shards(self) -> Iterator[int]:
        yield from self._shards

    def shards_ahead(self) -> Iterator[int | None]:
        yield from self._shards

    def made(self, index: int) -> None: ...

    def progress(self, done: float, total: float, note: str = "") -> None: ...

    def say(self, text: str) -> None: ...

    def keep(self, engine: object) -> None: ...


class SyntheticLauncher:
    """Runs stages without models here, and makes up what the others would have made.

    Args:
        seed: of all that is made up.
        hostile: whether the first held-out prompts get `HOSTILE` responses.
    """

    def __init__(self, seed: int, hostile: bool = False) -> None:
        self.seed = seed
        self.hostile = hostile
        self._made_up: dict[str, Callable[[Job[Any], list[int]], Outcome]] = {
            "generate": self._generate,
            "score": self._score,
            "reference": self._reference,
            "dpo": self._dpo,
            "raft": self._raft,
        }

    def launch(self, job: Job[Any], kind: Kind, shards: list[int]) -> Outcome:
        """Make one stage, in this process."""
        if job.stage in self._made_up:
            return self._made_up[job.stage](job, shards)
        return stage_function(job.stage)(job, _Worker(list(range(num_shards(job)))))

    def _generate(self, job: Job[Any], shards: list[int]) -> Outcome:
        tokens = {"end_of_turn_id": END_OF_TURN, "stop_token_ids": [END_OF_TURN], "template_sha256": "0" * 16}
        (job.out_path / "tokens.json").write_text(json_text(tokens))
        start, stop = sliced_rows(job.input_path("prompts"), job.config.slice)
        prompts = pq.read_table(job.input_path("prompts")).slice(start, stop - start)
        for index in shards:
            rows = prompts.slice(index * job.config.shard_size, job.config.shard_size)
            self._candidates_shard(job, rows, index)
        return Outcome()

    def _candidates_shard(self, job: Job[Any], prompts: pa.Table, index: int) -> None:
        """One shard of candidates; a later policy writes longer and is cut more often."""
        policy = _policy_of(job.name)
        is_held_out = "held_out" in job.name
        rng = np.random.default_rng([self.seed, job.config.iteration, int(is_held_out), index])
        n = job.config.n
        num_responses = len(prompts) * n
        seeds = rng.integers(0, 2**31 - 1, num_responses)
        nums_sentences = 1 + rng.poisson(1.5 + 0.7 * policy, num_responses)
        is_cut = rng.random(num_responses) < 0.01 * (1 + policy)
        picks = rng.integers(0, len(SENTENCES), int(nums_sentences.sum())).tolist()
        texts = []
        first = 0
        for num_sentences, cut in zip(nums_sentences.tolist(), is_cut.tolist(), strict=True):
            text = "".join(map(SENTENCES.__getitem__, picks[first : first + num_sentences])).strip()
            texts.append(text[: max(1, len(text) - 9)] if cut else text)
            first += num_sentences
        if self.hostile and is_held_out and index == 0:
            texts[: len(HOSTILE)] = HOSTILE[:num_responses]
        # About four characters a token, and one for the end; 2048 is `generate.max_new_tokens`.
        nums_tokens = np.array([min(2048, 1 + len(text) // 4) for text in texts])
        columns = {
            "token_ids": _token_ids(rng, nums_tokens, is_cut),
            "text": pa.array(texts),
            "finish_reason": pa.array(np.where(is_cut, "length", "stop")),
            "logprob": pa.array(-nums_tokens * (1.1 - 0.08 * policy) + rng.normal(0, 2, num_responses)),
            "seed": pa.array(seeds),
            "temperature": pa.array(temperatures_of(n, job.config.temperatures) * len(prompts)),
        }
        fields = list(CANDIDATES_SCHEMA.field("candidates").type.value_type)
        candidates = pa.StructArray.from_arrays([columns[field.name] for field in fields], fields=fields)
        offsets = pa.array(np.arange(0, num_responses + 1, n), pa.int32())
        prompt_ids = _token_ids(rng, np.full(len(prompts), 12), np.ones(len(prompts), bool))
        arrays = [
            prompts["id"],
            prompts["messages"],
            prompt_ids,
            pa.ListArray.from_arrays(offsets, candidates),
        ]
        counts = {
            "prompts": len(prompts),
            "prompts_sampled": len(prompts),
            "responses": num_responses,
            "truncated": int(is_cut.sum()),
            "response_tokens": int(nums_tokens.sum()),
            "dropped/prompt_too_long": 0,
        }
        table = pa.Table.from_arrays(arrays, names=CANDIDATES_SCHEMA.names).cast(CANDIDATES_SCHEMA)
        write_table(job.out_path / shard_name(index), table, counts)

    def _score(self, job: Job[Any], shards: list[int]) -> Outcome:
        judge = job.name.rsplit("/", 1)[-1]
        policy = _policy_of(job.name)
        for index in shards:
            candidates = _Responses(job.input_path("candidates") / shard_name(index))
            scores = candidates.scores(judge, policy)
            table = pa.Table.from_arrays(
                [candidates.ids, pa.ListArray.from_arrays(candidates.offsets, pa.array(scores))],
                schema=SCORES_SCHEMA,
            )
            counts = {"prompts": len(candidates.ids), "responses": len(scores), "non_finite": 0}
            write_table(job.out_path / shard_name(index), table, counts)
        return Outcome()

    def _reference(self, job: Job[Any], shards: list[int]) -> Outcome:
        policy = _policy_of(job.name)
        for index in shards:
            if "candidates" in job.inputs:
                responses = _Responses(job.input_path("candidates") / shard_name(index))
                ids, offsets = responses.ids, responses.offsets
                drift = 0.6 * policy + 0.02 * responses.nums_tokens + 0.8 * _normal(responses.seeds, 7)
                logprobs = responses.logprobs - drift
            else:
                pairs = pq.read_table(job.input_path("pairs") / shard_name(index))
                ids = pairs["id"].combine_chunks()
                offsets = pa.array(np.arange(0, 2 * len(ids) + 1, 2), pa.int32())
                sides = [pairs["chosen_chars"].to_numpy(), pairs["rejected_chars"].to_numpy()]
                logprobs = -0.3 * np.stack(sides, axis=1).ravel().astype(float)
            lists = pa.ListArray.from_arrays(offsets, pa.array(logprobs))
            table = pa.Table.from_arrays([ids, lists], schema=LOGPROBS_SCHEMA)
            counts = {"rows": len(ids), "responses": len(logprobs), "long_prompts": 0}
            write_table(job.out_path / shard_name(index), table, counts)
        return Outcome()

    def _dpo(self, job: Job[Any], shards: list[int]) -> Outcome:
        num_pairs = sum(
            pq.read_metadata(path).num_rows for path in job.input_path("pairs").glob("shard_*.parquet")
        )
        iteration = _policy_of(job.name)
        num_steps = job.config.num_epochs * -(-num_pairs // job.config.batch_size)
        rng = np.random.default_rng([self.seed, iteration, 3])
        rows = [_step(rng, step, num_steps, job.config) for step in range(1, num_steps + 1)]
        lines = [json_text(row, sort_keys=True) for row in rows]
        (job.out_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        write_stub_model(job.out_path / "model", weight=float(iteration))
        mean_metrics = {}
        for name in ("rewards/accuracies", "rewards/margins"):
            mean_metrics[f"mean_{name}"] = sum(row[name] for row in rows) / len(rows)
        return Outcome(
            {"rows": num_pairs, "pairs": num_pairs, "steps": num_steps},
            {"first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"], **mean_metrics},
        )

    def _raft(self, job: Job[Any], shards: list[int]) -> Outcome:
        write_stub_model(job.out_path / "model", weight=float(_policy_of(job.name)))
        (job.out_path / "metrics.jsonl").write_text(json_text({"step": 1, "loss": 1.0}) + "\n")
        return Outcome({"prompts": 1, "conversations": 1, "steps": 1})


def _step(rng: np.random.Generator, step: int, num_steps: int, config: Any) -> dict[str, float]:
    """One optimizer step's metrics, as a training writes them."""
    progress = (step - 1) / max(1, num_steps - 1)
    margin = 0.0 if step == 1 else 0.9 * progress + float(rng.normal(0, 0.08))
    chosen = 0.3 * margin - 0.2 * progress
    return {
        "step": step,
        "epoch": config.num_epochs * step / num_steps,
        "loss": float(np.log1p(np.exp(-margin))),
        "grad_norm": float(2.5 + rng.gamma(4, 0.2)),
        "learning_rate": config.learning_rate * (1 - progress),
        "rewards/accuracies": float(np.clip(0.5 + 0.3 * progress + rng.normal(0, 0.04), 0, 1)),
        "rewards/margins": margin,
        "rewards/chosen": chosen,
        "rewards/rejected": chosen - margin,
        "logps/chosen": -90 + 8 * progress,
        "logps/rejected": -95 - 12 * progress,
    }


class _Responses:
    """One shard of candidates as columns."""

    def __init__(self, path: Path) -> None:
        names = ["finish_reason", "logprob", "seed"]
        columns = [f"candidates.list.element.{name}" for name in names]
        with pq.ParquetFile(path) as file:
            table = file.read(columns=["id", "candidates.list.element.token_ids.list.element", *columns])
        lists = table["candidates"].combine_chunks()
        flat = lists.flatten()
        self.ids = table["id"].combine_chunks()
        self.offsets = lists.offsets
        self.seeds = flat.field("seed").to_numpy()
        self.logprobs = flat.field("logprob").to_numpy()
        self.nums_tokens = flat.field("token_ids").value_lengths().to_numpy()

    def scores(self, judge: str, policy: int) -> np.ndarray:
        """What a judge says of the responses: quality, the prompt's ease, length, and the judge's own noise.

        The training judge likes length; the second one sees that from the second iteration on.
        """
        of_prompt = np.array([int(name, 16) % 2**31 for name in self.ids.to_pylist()])
        nums_responses = np.diff(self.offsets.to_numpy())
        ease = 0.7 * _normal(np.repeat(of_prompt, nums_responses), 1)
        progress = 0.35 * policy - 0.04 * policy**2
        quality = progress + _normal(self.seeds, 2) + ease
        longer = (self.nums_tokens - 40) / 40
        if judge == "gold":
            return (_uniform(self.seeds, 5) < 1 / (1 + np.exp(-quality))).astype(float)
        if judge == "score":
            return -0.5 + quality + 0.35 * longer + 0.3 * _normal(self.seeds, 3)
        return 0.2 + 0.8 * quality - 0.1 * longer * policy + 0.5 * _normal(self.seeds, 4)


def _token_ids(rng: np.random.Generator, lengths: np.ndarray, is_cut: np.ndarray) -> pa.ListArray:
    """Random token ids, a list for each length; those that are not cut end their turn."""
    ends = np.cumsum(lengths)
    total = int(lengths.sum())
    values = rng.integers(10, 32000, total, dtype=np.int32)
    last_of_finished = ends[~is_cut] - 1
    values[last_of_finished] = END_OF_TURN
    offsets = np.concatenate([[0], ends])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))


def _uniform(keys: np.ndarray, salt: int) -> np.ndarray:
    """A number in (0, 1) for each key, always the same (the mixing of splitmix64)."""
    mixed = keys.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(11)).astype(float) + 0.5) / 2**53


def _normal(keys: np.ndarray, salt: int) -> np.ndarray:
    """A standard normal number for each key, always the same (Box and Muller)."""
    radius = np.sqrt(-2 * np.log(_uniform(keys, 100 + salt)))
    return radius * np.cos(2 * np.pi * _uniform(keys, 200 + salt))


def _policy_of(name: str) -> int:
    """The number of the policy whose responses a stage is about; of a training, of the one that it makes.

    Example:
        "iteration_002/held_out/score" gives 2, "iteration_002/score" gives 1
    """
    iteration = int(name.split("/")[0].removeprefix("iteration_"))
    return iteration if "held_out" in name or name.endswith(TRAINED) else iteration - 1


def write_stub_model(folder: Path, weight: float = 0.0, architecture: str = "LlamaForCausalLM") -> None:
    """A folder that passes for a model where nobody loads it: one number of weights."""
    make_folders(folder)
    described = {"architectures": [architecture], "model_type": "llama", "num_labels": 1}
    (folder / "config.json").write_text(json_text(described))
    header = json_text({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", weight)
    (folder / "model.safetensors").write_bytes(data)


_SOURCES = ("made-up-a", "made-up-b")


def write_prompts(path: Path, number: int) -> None:
    """So many different prompts as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for index in range(number):
            topic = TOPICS[index % len(TOPICS)]
            question = QUESTIONS[index // len(TOPICS) % len(QUESTIONS)].format(topic=topic)
            row = {"prompt": f"{question} (No. {index})", "source": _SOURCES[index % len(_SOURCES)]}
            file.write(json_text(row, ascii_only=False) + "\n")


def settings(folder: Path, prompts: int, n: int, held_out: int, iterations: int, seed: int) -> Config:
    """A run's settings: a judge that trains, a second one, and a yardstick."""
    inputs = folder / "inputs"
    cfg = Config(run_dir=str(folder), seed=seed, num_iterations=iterations)
    cfg.model.path = str(inputs / "policy")
    cfg.model.dtype = Dtype.float32
    cfg.prompts.path = str(inputs / "prompts.jsonl")
    cfg.prompts.num_held_out = held_out
    cfg.prompts.num_per_iteration = prompts
    cfg.reward_model.path = str(inputs / "judge")
    cfg.generate.engine = Engine.transformers
    cfg.generate.n = n
    cfg.score.engine = Engine.transformers
    cfg.evaluate.gold = "rlhf.world.tasks:gold"
    cfg.evaluate.judges = {"second": str(inputs / "second_judge")}
    cfg.dpo.batch_size = min(cfg.dpo.batch_size, max(1, prompts // 8))
    cfg.compute.device = Device.cpu
    return cfg


def make_run(
    folder: Path,
    prompts: int = 12,
    n: int = 4,
    held_out: int = 8,
    iterations: int = 2,
    seed: int = 0,
    hostile: bool = False,
    greedy: int = 0,
    until: str | None = None,
    change: Callable[[Config], None] = lambda cfg: None,
) -> Config:
    """Make a run folder, or finish one that was stopped; returns its settings.

    Args:
        folder: the run; what a person would have given it lies in its folder `inputs`.
        prompts: of one iteration.
        n: responses to each; held-out prompts have `evaluate.n`.
        held_out: held-out prompts.
        iterations: how many.
        seed: of everything that is made up.
        hostile: whether some responses try to break out of a page or a terminal.
        greedy: held-out prompts that policies answer at temperature 0 too.
        until: the stage to stop after, such as `iteration_002/dpo`.
        change: is called with the settings before anything is made, and may change them.
    """
    cfg = settings(folder, prompts, n, held_out, iterations, seed)
    cfg.evaluate.greedy = greedy
    change(cfg)
    if not (folder / "inputs").exists():
        write_stub_model(folder / "inputs" / "policy")
        for judge in ("judge", "second_judge"):
            write_stub_model(folder / "inputs" / judge, architecture="LlamaForSequenceClassification")
        write_prompts(folder / "inputs" / "prompts.jsonl", prompts * iterations + held_out)
    plan = Run(folder, cfg, planning=True)
    iterate(cfg, plan)
    names = plan.pending
    if until is not None:
        names = names[: names.index(until) + 1]
    _pretend_seconds(folder, names, prompts, held_out)
    write_saved(folder, cfg, "synthetic")
    with contextlib.suppress(AloneDone):
        iterate(cfg, Run(folder, cfg, SyntheticLauncher(seed, hostile), until=until))
    return cfg


def _pretend_seconds(folder: Path, names: list[str], prompts: int, held_out: int) -> None:
    """Let stages seem to have been worked on before, as long as an 8B model on eight GPUs might take.

    Their work lasts a moment here, and a picture of that would say nothing.
    """
    per_prompt = {"generate": 0.05, "score": 0.012, "reference": 0.008, "dpo": 0.09, "pair": 0.0005}
    for name in names:
        num_prompts = held_out if "held_out" in name else prompts
        seconds = 5 + per_prompt.get(name.rsplit("/", 1)[-1], 0.001) * num_prompts
        final = folder / name
        partial = final.with_name(f".{final.name}.partial")
        make_folders(partial)
        (partial / ".seconds").write_text(f"{seconds:20.3f}\n")


def main(arguments: list[str]) -> int:
    """Make the run that `out=` names."""
    values: dict[str, Any] = {
        "prompts": 20000,
        "n": 8,
        "held_out": 256,
        "iterations": 3,
        "seed": 0,
        "greedy": 0,
    }
    known = {*values, "out", "hostile", "until"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in known or not equals:
            print(__doc__, file=sys.stderr)
            return 2
        values[key] = int(value) if value.isdecimal() else value
    if "out" not in values:
        print(__doc__, file=sys.stderr)
        return 2
    values["hostile"] = values.get("hostile") == "true"
    out = Path(str(values.pop("out"))).expanduser().resolve()
    make_run(out, **values)
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
