"""The model card of an exported policy: where it comes from, what it was trained with, how it did.

`facts` are part of the export's fingerprint, so they hold no time, host or absolute path: files go by their
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.config.fields import compared
from rlhf.config.schema import Config
from rlhf.loop.figures import KL_ESTIMATOR, Row, distance_text, table
from rlhf.run.artifact import Artifact

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


def facts(cfg: Config, rows: Sequence[Row], policies: Sequence[Artifact], iteration: int) -> dict[str, Any]:
    """What the card of π_iteration says; `policies` are all that were evaluated, π0 first.

    Example:
        {"base": "owner/name", "base_model": "owner/name", "sft": False, "judge": "owner/judge", "iteration":
        3, …}
    """
    base = cfg.model.path
    # Only where it is no KL: facts are part of what an export is, and those of other runs stay as they are.
    distance = {} if rows[0].log_ratio is None else {"distance": distance_text(rows)}
    return distance | {
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
    names = name_of(section.rule or section.path)
    if section.data is not None:
        names += ", trained in this run"
    for other in section.others.values():
        names += f" + {name_of(other.rule or other.path or '')}"
    return names


def _shown(section: dict[str, Any]) -> dict[str, Any]:
    """Settings that make the model what it is; paths are shortened to names."""
    shown: dict[str, Any] = {}
    for key, value in section.items():
        if key in _NOT_SHOWN or _is_unused(key, value):
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


def _is_unused(key: str, section: Any) -> bool:
    """Whether a section is of something that the run does not do."""
    if key == "world":
        return not section["enabled"]
    return key == "sft" and section["data"] is None


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


def text(facts: dict[str, Any], dtype: str) -> str:
    """The card: front matter for the Hub, then Markdown."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts["base_model"]:
        front |= {"base_model": facts["base_model"], "base_model_relation": "finetune"}
    front["tags"] = ["rlhf", "dpo", "online-dpo", "iterative-dpo", "preference-optimization"]
    lineage = [f"π{t} `{digest[:16]}`" for t, digest in enumerate(facts["lineage"])]
    distance = facts.get("distance", f"KL is\n{KL_ESTIMATOR}")
    versions = ", ".join(f"{package} {version}" for package, version in sorted(facts["versions"].items()))
    return f"""---
{_yaml(front)}
---

# Online iterative DPO of {facts["base"]}

π{facts["iteration"]} of {facts["num_iterations"]} iterations: the policy with the highest mean score of the judge on
held-out prompts. Each iteration sampled responses from the current policy, scored them with the judge, paired the best
with the worst and trained with DPO (*RLHF Workflow*, arXiv 2405.07863).

| | |
|---|---|
| base model | {facts["base"]}{", fine-tuned in this run (π0)" if facts["sft"] else " (π0)"} |
| judge | {facts["judge"]} |
| prompts | {facts["prompts"]} |
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
