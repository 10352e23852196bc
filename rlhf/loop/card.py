"""The model card of an exported policy: where it comes from, what it was trained with, how it did.

`facts` are part of the export's fingerprint, so they hold no time, host or absolute path: files go by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.config.fields import compared
from rlhf.config.schema import Config
from rlhf.loop.figures import KL_ESTIMATOR, Row, table
from rlhf.run.artifact import Artifact

_NOT_SHOWN = {"run_dir", "debug", "report_to", "compute", "reuse", "gates"}
_PATHS = {"path", "data", "prompts", "held_out_path"}


def is_hub_id(path: str) -> bool:
    """Whether a model's path names it on the Hub."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~", "@")) and not Path(path).exists()


def name_of(path: str) -> str:
    """What a model or file is called without saying where it lies; Hub ids and parts of the run stay whole."""
    return path.removeprefix("@") if path.startswith("@") or is_hub_id(path) else Path(path).name


def facts(cfg: Config, rows: Sequence[Row], policies: Sequence[Artifact], iteration: int) -> dict[str, Any]:
    """What the card of π_iteration says; `policies` are all that were evaluated, π0 first."""
    base, judge, others = cfg.model.path, cfg.reward_model.rule or cfg.reward_model.path, cfg.reward_model.others
    return {
        "base": name_of(base),
        "base_model": base if is_hub_id(base) else None,
        "sft": cfg.sft.data is not None,
        "judge": name_of(judge)
        + (", trained in this run" if cfg.reward_model.data is not None else "")
        + "".join(f" + {name_of(other.rule or other.path or '')}" for other in others.values()),
        "prompts": name_of(cfg.prompts.path),
        "iteration": iteration,
        "num_iterations": len(policies) - 1,
        "table": table(rows),
        "lineage": [str(policy.digest) for policy in policies[: iteration + 1]],
        "settings": _shown(compared(cfg)),
        "versions": policies[iteration].record.get("versions", {}),
    }


def _shown(section: dict[str, Any]) -> dict[str, Any]:
    """Settings that make the model what it is."""
    shown: dict[str, Any] = {}
    for key, value in section.items():
        if key in _NOT_SHOWN or (key == "world" and not value["enabled"]) or (key == "sft" and value["data"] is None):
            continue
        if key == "reward_model" and value["data"] is None:
            ready = ("path", "revision", "dtype", "trust_remote_code") if value["rule"] is None else ("rule",)
            value = {name: value[name] for name in (*ready, *(("weight", "others") if value["others"] else ()))}
        if isinstance(value, dict):
            value = _shown(value)
        elif isinstance(value, str) and (key in _PATHS or value.startswith(("/", "~"))):
            value = name_of(value)
        shown[key] = value
    return shown


def _yaml(value: dict[str, Any]) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(value)).strip()


def text(facts: dict[str, Any], dtype: str) -> str:
    """The card: front matter for the Hub, then Markdown."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if facts["base_model"]:
        front |= {"base_model": facts["base_model"], "base_model_relation": "finetune"}
    front["tags"] = ["rlhf", "dpo", "online-dpo", "iterative-dpo", "preference-optimization"]
    lineage = [f"π{t} `{digest[:16]}`" for t, digest in enumerate(facts["lineage"])]
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

`score` is the judge's mean, `gold` a check the training never saw, `win rate` by the judge against π0, KL is
{KL_ESTIMATOR}. The policy was chosen by the first column, so that figure is a little too good.

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
