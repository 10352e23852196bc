"""Stage `preflight`: what tokenizers, templates and configs of models say before any of them is loaded.

Not a stage of the loop: it leaves no artifact; the metric `findings` is what `rlhf.preflight.look` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Any

from rlhf.config.choices import JudgeKind
from rlhf.config.schema import Config
from rlhf.config.stage_configs import PreflightStage
from rlhf.data.records import Message
from rlhf.models.context import context_length
from rlhf.models.folder import own_classifier, require_trust
from rlhf.preflight.look import Finding, Level, collect, finding
from rlhf.run.job import Job, Outcome, Worker

_QUESTION = [{"role": "user", "content": "a"}]
_ANSWER = "Zq7"


@dataclass(frozen=True)
class JudgeFacts:
    """What a config says of a judge that matters for its tokenizer; by default, that it only evaluates."""

    pairwise: bool = False
    trained_here: bool = False
    trust_remote_code: bool = False


def run(job: Job[PreflightStage], worker: Worker) -> Outcome:
    """Look at the tokenizers in `folders`, by config key, as `cfg` uses them; render `prompts` with the policy's."""
    cfg = job.config.cfg
    findings: list[Finding] = []
    for key, folder in job.config.folders.items():
        if key == "model.path":
            findings += collect("policy", _policy(folder, cfg, job.config.prompts or [_QUESTION]))
        else:
            findings += collect("judge", _judge(key, folder, _judge_facts(cfg, key), cfg.score.max_tokens))
    findings += collect("training", _names(cfg))
    return Outcome(metrics={"findings": findings})


def _judge_facts(cfg: Config, key: str) -> JudgeFacts:
    section = cfg.reward_model
    if key == "reward_model.path":
        return JudgeFacts(section.kind is JudgeKind.pairwise, section.data is not None, section.trust_remote_code)
    if key.startswith("reward_model.others."):
        # reward_model.others.NAME.path, and a name may hold points
        name = key.removeprefix("reward_model.others.").removesuffix(".path")
        return JudgeFacts(trust_remote_code=section.others[name].trust_remote_code)
    return JudgeFacts()


def _names(cfg: Config) -> Iterator[Finding]:
    """What is passed on to the trainers by name: schedule, trackers, arguments."""
    from transformers.trainer_utils import SchedulerType

    name, schedules = cfg.dpo.lr_scheduler, [each.value for each in SchedulerType]
    fix = f"transformers has {', '.join(schedules)}."
    yield finding(name in schedules, f"dpo.lr_scheduler={name}", fix, Level.error)
    if cfg.report_to:
        from transformers.integrations import get_available_reporting_integrations

        there = [*get_available_reporting_integrations(), "all", "none"]
        fix = f"Here there are {', '.join(there)}; install the package of another."
        yield finding(set(cfg.report_to) <= set(there), f"report_to={cfg.report_to}", fix, Level.error)
    own = "SFTConfig" if cfg.reward_model.kind is JudgeKind.pairwise else "RewardConfig"
    for section, arguments in {"dpo": "DPOConfig", "sft": "SFTConfig", "reward_model": own}.items():
        if extra := getattr(cfg, section).trainer_args:
            import trl

            unknown = sorted(set(extra) - {field.name for field in fields(getattr(trl, arguments))})
            text = f"{section}.trainer_args: {', '.join(unknown or extra)}"
            yield finding(not unknown, text, f"It is no field of trl.{arguments}.", Level.error)


def _policy(path: str, cfg: Config, prompts: list[list[Message]]) -> Iterator[Finding]:
    from transformers import AutoConfig

    from rlhf.models import chat

    trust, generate, trains = cfg.model.trust_remote_code, cfg.generate, cfg.sft.data is not None
    tokenizer = chat.load_tokenizer(path, trust, cfg.sft.chat_template if trains else None)
    yield finding(
        True, f"chat template {chat.template_hash(tokenizer)}; the reference is π0 or an iterate, with the same"
    )
    limit = chat.longest_prompt(path, generate.max_prompt_tokens, generate.max_new_tokens, trust)
    kept, counts = chat.render_prompts([{"messages": messages} for messages in prompts], tokenizer, limit)
    rendered, level = [ids for _, ids in kept], Level.warning if kept else Level.error
    refused, long = counts["dropped/refused_by_template"], counts["dropped/prompt_too_long"]
    why = "They are dropped. Take such turns (a system's, say) out of the data, or mend the template in a copy."
    yield finding(not refused, f"{refused} of {len(prompts)} prompts are refused by the template", why, level)
    why = "They are dropped: generate.max_prompt_tokens, or what the context leaves beside generate.max_new_tokens."
    yield finding(long <= 0.1 * len(prompts), f"{long} of {len(prompts)} prompts exceed {limit} tokens", why, level)
    if not kept:
        return
    rows = AutoConfig.from_pretrained(path, trust_remote_code=trust).get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values())
    used = max(tokenizer.vocab_size - 1, *map(max, rendered))  # without tokens that were added and are in no prompt
    why = "Text with such a token fails. Use the tokenizer that was saved with these weights, or enlarge the embedding."
    level = Level.error if used >= rows else Level.warning
    yield finding(largest < rows, f"token ids up to {largest}, {rows} rows of embeddings", why, level)
    yield _one_bos(tokenizer, rendered)
    yield _header(tokenizer, rendered)
    end, stops = chat.end_of_turn_id(tokenizer), chat.stop_token_ids(tokenizer, path, generate.stop_token_ids, trust)
    text = f"end of turn {tokenizer.convert_ids_to_tokens(end)!r} ({end}), sampling stops at {stops}"
    yield finding(end in stops, text, "It is no token of the model: mend eos_token or the template.", Level.error)
    if trains or cfg.pair.data is not None:
        last = chat.render_response(tokenizer, _QUESTION, _ANSWER)[1][-1]
        why = "The template ends no answer with it, so written responses do not teach where to stop: mend it."
        yield finding(last == end, "written responses end with the end of turn", why, Level.error)


def _one_bos(tokenizer: Any, rendered: list[list[int]]) -> Finding:
    from rlhf.models.chat import end_of_turn_id

    bos = tokenizer.bos_token_id
    if bos is None or bos in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)):
        return finding(True, "no BOS token of its own")
    several = sum(ids.count(bos) > 1 for ids in rendered)
    text = f"{several} of {len(rendered)} rendered prompts have more than one BOS"
    why = "Take it out of the middle of the template, or out of the prompts' text."
    return finding(not several, text, why, Level.error if several == len(rendered) else Level.warning)


def _header(tokenizer: Any, rendered: list[list[int]]) -> Finding:
    """Whether prompts end with what the template writes in front of an answer."""
    from rlhf.models.chat import render_conversation, render_prompt

    prompt, turn = render_prompt(tokenizer, _QUESTION), render_conversation(tokenizer, _QUESTION)
    answered = render_conversation(tokenizer, [*_QUESTION, {"role": "assistant", "content": _ANSWER}])
    header, rest = prompt[_common(prompt, turn) :], answered[_common(answered, prompt) :]
    before = tokenizer.decode(rest).partition(_ANSWER)[0].strip()
    if not header and before:
        why = "Give it an {% if add_generation_prompt %} branch; else the policy goes on with the user's turn."
        return Finding(Level.error, f"the template writes {before!r} before an answer, but not after a prompt", why)
    ends = sum(ids[len(ids) - len(header) :] == header for ids in rendered)
    text = f"{ends} of {len(rendered)} rendered prompts end with the generation header {tokenizer.decode(header)!r}"
    return finding(ends == len(rendered), text, "Look at the template: its end depends on the conversation.")


def _common(one: list[int], other: list[int]) -> int:
    return len(list(takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False))))


def _judge(key: str, path: str, facts: JudgeFacts, max_tokens: int) -> Iterator[Finding]:
    from transformers import AutoConfig

    from rlhf.models.chat import end_of_turn_id, load_tokenizer, template_hash
    from rlhf.models.comparison import answer_ids, require_causal_lm
    from rlhf.scoring.classifier_judge import require_one_logit

    require_trust(path, facts.trust_remote_code)
    tokenizer = load_tokenizer(path, facts.trust_remote_code)
    config = AutoConfig.from_pretrained(path, trust_remote_code=facts.trust_remote_code)
    yield finding(True, f"{key}: chat template {template_hash(tokenizer)}")
    if facts.pairwise:
        require_causal_lm(path, config)
        answer_ids(tokenizer)
        yield finding(True, f"{key}: a causal LM for which A and B are one token each")
    elif own := own_classifier(path):
        yield finding(True, f"{key}: computed by its own code ({own})")
    elif not facts.trained_here:
        require_one_logit(path, config)
        pad, ends = config.get_text_config().pad_token_id, (tokenizer.eos_token_id, end_of_turn_id(tokenizer))
        same = "is the end of a turn; scores are read by length here, but not in a pipeline elsewhere"
        yield finding(True, f"{key}: one logit; pad token {pad} {same if pad in ends else 'is no end of a turn'}")
    context = context_length(path)
    why = f"Set score.max_tokens={context}: beyond its context a judge's scores mean little."
    yield finding(context is None or max_tokens <= context, f"{key}: score.max_tokens={max_tokens} of {context}", why)
