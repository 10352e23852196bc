"""The model card of an exported policy: where it comes from, what it was trained with, how it did.

`facts` are part of the export's fingerprint, so they hold no time, host or absolute path: files go by their
names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.config.choices import Method
from rlhf.config.fields import compared
from rlhf.config.schema import Config
from rlhf.loop.figures import KL_ESTIMATOR, Row, distance_text
from rlhf.loop.judges import models_of
from rlhf.loop.prompt_sets import prompt_paths
from rlhf.loop.table import table
from rlhf.run import hub
from rlhf.run.artifact import Artifact
from rlhf.run.licences import UNKNOWN, licence_of_data, licence_of_model

# Where and how it ran, and limits that change nothing: no part of what the model is.
_NOT_SHOWN = {"run_dir", "debug", "report_to", "compute", "reuse", "gates"}
# Keys whose value may be a relative path, which cannot be told from a name by its looks.
_PATHS = {"path", "data", "prompts", "held_out_path"}


def is_hub_id(path: str) -> bool:
    """Whether a model's path names it on the Hub."""
    if path.startswith(("/", ".", "~", "@")) or path.count("/") != 1:
        return False
    return not Path(path).exists()  # owner/name may be a folder here as well, and then that is read


def name_of(path: str) -> str:
    """What a model or file is called without saying where it lies; Hub ids and parts of the run stay whole.

    Example:
        "/data/models/policy" is "policy", "@world/model" is "world/model", "meta-llama/Llama-3.1-8B" stays as
        it is
    """
    if path.startswith("@"):
        return path.removeprefix("@")
    if is_hub_id(path):
        return path
    return Path(path).name


def licences(cfg: Config) -> dict[str, str]:
    """Licences of the models and data that a run is given, by name; empty where none is known.

    Example:
        {"meta-llama/Meta-Llama-3-8B-Instruct": "llama3", "sfairXC/FsfairX-LLaMA3-RM-v0.1": "cc-by-nc-4.0",
        "prompts.jsonl": "unknown"}
    """
    by_name = {}
    for key, (path, revision) in models_of(cfg).items():
        if not path.startswith("@"):
            by_name[name_of(path)] = licence_of_model(path, revision, key)
    for path in _data_paths(cfg):
        if not path.startswith("@"):
            by_name[_data_name(path)] = licence_of_data(path, "data")
    # Of a run on files of this machine nothing is known, and its card says nothing of it.
    known = set(by_name.values()) - {UNKNOWN}
    return by_name if known else {}


def _data_name(path: str) -> str:
    """What a file is called without saying where it lies, or the data set's own name without its split."""
    dataset = hub.parse_dataset(path)
    if dataset is None or Path(path).exists():
        return Path(path).name
    return dataset.repo


def _data_paths(cfg: Config) -> list[str]:
    """Every data file or set that the policy or the judge learns from."""
    paths: list[str] = []
    # Given pairs bring their prompts along.
    if cfg.pair.data is None:
        for t in range(1, cfg.num_iterations + 1):
            paths += prompt_paths(cfg, t)
    given = (cfg.sft.data, cfg.pair.data, cfg.replay.data, cfg.reward_model.data)
    for path in (*given, cfg.reward_model.on_policy.prompts):
        if path is not None:
            paths.append(path)
    return paths


def facts(
    cfg: Config,
    rows: Sequence[Row],
    policies: Sequence[Artifact],
    iteration: int,
    licences: Mapping[str, str],
) -> dict[str, Any]:
    """What the card of π_iteration says; `policies` are all that were evaluated, π0 first.

    Example:
        {"base": "owner/name", "base_model": "owner/name", "sft": False, "judge": "owner/judge", "iteration":
        3, …}
    """
    base = cfg.model.path
    told = {
        "base": name_of(base),
        "base_model": base if is_hub_id(base) else None,
        "sft": cfg.sft.data is not None,
        "judge": _judge_names(cfg),
        "prompts": _prompt_names(cfg),
        "iteration": iteration,
        "num_iterations": len(policies) - 1,
        "table": table(rows),
        "lineage": [str(policy.digest) for policy in policies[: iteration + 1]],
        "settings": _shown(compared(cfg)),
        "versions": policies[iteration].record.get("versions", {}),
    }
    # Each only where there is something to tell: exports of before are then the same, and are not made anew.
    if licences:
        told["licences"] = dict(licences)
    if cfg.pair.data is not None:
        told["given_pairs"] = True
    if cfg.method is Method.raft:
        told["raft"] = True
    if rows[0].log_ratio is not None:
        told["distance"] = distance_text(rows)
    return told


def _prompt_names(cfg: Config) -> str:
    """The files or data sets that training prompts come from: of the prompts, or of given pairs."""
    if cfg.pair.data is not None:
        return name_of(cfg.pair.data)
    if isinstance(cfg.prompts.path, str):
        return name_of(cfg.prompts.path)
    return ", ".join(map(name_of, cfg.prompts.path))


def _judge_names(cfg: Config) -> str:
    """The training judge, and those that are summed with it."""
    section = cfg.reward_model
    names = name_of(section.rule or section.generative.model or section.path)
    if section.data is not None:
        names += ", trained in this run"
    for other in section.others.values():
        names += f" + {name_of(other.rule or other.path or '')}"
    return names


def _shown(section: dict[str, Any]) -> dict[str, Any]:
    """Settings that make the model what it is; paths are shortened to names."""
    shown: dict[str, Any] = {}
    for key, value in section.items():
        if key in _NOT_SHOWN or _is_unused(key, section):
            continue
        if key == "reward_model" and value["data"] is None:
            value = _ready_judge(value)
        if isinstance(value, dict):
            value = _shown(value)
        elif isinstance(value, str) and (key in _PATHS or value.startswith(("/", "~"))):
            value = name_of(value)
        elif isinstance(value, list) and key in _PATHS:
            value = [name_of(str(path)) for path in value]
        shown[key] = value
    return shown


def _is_unused(key: str, settings: dict[str, Any]) -> bool:
    """Whether a section is of something that the run does not do."""
    if key == "world":
        return not settings[key]["enabled"]
    if key == "sft":
        return settings[key]["data"] is None
    # The method is left out where it is the default.
    is_raft = settings.get("method") == Method.raft.value
    return (key == "raft" and not is_raft) or (key in ("dpo", "reference") and is_raft)


def _ready_judge(section: dict[str, Any]) -> dict[str, Any]:
    """What the section `reward_model` says of a judge that is not trained here."""
    names = ["rule"]
    if section["rule"] is None:
        names = ["path", "revision", "dtype", "trust_remote_code"]
    if section["others"]:
        names += ["weight", "others"]
    return {name: section[name] for name in names}


def _yaml(value: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(value)).strip()


def _way(facts: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Title, how it was trained, and tags: of pairs that the policies sampled, or of given ones."""
    if facts.get("given_pairs"):
        how = "It was trained with DPO on given pairs: nothing was sampled to train on."
        return "Offline DPO", how, ["rlhf", "dpo", "preference-optimization"]
    if facts.get("raft"):
        how = (
            "Each iteration sampled responses from the current policy, scored them with the judge and fine-tuned on "
            "the best\nof each prompt (*RAFT*, arXiv 2304.06767)."
        )
        return "Iterative best-of-n fine-tuning", how, ["rlhf", "raft", "rejection-sampling"]
    how = (
        "Each iteration sampled responses from the current policy, scored them with the judge, paired the best\n"
        "with the worst and trained with DPO (*RLHF Workflow*, arXiv 2405.07863)."
    )
    return (
        "Online iterative DPO",
        how,
        ["rlhf", "dpo", "online-dpo", "iterative-dpo", "preference-optimization"],
    )


def text(facts: dict[str, Any], dtype: str) -> str:
    """The card: front matter for the Hub, then Markdown."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts["base_model"]:
        front |= {"base_model": facts["base_model"], "base_model_relation": "finetune"}
    title, how, tags = _way(facts)
    front["tags"] = tags
    lineage = [f"π{t} `{digest[:16]}`" for t, digest in enumerate(facts["lineage"])]
    licences = ""
    if "licences" in facts:
        of_each = "; ".join(f"{name}: {licence}" for name, licence in facts["licences"].items())
        licences = f"\n| licences of what it was made from | {of_each} |"
    distance = facts.get("distance", f"KL is\n{KL_ESTIMATOR}")
    versions = ", ".join(f"{package} {version}" for package, version in sorted(facts["versions"].items()))
    return f"""---
{_yaml(front)}
---

# {title} of {facts["base"]}

π{facts["iteration"]} of {facts["num_iterations"]} iterations: the policy with the highest mean score of the judge on
held-out prompts. {how}

| | |
|---|---|
| base model | {facts["base"]}{", fine-tuned in this run (π0)" if facts["sft"] else " (π0)"} |
| judge | {facts["judge"]} |
| prompts | {facts["prompts"]} |{licences}
| weights | {dtype} |
| lineage (digests of the trained weights) | {" → ".join(lineage)} |
| trained with | {versions or "unknown"} |

## Held-out evaluation

```
{facts["table"]}
```

`score` is the judge's mean, `gold` a check the training never saw, `win rate` by the judge against π0, {distance}. The policy was chosen by the first column, so that figure is a little too good.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
ids = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Hello"}}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=256)[0], skip_special_tokens=True))
```

or `vllm serve path/to/this/folder --dtype {dtype}`.

## Settings

```yaml
{_yaml(facts["settings"])}
```
"""
