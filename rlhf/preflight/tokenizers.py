"""Stage `preflight`: what tokenizers, templates and configs of models say before any of them is loaded.

Not a stage of the loop: it leaves no artifact; the metric `findings` is what `rlhf.preflight.look` shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rlhf.config.choices import JudgeKind, SpecialTokens
from rlhf.config.schema import Config
from rlhf.config.stage_configs import PreflightStage
from rlhf.data.records import Message
from rlhf.errors import one_line
from rlhf.generation.vllm_args import prompt_limit
from rlhf.models.folder import own_classifier, require_trust
from rlhf.preflight.findings import Finding, Level, collect, finding, refusal
from rlhf.run.job import Job, Outcome, Worker

# A text that no template writes by itself, so that what stands around it can be told.
_ANSWER = "Zq7"
# What templates are known to change in answers, and a text that shows it.
_CHANGES = {
    "plain text": _ANSWER,
    "<think>…</think>": f"<think>\nhm\n</think>\n\n{_ANSWER}",
    "inner white space": f"{_ANSWER}  b\n\n\n  c\t{_ANSWER}",
}


@dataclass(frozen=True)
class JudgeFacts:
    """What a config says of a judge that matters for its tokenizer; by default, that it only evaluates."""

    pairwise: bool = False
    generative: bool = False
    trained_here: bool = False
    trust_remote_code: bool = False


def run(job: Job[PreflightStage], worker: Worker) -> Outcome:
    """Look at the tokenizers in `folders`, by config key, as `cfg` uses them.

    `prompts` are rendered with the policy's.
    """
    cfg = job.config.cfg
    prompts = job.config.prompts
    findings: list[Finding] = []
    for key, folder in job.config.folders.items():
        if key == "model.path":
            findings += collect("policy", _policy(folder, cfg, prompts))
        else:
            facts = _judge_facts(cfg, key)
            findings += collect("judge", _judge(key, folder, facts, cfg, prompts))
    findings += collect("training", _names(cfg))
    return Outcome(metrics={"findings": findings})


def _judge_facts(cfg: Config, key: str) -> JudgeFacts:
    section = cfg.reward_model
    if key == "reward_model.path":
        return JudgeFacts(
            pairwise=section.kind is JudgeKind.pairwise,
            generative=section.kind is JudgeKind.generative,
            trained_here=section.data is not None,
            trust_remote_code=section.trust_remote_code,
        )
    if key.startswith("reward_model.others."):
        # reward_model.others.NAME.path, and a name may hold points
        name = key.removeprefix("reward_model.others.").removesuffix(".path")
        judge = section.others[name]
        return JudgeFacts(trust_remote_code=judge.trust_remote_code)
    return JudgeFacts()


def _names(cfg: Config) -> Iterator[Finding]:
    """What is passed on to the trainers by name: schedule and arguments."""
    yield _schedule(cfg.dpo.lr_scheduler)
    # A pairwise judge is a language model that learns to write A or B, so TRL's SFT trains it.
    pairwise = cfg.reward_model.kind is JudgeKind.pairwise
    arguments_of = {
        "dpo": "DPOConfig",
        "sft": "SFTConfig",
        "raft": "SFTConfig",
        "reward_model": "SFTConfig" if pairwise else "RewardConfig",
    }
    for section, class_name in arguments_of.items():
        names = list(getattr(cfg, section).trainer_args)
        if names:
            yield _trainer_args(section, names, class_name)


def _schedule(name: str) -> Finding:
    from transformers.trainer_utils import SchedulerType

    schedules = [schedule.value for schedule in SchedulerType]
    way_out = f"transformers has {', '.join(schedules)}."
    return finding(name in schedules, f"dpo.lr_scheduler={name}", way_out, Level.error)


def _trainer_args(section: str, names: list[str], class_name: str) -> Finding:
    import trl

    known = {field.name for field in fields(getattr(trl, class_name))}
    unknown = sorted(set(names) - known)
    shown = ", ".join(unknown or names)
    text = f"{section}.trainer_args: {shown}"
    return finding(not unknown, text, f"It is no field of trl.{class_name}.", Level.error)


def _policy(path: str, cfg: Config, prompts: list[list[Message]]) -> Iterator[Finding]:
    from rlhf.models import chat_template
    from rlhf.models.template import probe

    trust = cfg.model.trust_remote_code
    generate = cfg.generate
    trains_sft = cfg.sft.data is not None
    # SFT may give the model another template, which is then the one that everything is rendered with.
    template = cfg.sft.chat_template if trains_sft else None
    tokenizer = chat_template.load_tokenizer(path, trust, template, cfg.special_tokens)
    question = probe(tokenizer)
    template_hash = chat_template.template_hash(tokenizer)
    yield finding(True, f"chat template {template_hash}; the reference is π0 or an iterate, with the same")
    limit = chat_template.longest_prompt(path, generate.max_prompt_tokens, generate.max_new_tokens, trust)
    limit = prompt_limit(generate, limit)
    # Where nothing was read here (prompts on the Hub, or made by the run), one question stands for them.
    rows = [{"messages": messages} for messages in prompts or [question]]
    sampled, counts = chat_template.render_prompts(rows, tokenizer, limit)
    rendered = [ids for _, ids in sampled]
    yield from _dropped_prompts(counts, limit)
    # Who asks for tokens means them.
    if cfg.special_tokens is SpecialTokens.text:
        yield from _templated_already(tokenizer, prompts)
    if not rendered:
        return
    yield _vocabulary(tokenizer, rendered, path, trust)
    yield _one_bos(tokenizer, rendered)
    yield _header(tokenizer, rendered)
    end = chat_template.end_of_turn_id(tokenizer)
    stops = chat_template.stop_token_ids(tokenizer, path, generate.stop_token_ids, trust)
    name = tokenizer.convert_ids_to_tokens(end)
    text = f"end of turn {name!r} ({end}), sampling stops at {stops}"
    why = "It is no token of the model: mend eos_token or the template."
    yield finding(end in stops, text, why, Level.error)
    # SFT data and given pairs are rendered by the template; sampled responses come as tokens.
    if trains_sft or cfg.pair.data is not None or cfg.replay.data is not None:
        _, response_ids = chat_template.render_response(tokenizer, question, _ANSWER)
        why = "The template ends no answer with it, so written responses do not teach where to stop: mend it."
        yield finding(response_ids[-1] == end, "written responses end with the end of turn", why, Level.error)
        yield _unchanged_answers(tokenizer, question, "the template")


def _dropped_prompts(counts: dict[str, int], limit: int) -> Iterator[Finding]:
    """Whether prompts are refused by the template or too long; an error where that leaves none.

    Args:
        counts: of `rlhf.models.chat_template.render_prompts`.
        limit: tokens that a prompt may have.

    Example:
        counts: {"prompts": 9, "prompts_sampled": 8, "dropped/prompt_too_long": 1,
        "dropped/refused_by_template": 0}
    """
    total = counts["prompts"]
    level = Level.warning if counts["prompts_sampled"] else Level.error
    refused = counts["dropped/refused_by_template"]
    why = (
        "They are dropped. Take such turns (a system's, say) out of the data, or mend the template in a copy."
    )
    text = f"{refused} of {total} prompts are refused by the template"
    yield finding(not refused, text, why, level)
    spelling = counts.get("dropped/spells_special_token", 0)
    # Most tokenizers read them as text, and then there is nothing to say.
    if spelling:
        text = f"{spelling} of {total} prompts spell special tokens that the tokenizer cannot read as text"
        why = (
            "They are dropped. Take these tokens out of the prompts, or set "
            "special_tokens=tokens if they are meant."
        )
        yield Finding(level, text, why)
    too_long = counts["dropped/prompt_too_long"]
    why = (
        "They are dropped: generate.max_prompt_tokens, or what the context leaves beside "
        "generate.max_new_tokens."
    )
    # Some long ones are usual in a data set; more than a tenth, and the limit may be a mistake.
    text = f"{too_long} of {total} prompts exceed {limit} tokens"
    yield finding(too_long <= 0.1 * total, text, why, level)


def _templated_already(tokenizer: Any, prompts: list[list[Message]]) -> Iterator[Finding]:
    """Whether prompts hold what only a chat template writes."""
    from rlhf.models.special_tokens import template_token, templated_already

    tokens = Counter[str]()
    for messages in prompts:
        token = template_token(tokenizer, messages)
        if token is not None:
            tokens[token] += 1
    if not tokens:
        yield finding(True, f"none of {len(prompts)} prompts holds a chat template's tokens")
        return
    yield refusal(templated_already(tokens, len(prompts)), Level.warning)


def _unchanged_answers(tokenizer: Any, question: list[Message], whose: str) -> Finding:
    """Whether a template writes answers as they stand; those that it changes are dropped from the data."""
    from rlhf.errors import TemplateRefuses
    from rlhf.models.written import require_written

    changed = []
    for name, text in _CHANGES.items():
        answered = [*question, {"role": "assistant", "content": text}]
        try:
            require_written(tokenizer, answered, [len(question)])
        except TemplateRefuses:
            changed.append(name)
    if not changed:
        return finding(True, f"{whose} writes answers as they stand")
    why = (
        "Such answers of the data are dropped and counted (changed_by_template): mend it in a copy of the "
        "model's folder so that it writes contents as they are."
    )
    # Where it writes not even plain text as it stands, no answer is left.
    level = Level.error if "plain text" in changed else Level.warning
    return Finding(level, f"{whose} changes answers: {', '.join(changed)}", why)


def _vocabulary(tokenizer: Any, rendered: list[list[int]], path: str, trust: bool) -> Finding:
    """Whether every token has an embedding; a tokenizer from elsewhere may have more than the model."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust)
    rows = config.get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values())
    # Without tokens that were added and are in no prompt: those do no harm.
    used = max(tokenizer.vocab_size - 1, *map(max, rendered))
    level = Level.error if used >= rows else Level.warning
    why = (
        "Text with such a token fails. Use the tokenizer that was saved with these weights, or "
        "enlarge the embedding."
    )
    return finding(largest < rows, f"token ids up to {largest}, {rows} rows of embeddings", why, level)


def _one_bos(tokenizer: Any, rendered: list[list[int]]) -> Finding:
    from rlhf.models.chat_template import bos_per_exchange, end_of_turn_id

    bos = tokenizer.bos_token_id
    # Some models begin a conversation with the token that ends a turn: several of it are right.
    if bos is None or bos in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)):
        return finding(True, "no BOS token of its own")
    # In ChatML models it may be <|im_start|>; Llama 2 begins every question with it.
    if bos_per_exchange(tokenizer):
        return finding(True, f"the BOS {tokenizer.bos_token!r} opens turns")
    several = 0
    for ids in rendered:
        if ids.count(bos) > 1:
            several += 1
    text = f"{several} of {len(rendered)} rendered prompts have more than one BOS"
    why = "Take it out of the middle of the template, or out of the prompts' text."
    # In all of them it is the template that writes it, in some it is their own text.
    level = Level.error if several == len(rendered) else Level.warning
    return finding(not several, text, why, level)


def _header(tokenizer: Any, rendered: list[list[int]]) -> Finding:
    """Whether prompts end with what the template writes in front of an answer."""
    from rlhf.models.chat_template import render_conversation, render_prompt
    from rlhf.models.template import probe

    question = probe(tokenizer)
    prompt = render_prompt(tokenizer, question)
    without_header = render_conversation(tokenizer, question)
    answer = {"role": "assistant", "content": _ANSWER}
    answered = render_conversation(tokenizer, [*question, answer])
    header = prompt[_common_length(prompt, without_header) :]
    rest = tokenizer.decode(answered[_common_length(answered, prompt) :])
    before = rest.partition(_ANSWER)[0].strip()
    if not header and before:
        text = f"the template writes {before!r} before an answer, but not after a prompt"
        why = (
            "Give it an {% if add_generation_prompt %} branch; else the policy goes on with the user's turn."
        )
        return Finding(Level.error, text, why)
    ends = 0
    for ids in rendered:
        if ids[len(ids) - len(header) :] == header:
            ends += 1
    shown = tokenizer.decode(header)
    text = f"{ends} of {len(rendered)} rendered prompts end with the generation header {shown!r}"
    return finding(ends == len(rendered), text, "Look at the template: its end depends on the conversation.")


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    length = 0
    for first_id, second_id in zip(first, second, strict=False):
        if first_id != second_id:
            break
        length += 1
    return length


def _judge(
    key: str,
    path: str,
    facts: JudgeFacts,
    cfg: Config,
    prompts: list[list[Message]],
) -> Iterator[Finding]:
    from rlhf.models.chat_template import load_tokenizer, template_hash
    from rlhf.models.comparison import answer_ids, render_comparison, require_causal_lm
    from rlhf.models.context import judge_context
    from rlhf.models.heads import judge_config
    from rlhf.models.template import probe

    require_trust(path, facts.trust_remote_code)
    tokenizer = load_tokenizer(path, facts.trust_remote_code, special_tokens=cfg.special_tokens)
    config = judge_config(path, facts.trust_remote_code)
    yield finding(True, f"{key}: chat template {template_hash(tokenizer)}")
    own = own_classifier(path)
    if facts.generative:
        require_causal_lm(path, config)
        yield finding(True, f"{key}: a causal LM that is asked in words")
        return
    if facts.pairwise:
        require_causal_lm(path, config)
        answer_ids(tokenizer)
        # It reads one user turn whatever the prompt, which a template may refuse too.
        render_comparison(tokenizer, [], "a", "b")
        yield finding(True, f"{key}: a causal LM for which A and B are one token each")
    elif own:
        yield finding(True, f"{key}: computed by its own code ({one_line(own)})")
    elif not facts.trained_here:
        # One that is trained here gets its score head first.
        yield _one_logit(key, path, config, tokenizer)
    # A pairwise judge takes every prompt: its turns are written into the one user turn.
    if prompts and not facts.pairwise:
        yield _read_prompts(key, tokenizer, prompts)
    if facts.trained_here and not facts.pairwise:
        yield _unchanged_answers(tokenizer, probe(tokenizer), f"{key}: the template")
    max_tokens = cfg.score.max_tokens
    context = judge_context(path, config, max_tokens)
    why = f"Set score.max_tokens={context}: beyond its context a judge's scores mean little."
    fits = context is None or max_tokens <= context
    yield finding(fits, f"{key}: score.max_tokens={max_tokens} of {context}", why)


def _read_prompts(key: str, tokenizer: Any, prompts: list[list[Message]]) -> Finding:
    from rlhf.models.chat_template import refusal_of_judge

    refusals = []
    for messages in prompts:
        error = refusal_of_judge(tokenizer, messages)
        if error is not None:
            refusals.append(error)
    text = f"{key}: {len(refusals)} of {len(prompts)} prompts are refused by its template"
    why = f"They are not sampled: {refusals[0]}" if refusals else ""
    level = Level.error if len(refusals) == len(prompts) else Level.warning
    return finding(not refusals, text, why, level)


def _one_logit(key: str, path: str, config: Any, tokenizer: Any) -> Finding:
    from rlhf.models.chat_template import end_of_turn_id
    from rlhf.models.heads import require_one_logit

    require_one_logit(path, config)
    if config.num_labels != 1:
        return finding(True, f"{key}: its weights, which are not here yet, will say how many labels it has")
    pad = config.get_text_config().pad_token_id
    if pad in (tokenizer.eos_token_id, end_of_turn_id(tokenizer)):
        # A pipeline takes the score at the last token that is not this one, so before the end of the turn.
        what = "is the end of a turn; scores are read by length here, but not in a pipeline elsewhere"
    else:
        what = "is no end of a turn"
    return finding(True, f"{key}: one logit; pad token {pad} {what}")
