"""What can be told before a run begins, without loading a model: docs/checks.md lists the checks.

What needs tokenizers is in `rlhf.stages.preflight`, which a process of its own runs.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import distributions
from pathlib import Path

from rlhf.config.choices import Engine
from rlhf.config.fields import filled
from rlhf.config.limits import problems, value_at
from rlhf.config.schema import Config
from rlhf.config.stage_configs import PreflightStage, StageCompute
from rlhf.config.training import DpoConfig
from rlhf.data.prompts import read_prompts
from rlhf.data.records import Message, Prompt, what_became
from rlhf.errors import ConfigError, UserError, WorkerFailed
from rlhf.launch.machine import gpus, memory
from rlhf.loop.judges import models_of
from rlhf.loop.prompt_sets import PLACEHOLDER, too_few
from rlhf.models.weight_files import num_parameters, saved_dtype
from rlhf.preflight.capacity import approximate_size, check_capacity
from rlhf.run import hub, sources
from rlhf.run.commit import VERSIONS
from rlhf.run.job import Job, Kind
from rlhf.run.plan import Launcher

LARGE = 1e9  # parameters from which the usual learning rates are known; smaller models take larger ones
ROWS, SECONDS, SAMPLE = 20_000, 5.0, 100  # read of each file of prompts at most, and rendered
_FILES = ("prompts.held_out_path", "sft.data", "pair.data", "reward_model.data", "reward_model.on_policy.prompts")
_RULES = ("reward_model.rule", "evaluate.gold", "reward_model.on_policy.rule")
_MADE_HERE = "– made by this run"
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


class Level(Enum):
    """Fine, odd but legal, or bound to fail."""

    ok = "✓"
    warning = "⚠"
    error = "✗"


@dataclass(frozen=True)
class Finding:
    """What was looked at with the value found, and unless it is fine why that matters and what to do."""

    level: Level
    text: str
    way_out: str = ""
    subject: str = ""


def finding(fine: bool, text: str, way_out: str = "", level: Level = Level.warning) -> Finding:
    """A finding that is fine, or else of the given level with its way out."""
    return Finding(Level.ok, text) if fine else Finding(level, text, way_out)


def refusal(message: str, level: Level = Level.error) -> Finding:
    """An error message as a finding: its first sentence says what is wrong, the rest is the way out."""
    ends = (at.start() for at in re.finditer(r"(?<=\.)\s+(?=[A-Z])", message))
    end = next((at for at in ends if message.count("(", 0, at) == message.count(")", 0, at)), len(message))
    return Finding(level, message[:end], message[end:].strip())


def collect(subject: str, check: Iterable[Finding]) -> list[Finding]:
    """All that a check finds; a user's error that it raises is the last of it."""
    found: list[Finding] = []
    try:
        found.extend(check)
    except UserError as error:
        found.append(refusal(str(error)))
    return [replace(each, subject=each.subject or subject) for each in found]


def table(found: list[Finding]) -> str:
    """A block for each subject, a line for each finding and below it the way out."""
    lines = []
    for subject in dict.fromkeys(each.subject for each in found):
        lines.append(subject)
        for each in (each for each in found if each.subject == subject):
            lines += [f"  {each.level.value} {each.text}", *(f"      {line}" for line in each.way_out.splitlines())]
    return "\n".join(lines)


def look(cfg: Config, launcher: Launcher) -> list[Finding]:
    """Everything there is to find; `launcher` starts the process that reads tokenizers, if a model is from outside."""
    if wrong := problems(cfg):
        return collect("config", map(refusal, wrong))
    folders, files, sizes, sample = dict[str, Path](), dict[str, Path](), dict[str, float](), list[list[Message]]()
    found = collect("models", models(cfg, folders, sizes)) + collect("data", data(cfg, files))
    found += collect("prompts", prompts(cfg, files, sample))
    named = cfg.report_to or cfg.dpo.lr_scheduler != DpoConfig().lr_scheduler
    if folders or named or any(value_at(cfg, f"{section}.trainer_args") for section in ("dpo", "sft", "reward_model")):
        looked_at = PreflightStage(cfg, {key: str(path) for key, path in folders.items()}, sample)
        compute = filled(StageCompute, cfg.compute)
        job = Job("preflight", "preflight", looked_at, {}, "", cfg.seed, compute)
        try:
            found += launcher.launch(job, Kind.single, []).metrics["findings"]
        except (UserError, WorkerFailed) as error:
            found.append(Finding(Level.warning, "tokenizers could not be looked at", str(error), "models"))
    found += collect("training", training(cfg, sizes)) + collect("machine", disk(cfg, sizes))
    return found + collect("machine", room(cfg, sizes, folders)) + collect("versions", versions(cfg))


def require(cfg: Config, launcher: Launcher, say: Callable[[str], None]) -> None:
    """Look before a run, say what is odd, and refuse what cannot work.

    Raises:
        ConfigError: everything that is wrong or odd, with the ways out.
    """
    found = [each for each in look(cfg, launcher) if each.level is not Level.ok]
    if Level.error in {each.level for each in found}:
        raise ConfigError(f"the preflight found what cannot work; nothing was run.\n{table(found)}")
    if found:
        say(table(found))


def models(cfg: Config, folders: dict[str, Path], sizes: dict[str, float]) -> Iterator[Finding]:
    """Every model that is loaded; `folders` and `sizes` (parameters, 0 if unknown) get those from outside, by key."""
    for key, (path, revision) in models_of(cfg).items():
        try:
            text = _MADE_HERE
            if not path.startswith("@"):
                folder = sources.model_folder(path, revision, key, weights=False)
                here = any(folder.glob("*.safetensors"))
                size = float(num_parameters(folder)) if here else approximate_size(path) or 0
                text = f"{size / 1e6:.4g} M parameters, {saved_dtype(folder)}" if here else "on the Hub"
                folders[key], sizes[key] = folder, size
            yield finding(True, f"{key}={path}: {text}")
        except UserError as error:
            yield refusal(str(error))


def data(cfg: Config, files: dict[str, Path]) -> Iterator[Finding]:
    """Every data file, rule, server and run to reuse; `files` gets the local files, by key, held-out prompts first."""
    given = {key: str(value) for key in (*_FILES, *_RULES) if (value := value_at(cfg, key)) is not None}
    several = PLACEHOLDER in cfg.prompts.path
    for t in range(1, cfg.num_iterations * several + 1):
        given[f"prompts.path.{t}"] = cfg.prompts.path.replace(PLACEHOLDER, str(t))
    for key, path in (given if several else given | {"prompts.path": cfg.prompts.path}).items():
        try:
            name, text = hub.parse_dataset(path), "on the Hub; its rows are looked at by the run's first stages"
            if path.startswith("@"):
                text = _MADE_HERE
            elif key in _RULES:
                sources.function_source(path, key)
                text = "the module is there"
            elif name is None or Path(path).expanduser().exists():
                files[key] = sources.local_file(path, key)
                text = f"{files[key].stat().st_size / 1e6:.3g} MB"
            else:
                hub.fetch_dataset(name.repo, name.revision, key, rows=False)
            yield finding(True, f"{key}={path}: {text}")
        except UserError as error:
            yield refusal(str(error))
    if cfg.reward_model.url is not None:
        yield _server(cfg.reward_model.url)
    for path in cfg.reuse:
        number = len(list(Path(path).expanduser().glob("**/artifact.json")))
        yield finding(number > 0, f"reuse={path}: {number} finished stages", "Nothing is taken from it.")


def _server(url: str) -> Finding:
    import httpx

    try:
        answer = f"HTTP {httpx.get(url.rstrip('/') + '/health', timeout=5).status_code}"
    except httpx.HTTPError as error:
        answer = f"no answer, {type(error).__name__}: {error}"
    fine = answer.startswith("HTTP") and answer < "HTTP 5"  # 404 is fine: not every server has /health
    fix = "Start it before the first score stage, which asks for score.retry_seconds before it gives up."
    return finding(fine, f"reward_model.url={url}: {answer}", fix)


def prompts(cfg: Config, files: dict[str, Path], sample: list[list[Message]]) -> Iterator[Finding]:
    """Whether the prompts are enough, and apart from the held-out ones and each other; `sample` gets some of them.

    Raises:
        DataError: a file holds no prompt.
    """
    taken: set[str] = set()
    cut = cfg.prompts.num_held_out if cfg.prompts.held_out_path is None else 0
    for key in (key for key in files if key.startswith("prompts.")):
        counts, begun, kept = Counter[str](), time.monotonic(), list[Prompt]()
        for prompt in read_prompts(files[key], counts):
            kept.append(prompt)
            if part := counts["rows"] > ROWS or time.monotonic() - begun > SECONDS:
                break
        text = f"{key}: {len(kept)} prompts in {'the first ' * part}{what_became(counts)}"
        yield finding(len(kept) > 0.8 * counts["rows"], text, "Many rows are dropped; look at the file.")
        own = {prompt.id for prompt in kept}
        there, known = len(own - taken) - cut, len(own & taken)
        if key != "prompts.held_out_path":
            sample.extend(list(prompt.messages) for prompt in kept[:: max(1, len(kept) // SAMPLE)])
            text = f"{key}: {known} of {len(own)} prompts are held out or in an earlier iteration's set"
            yield finding(not known, text, "They are left out of this one.")
            problem = None if part or key != "prompts.path" else too_few(cfg, there, dict(counts))
            if not part and there <= 0:
                problem = f"{key}: no prompt is left to train on. Name another file, or hold out fewer."
            if problem:
                yield refusal(problem)
            cut = 0
        taken |= own


def _ranks(cfg: Config) -> int:
    return cfg.compute.num_training_ranks or len(gpus(cfg.compute)) or 1


def training(cfg: Config, sizes: dict[str, float]) -> Iterator[Finding]:
    """Batch size, learning rates and token limits; `sizes` are parameters by config key, where they are known."""
    batch, ranks, lora, recipe = cfg.dpo.batch_size, _ranks(cfg), cfg.dpo.lora.rank > 0, DpoConfig()
    why = "It does not divide evenly: some ranks wait in every step. The result is the same."
    yield finding(batch % ranks == 0, f"dpo.batch_size={batch} over {ranks} training ranks", why)
    large = sizes.get("model.path", 0) >= LARGE
    if large and not lora and cfg.dpo.learning_rate == recipe.learning_rate:
        why = f"The two go together ({recipe.batch_size}): at 32 others lost half a point of MT-Bench."
        yield finding(batch == recipe.batch_size, f"dpo.batch_size={batch} at the recipe's learning rate", why)
    rates = [("dpo", large or lora, 1e-6 if lora else 1e-8, 1e-3 if lora else 1e-5)]
    rates += [("sft", large, 1e-7, 1e-4)] if cfg.sft.data else []
    judge_is_large = sizes.get("reward_model.path", 0) >= LARGE
    rates += [("reward_model", judge_is_large, 1e-7, 1e-4)] if cfg.reward_model.data else []
    for section, known, low, high in rates:
        rate = value_at(cfg, f"{section}.learning_rate")
        why = f"Usual are {low:g} to {high:g}: below, the model hardly moves; above, it tends to break."
        text = f"{section}.learning_rate={rate:g}{' with LoRA' * (lora and section == 'dpo')}"
        yield finding(low <= rate <= high or not known, text, why)
    whole = cfg.generate.max_prompt_tokens + cfg.generate.max_new_tokens
    why = f"Prompt and response may have {whole}: the judge would not see the beginning. Raise it if it can read them."
    fine = cfg.score.max_tokens >= whole or cfg.reward_model.rule is not None
    yield finding(fine, f"score.max_tokens={cfg.score.max_tokens}", why)


def disk(cfg: Config, sizes: dict[str, float]) -> Iterator[Finding]:
    """What is yet to be written: fp32 weights of each iteration, an export, two checkpoints, responses."""
    folder = Path(cfg.run_dir or ".").expanduser().resolve()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    left = sum(not (folder / f"iteration_{t:03d}" / "dpo").is_dir() for t in range(1, cfg.num_iterations + 1))
    policy, sft = sizes.get("model.path", 0), cfg.sft.data is not None
    judge = sizes.get("reward_model.path", 0) * (cfg.reward_model.data is not None)
    checkpoint = 12 * max(policy * (cfg.dpo.lora.rank == 0 or sft), judge)  # fp32 weights and both of Adam's moments
    tokens = left * cfg.prompts.num_per_iteration * cfg.generate.n * cfg.generate.max_new_tokens / 2
    needed = 4 * policy * (left + sft + 1) + 4 * judge + 2 * checkpoint + 8 * tokens  # ids and text of half the limit
    fix = "Put run_dir on a larger disk, make room, or run fewer num_iterations."
    yield _fits("disk, to be written", needed, shutil.disk_usage(there).free, 0.8, fix)


def room(cfg: Config, sizes: dict[str, float], folders: dict[str, Path]) -> Iterator[Finding]:
    """Weights, gradients and Adam's state of each stage against the memory of one GPU, or of the machine without one.

    Raises:
        ConfigError: the models are far too large for this machine.
    """
    check_capacity(cfg)
    devices, ranks, held = gpus(cfg.compute), _ranks(cfg), dict[str, float]()
    there = memory(devices)
    yield finding(there is not None, f"{len(devices)} GPUs", "Without nvidia-smi their memory is unknown.")
    for key, dtype in (("model.path", cfg.model.dtype.value), ("reward_model.path", cfg.reward_model.dtype.value)):
        if key in sizes:  # 16 bits where nothing tells, as published models have
            here = any(folders[key].glob("*.safetensors"))
            held[key] = sizes[key] * (4 if (saved_dtype(folders[key], dtype) if here else dtype) == "float32" else 2)
    policy, adam = held.get("model.path", 0), 0 if cfg.compute.offload_optimizer else 12 * sizes.get("model.path", 0)
    training = policy / (ranks if cfg.compute.zero_stage == 3 else 1)
    training += 0 if cfg.dpo.lora.rank else (policy + adam) / ranks
    judge = 0 if cfg.reward_model.url else held.get("reward_model.path", 0)
    workers, share = cfg.compute.num_inference_workers or 1, cfg.generate.gpu_memory_utilization if devices else 1
    parallel, more = "tensor_parallel_size=2 or more", "more training ranks (GPUs)"
    for stage, needed, processes, part, fix in (
        ("generate", policy / cfg.generate.tensor_parallel_size, workers, share, f"generate.{parallel}"),
        ("dpo", training, ranks, 1, f"compute.offload_optimizer=true, compute.zero_stage=3, dpo.lora.rank=32, {more}"),
        ("score", judge / cfg.score.tensor_parallel_size, workers, 1, f"score.engine=vllm with score.{parallel}"),
    ):
        if needed:  # without GPUs all processes share the machine's memory
            text, all_of_it = f"memory for {stage}, without activations", needed * (1 if devices else processes)
            limit, ways = part * (there or math.inf), f"A smaller model, more memory, or {fix}."
            yield _fits(text, all_of_it, limit, 0.85, ways)


def _fits(what: str, needed: float, there: float, tight: float, way_out: str) -> Finding:
    text = f"{what}: {needed / 1e9:.3g} GB of {there / 1e9:.3g} GB"
    return finding(needed <= tight * there, text, way_out, Level.error if needed > there else Level.warning)


def versions(cfg: Config) -> Iterator[Finding]:
    """Packages that the chosen engines need, against the lower bounds of pyproject.toml where that is there."""
    needed = [*VERSIONS, *(["vllm"] if Engine.vllm in (cfg.generate.engine, cfg.score.engine) else [])]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', _PYPROJECT.read_text()) if _PYPROJECT.is_file() else [])
    for name in needed:
        found = [each.version for alias in (name, f"{name}-cpu") for each in distributions(name=alias)]
        new = bool(found) and _numbers(found[0]) >= _numbers(bounds.get(name, "0"))
        fix = f"make setup installs {bounds.get(name, 'it')} or later."
        fix += " Or set generate.engine and score.engine to transformers." if name == "vllm" else ""
        level = Level.warning if found else Level.error
        yield finding(new, f"{name} {found[0] if found else 'is not installed'}", fix, level)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
