"""The head that makes a model a judge: told from its weights, before any is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rlhf.errors import ModelError, one_line
from rlhf.models.folder import load_config, own_classifier, read_object
from rlhf.models.weight_files import has_weights, weight_headers, weight_names

_SCORE = re.compile(r"(^|\.)score\.weight$")
"""Whatever a wrapper has put in front of the name."""
# In the order in which they are named to the user; a folder may hold several of them.
_ENCODER_HEADS = ("classifier", "classification_head", "logits_proj")
_VALUE_HEADS = (
    "v_head",
    "value_head",
    "rm_head",
    "reward_head",
    "regression_head",
    "regression_layer",
    "value",
)
_DECODERS = (
    "Use a model whose sequence classification class is a decoder with a score head (Llama, Qwen, "
    "Mistral, Gemma, Phi, …)"
)


def judge_config(path: str | Path, trust_remote_code: bool = False) -> Any:
    """The config of a judge, with as many labels as its head has rows where config.json does not name
    them.
    """
    config = load_config(path, trust_remote_code)
    # Set before the model is built: its head gets so many rows.
    num_rows = unnamed_labels(path)
    if num_rows is not None:
        config.num_labels = num_rows
    return config


def unnamed_labels(path: str | Path) -> int | None:
    """Rows of the score head where config.json names no number of labels, for which transformers takes two.

    None where it does, or the weights have no such head or are not here.
    """
    # Code of its own counts its labels as it likes.
    if _names_labels(path) or own_classifier(path):
        return None
    return _score_rows(path)


def _names_labels(path: str | Path) -> bool:
    config = read_object(Path(path) / "config.json")
    return config.get("num_labels") is not None or config.get("id2label") is not None


def _score_rows(path: str | Path) -> int | None:
    if not has_weights(path):
        return None
    for name, tensor in weight_headers(path):
        # A single number has no shape, and is no head that a vector of hidden states goes through.
        if _SCORE.search(name) and tensor["shape"]:
            return int(tensor["shape"][0])
    return None


def require_one_logit(path: str | Path, config: Any) -> None:
    """Refuse a model without a score head of one row, and one whose score is computed by code of its own.

    Args:
        path: the judge's folder; of one on the Hub the weights may be missing.
        config: what `judge_config` gives.

    Raises:
        ModelError: what it has in place of that, and what to use.
    """
    own = own_classifier(path)
    if own:
        raise ModelError(
            f"{path}: the judge's score is computed by Python code that comes with it "
            f"({one_line(own)}), which runs in transformers only. Use score.engine=transformers (or "
            "auto) and reward_model.url=null."
        )
    _require_score_head(path, config)
    num_rows = _score_rows(path)
    if num_rows is None and not _names_labels(path):
        # Of a model on the Hub the files that would tell are not here yet.
        return
    if config.num_labels != 1:
        raise ModelError(
            f"{path}: the judge has {config.num_labels} labels, and which of them is the reward "
            "is not known. Use a sequence classifier with one logit, or a model whose own code "
            "says it (`score`; docs/recipe.md)."
        )
    if num_rows not in (None, 1):
        raise ModelError(
            f"{path}: config.json says one label, and the score head has {num_rows} rows, so which "
            "of them is the "
            "reward is not known. Use a sequence classifier with one logit, or mend a copy of the folder."
        )


def _require_score_head(path: str | Path, config: Any) -> None:
    names = weight_names(path)
    # A wrong number of rows is told by the caller.
    if not names or any(_SCORE.search(name) for name in names):
        return
    tops = {name.partition(".")[0] for name in names}
    if "score" in tops:
        layers = ", ".join(sorted(name for name in names if name.startswith("score.")))
        raise ModelError(
            f"{path}: its head `score` is no single linear layer ({one_line(layers)}), and transformers has "
            "no class for that. "
            f"Use the version that comes with its code (trust_remote_code), or another judge. {_DECODERS}."
        )
    for head in _ENCODER_HEADS:
        if head in tops:
            raise ModelError(
                f"{path}: its head is called `{head}`, as encoders (BERT, RoBERTa, DeBERTa) have "
                "it, and is no linear "
                f"head named `score` that is read at the last token. {_DECODERS}."
            )
    for head in _VALUE_HEADS:
        if head in tops:
            raise ModelError(
                f"{path}: its head is called `{head}`: a value head, which other trainers (TRL's "
                "or OpenRLHF's PPO) "
                "put on a causal LM, and no score head, so transformers would make one up. If it "
                "was trained as a "
                "reward model, rename its weight to score.weight in a copy of the folder, and set "
                "num_labels=1 in "
                f"config.json (a bias is lost: it changes no order). Else: {_DECODERS}."
            )
    # Loaded all the same, it would score with a head of random numbers.
    kind = ", ".join(config.architectures or ["a model without a head"])
    raise ModelError(
        f"{path}: the judge has no score head ({one_line(kind)}): it writes text and gives no number, and "
        "transformers would "
        "make a head up. Use a sequence classifier with one logit (…ForSequenceClassification), "
        "train one from it "
        "with reward_model.data, or set reward_model.kind=pairwise for a causal LM that answers A or B."
    )
