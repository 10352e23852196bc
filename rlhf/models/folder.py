"""Facts about a model folder that every engine needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf.data.json_text import json_text
from rlhf.errors import ModelError, one_line

_TRUST = "trust_remote_code=true"
_CODE = f"A model with Python code of its own needs {_TRUST} in its section, which runs it: read it first."

_LANGUAGE_MODEL = ("text_config", "language_config", "llm_config")
"""Under which names a config holds that of the language model: transformers', and those of models with code
of their own (DeepSeek-VL, InternVL)."""


def own_code(path: str | Path) -> dict[str, str]:
    """What of a model folder is Python code of its own, which `trust_remote_code` runs: class by auto class.

    Example:
        {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}
    """
    classes: dict[str, str] = {}
    for name in ("config.json", "tokenizer_config.json"):
        file = Path(path) / name
        auto_map = read_object(file).get("auto_map") if file.is_file() else None
        if not auto_map:
            continue
        # Old tokenizers name their classes without saying for what.
        if not isinstance(auto_map, dict):
            auto_map = {"AutoTokenizer": auto_map}
        for auto_class, names in auto_map.items():
            class_names = _class_names(names, f"{file}: auto_map of {auto_class}")
            if class_names:
                classes[auto_class] = ", ".join(class_names)
    return classes


def _class_names(value: Any, where: str) -> list[str]:
    """The classes that an entry of `auto_map` names."""
    # A tokenizer names two, the slow and the fast one; null stands for one that does not exist.
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str | None):
            raise ModelError(
                f"{where} is {json_text(value):.80}, which names no class of Python. Mend it in a copy of "
                "the folder, or download it again."
            )
    return [name for name in names if name]


def own_classifier(path: str | Path) -> str | None:
    """The class that comes with a model folder to be its sequence classifier; None where it is one
    of transformers.
    """
    classes = own_code(path)
    return classes.get("AutoModelForSequenceClassification")


def require_trust(path: str | Path, trusted: bool) -> None:
    """Raise ModelError for a judge with code of its own that may not run: transformers would make
    up a head.
    """
    own = own_classifier(path)
    if own and not trusted:
        raise ModelError(
            f"{path}: this judge is computed by Python code that comes with it ({one_line(own)}), and "
            f"without that it has no trained head. Look at the code; then let it run with {_TRUST} "
            "beside its path in reward_model or reward_model.others (evaluate.judges run no code), "
            "or choose another judge."
        )


def text_config(path: str | Path) -> dict[str, Any]:
    """What config.json says of the language model; ModelError where it cannot be read."""
    return language_configs(path)[0]


def language_configs(path: str | Path) -> list[dict[str, Any]]:
    """The config of the language model, then the whole config.json where that is another one.

    Models that also see have one config within another, and some say things of both in the outer one.
    """
    config = read_object(Path(path) / "config.json")
    for name in _LANGUAGE_MODEL:
        inner = config.get(name)
        if isinstance(inner, dict) and inner:
            return [inner, config]
    return [config]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder; ModelError where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"it holds {json_text(content):.80}, and must hold an object")
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read ({error})"
        raise ModelError(f"{path}: {problem}. Save the model anew, or download it again.") from None
    return content


def config_text(config: Mapping[str, Any], sort_keys: bool = False) -> str:
    """A model's config.json.

    Infinite numbers, as state space models have for limits, are written as transformers does, which reads
    them back: null would be another model.
    """
    return json_text(_tagged(config), indent=2, sort_keys=sort_keys) + "\n"


def _tagged(value: Any) -> Any:
    """The same value with an object in place of every number that is not finite.

    Example:
        [0.0, math.inf] gives [0.0, {"__float__": "Infinity"}]
    """
    if isinstance(value, float) and math.isnan(value):
        return {"__float__": "NaN"}
    if isinstance(value, float) and math.isinf(value):
        return {"__float__": "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, list):
        return [_tagged(element) for element in value]
    if isinstance(value, Mapping):
        return {key: _tagged(element) for key, element in value.items()}
    return value


def attention(path: str | Path, trust_remote_code: bool = False) -> str | None:
    """The attention implementation a model has to be loaded with; None is the library's choice.

    Gemma 2 caps its attention scores, which the default kernel leaves out without a word: its
    log-probabilities would not be those of the model that vLLM samples from.
    """
    config = load_config(path, trust_remote_code).get_text_config()
    caps_scores = bool(getattr(config, "attn_logit_softcapping", None))
    return "eager" if caps_scores else None


def load_config(path: str | Path, trust_remote_code: bool = False, **extra: Any) -> Any:
    """The config of a model folder, as transformers has it; ModelError where that needs code that
    may not run.
    """
    # Here and not at the top: the driver reads folders too, and does not wait for transformers.
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **extra)
    # Where a value has another type than it must, the libraries raise anything, and name the field.
    except Exception as error:
        problem = f"its config cannot be used ({one_line(error)})"
        raise ModelError(f"{path}: {problem}. Mend config.json, or download it again. {_CODE}") from error


def load_weights(
    auto: Any,
    path: str | Path,
    dtype: Any,
    trust_remote_code: bool = False,
    new_head: bool = False,
    **extra: Any,
) -> Any:
    """A model of one of transformers' auto classes, from safetensors alone.

    Raises:
        ModelError: it cannot be loaded, or weights are not in the files, which transformers would
            make up at random; with `new_head` those of the score head may be missing, which is
            about to be trained.
    """
    extra["dtype"] = dtype
    extra["attn_implementation"] = attention(path, trust_remote_code)
    extra["trust_remote_code"] = trust_remote_code
    extra["generation_config"] = _generation_config(path)
    try:
        model, info = auto.from_pretrained(path, use_safetensors=True, output_loading_info=True, **extra)
    # As many kinds as there are ways for a config and weights not to fit; what other code raises is a bug.
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        import transformers

        task = auto.__name__.removeprefix("AutoModelFor")
        raise ModelError(
            f"{path}: cannot be loaded as {task} with transformers {transformers.__version__} "
            f"({one_line(error)}). Check config.json. {_CODE} Code that is too old for this version is "
            "mended in a copy of the folder."
        ) from error
    missing = []
    for name in sorted(info["missing_keys"]):
        may_be_missing = new_head and name.startswith("score.")
        if not may_be_missing:
            missing.append(name)
    if missing:
        shown = ", ".join(missing[:4])
        if len(missing) > 4:
            shown += ", …"
        raise ModelError(
            f"{path}: {len(missing)} weights of {type(model).__name__} are not in its files: "
            f"{shown}. Download or save it anew, or mend config.json."
        )
    return model


def _generation_config(path: str | Path) -> Any:
    """In place of a generation_config.json that transformers refuses; None leaves it to the library.

    A temperature without `do_sample`, which many published models have, is refused when the trained
    model is saved, and other contradictions already at loading. Nothing here generates by it, and
    what is exported is the file itself.
    """
    from transformers import GenerationConfig

    if not refuses_generation_config(path):
        return None
    stops = saved_stop_ids(path) or text_config(path).get("eos_token_id")
    return GenerationConfig(eos_token_id=stops)


def refuses_generation_config(path: str | Path) -> bool:
    """Whether transformers would not load, or not save, the generation config of a model folder."""
    from transformers import GenerationConfig

    try:
        try:
            settings = GenerationConfig.from_pretrained(path)
        # Without the file transformers takes what config.json has of it.
        except OSError:
            settings = GenerationConfig.from_pretrained(
                path, config_file_name="config.json", _from_model_config=True
            )
        settings.validate(strict=True)
    # The values are compared with numbers and names, so that wrong types raise anything.
    except Exception:
        return True
    return False


def saved_stop_ids(path: str | Path) -> list[int]:
    """The tokens at which a model stops, as its generation_config.json says; none without the file.

    Raises:
        ModelError: the file cannot be read, or they are no token ids.
    """
    file = Path(path) / "generation_config.json"
    if not file.is_file():
        return []
    # Not by transformers, which refuses whole files for a setting that has nothing to do with stops.
    stops = read_object(file).get("eos_token_id")
    if stops is None:
        return []
    ids = stops if isinstance(stops, list) else [stops]
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool):
            raise ModelError(
                f"{file}: eos_token_id={stops!r} is no token id and no list of them. Mend it, or "
                "remove it and name the stop tokens in generate.stop_token_ids."
            )
    return ids


@contextmanager
def engine_alive() -> Iterator[None]:
    """Say what it means when one of the processes of a vLLM engine is gone; its own word for it is
    `cancelled`.
    """
    try:
        yield
    except Exception as error:
        # By name: the class is vLLM's, and importing vLLM takes seconds.
        if type(error).__name__ != "EngineDeadError" and str(error) != "cancelled":
            raise
        raise RuntimeError(
            "a process of vLLM's engine died (the kernel kills one when memory runs out: see dmesg)"
        ) from error
