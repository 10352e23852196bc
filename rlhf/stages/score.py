"""Score every candidate with a judge."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf.config.choices import Engine
from rlhf.config.stage_configs import ComparisonStage, GenerativeStage, ScoreStage
from rlhf.data.judge_files import judge_file
from rlhf.data.records import Message
from rlhf.data.schemas import SCORES_SCHEMA
from rlhf.data.shards import read_all_rows, read_rows, shard_name, shard_paths, sum_counts, write_shard
from rlhf.errors import ModelError, TemplateRefuses, UserError
from rlhf.models.fallback import free_engine
from rlhf.run.engine_choice import is_open, pin_engine, with_engine
from rlhf.run.job import Job, Outcome, Worker
from rlhf.run.stage_table import num_shards
from rlhf.scoring.judge import Scored
from rlhf.scoring.kept import kept_answers
from rlhf.scoring.tournament import Group, Tournament, score_groups
from rlhf.stages.judge_answers import conclude_answers, write_answers

_QUESTION = "What is the capital of France?"
_GOOD = "The capital of France is Paris."
# A judge of the quickstart's world has never seen plain English.
_QUESTION_OF_THE_WORLD = "Reverse: a d c"
_GOOD_IN_THE_WORLD = "c d a."
_TOLD_SECONDS = 1.0
"""Between two words of how many answers there are."""
_ABSURD = "Purple bananas the the seven of loudly, therefore no."


def run(job: Job[ScoreStage], worker: Worker) -> Outcome:
    """Write a scores shard per candidates shard; inputs are `candidates` and, unless `rule` is set, `judge`.

    Config beside the section's own: `rule` (module:function or null), `dtype` and
    `trust_remote_code` of the judge; for a pairwise judge `kind` and `opponents`. With it the input
    `against` may be the candidates of another policy for the same prompts: scores are then
    comparable between policies. `known_candidates.N` and `known_scores.N`, for any N, are what this
    judge has scored on the same prompts before (with the same `against`): equal responses keep
    their score. Responses to prompts that the judge's chat template does not take score NaN; such
    prompts are counted as `refused_by_template`.

    Raises:
        TemplateRefuses: the judge's chat template takes none of the prompts.
    """
    if worker.rank > 0 and getattr(job.config, "served_model", None) is not None:
        # One process asks a server: it alone knows how soon it may ask again.
        return Outcome()
    judge = None
    metrics: dict[str, Any] = {}
    for index in worker.shards():
        rows = list(read_rows(job.input_path("candidates") / shard_name(index)))
        known = _known(job, index)
        groups = _groups(job, rows, known, index)
        scored = Scored([])
        if groups:
            if judge is None:
                # Not before it is needed: loading takes minutes, and there may be nothing left to score.
                judge = _judge(job, worker)
                worker.keep(getattr(judge, "engine", None))
                if worker.rank == 0:
                    _add_warning(metrics, **_golden_pair(job, judge))
            scored = _scored_and_kept(job, worker, judge, groups, index)
        scores = _all_scores(rows, known, scored)
        out = []
        for row, values in zip(rows, scores, strict=True):
            out.append({"id": row["id"], "scores": values})
        counts = _counts(job, scores, scored)
        num_refused = _num_refused(groups, scored)
        if num_refused:
            counts["refused_by_template"] = num_refused
        if isinstance(job.config, GenerativeStage):
            counts |= write_answers(job, _asked(judge) if groups else None, index)
        write_shard(job.shard_path(index), SCORES_SCHEMA, out, counts)
    if worker.rank == 0:
        _add_warning(metrics, _unread(job, getattr(judge, "context", None)))
    if isinstance(job.config, GenerativeStage):
        told, spent = conclude_answers(job)
        if worker.rank == 0:
            _add_warning(metrics, told)
            metrics |= spent
    note = getattr(judge, "note", "")
    if note:
        metrics["engine"] = note
    _refuse_if_all_are_refused(job)
    return Outcome(metrics=metrics)


def _judge(job: Job[ScoreStage], worker: Worker) -> Any:
    """The judge of the stage, in the engine of all its shards.

    Raises:
        ModelError: another worker has begun in an engine that this one cannot load it in.
    """
    from rlhf.scoring.choose_judge import load_judge

    if job.config.rule is None and job.config.url is None:
        worker.progress(0, 0, "loading the judge, and compiling kernels where its engine does")
    judge: Any = load_judge(job.config, job.inputs, _lengths(job))
    loaded_in = getattr(judge, "loaded_in", None)
    if loaded_in is None or not is_open(job.config):
        return judge
    # Of rank 0 the stage's line has it, at the end.
    if worker.rank > 0 and loaded_in is Engine.transformers and judge.note:
        worker.say(f"  ! {job.name}, rank {worker.rank}: {judge.note}")
    first = pin_engine(job.out_path, loaded_in)
    if first is loaded_in:
        return judge
    worker.say(
        f"  ! {job.name}: one of its workers takes {first.value}, as another does, and not {loaded_in.value}"
    )
    # Gone before the other one comes: both may not fit.
    del judge
    free_engine()
    try:
        judge = load_judge(with_engine(job.config, first), job.inputs)
    except UserError as error:
        raise ModelError(
            f"Another worker has begun this stage with {first.value} (score.engine=auto), in which this one "
            f"cannot load the judge: {error} One engine scores a stage. Make that one work for all workers, "
            "or name the other one; the command then says what of the work goes."
        ) from error
    judge.note = f"{first.value} (as another worker)"
    return judge


def _lengths(job: Job[ScoreStage]) -> Iterator[int]:
    """Characters of each conversation of the stage."""
    for row in read_all_rows(job.input_path("candidates"), ["messages", "candidates.list.element.text"]):
        prompt = sum(len(message["content"]) for message in row["messages"])
        for candidate in row["candidates"]:
            yield prompt + len(candidate["text"])


def _groups(
    job: Job[ScoreStage], rows: list[dict[str, Any]], known: dict[tuple[str, str], float], index: int
) -> list[Group]:
    """Of each row of candidates the responses that the judge has not scored before; none of a row
    without any.
    """
    against = _texts(job, "against", index) if "against" in job.inputs else {}
    groups = []
    for row in rows:
        prompt_id = row["id"]
        new = []
        for candidate in row["candidates"]:
            text = candidate["text"]
            if (prompt_id, text) not in known:
                new.append(text)
        if new:
            groups.append(Group(row["messages"], new, against.get(prompt_id)))
    # A group without opponents of the other policy would be held against itself, and nobody would notice.
    assert not against or all(group.against for group in groups), "against and candidates are out of step"
    return groups


def _scored(judge: Any, groups: list[Group]) -> Scored:
    """Scores of all responses; NaN for all where the judge's template takes none of them."""
    try:
        return score_groups(judge, groups)
    except TemplateRefuses:
        # A shard may hold just the few prompts that it does not take; whether all are such is seen at the
        # end.
        num_responses = sum(len(group.responses) for group in groups)
        return Scored([math.nan] * num_responses, refused=tuple(range(num_responses)))


def _asked(judge: Any) -> Any:
    """The judge itself, also where a tournament is made of its comparisons."""
    return judge.judge if isinstance(judge, Tournament) else judge


def _scored_and_kept(
    job: Job[ScoreStage], worker: Worker, judge: Any, groups: list[Group], index: int
) -> Scored:
    """Scores of a shard; what a judge that is asked in words or a slow rule says is kept as it comes."""
    asked = _asked(judge)
    keeps = isinstance(job.config, GenerativeStage) or getattr(asked, "keeps", False)
    if not keeps:
        return _scored(judge, groups)
    told_at = 0.0

    def progress(done: int, of: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > _TOLD_SECONDS or done == of:
            told_at = time.monotonic()
            worker.progress(0, 0, f"{done} of {of} answers of shard {index}")

    with kept_answers(job.out_path, index, job.writer) as kept:
        if kept.num_damaged:
            worker.say(f"  ! {job.name}: {kept.num_damaged} kept answers are damaged, and asked for again")
        asked.begin(kept, progress)
        return _scored(judge, groups)


def _num_refused(groups: list[Group], scored: Scored) -> int:
    """How many prompts have a response that the judge's template does not take."""
    refused = set(scored.refused)
    num_refused = 0
    first = 0
    for group in groups:
        places = range(first, first + len(group.responses))
        first += len(group.responses)
        if not refused.isdisjoint(places):
            num_refused += 1
    return num_refused


def _refuse_if_all_are_refused(job: Job[ScoreStage]) -> None:
    """Raise when the judge could read no prompt at all; every worker asks, the last one sees all shards."""
    if len(shard_paths(job.out_path)) < num_shards(job):
        return
    counts = sum_counts(job.out_path)
    num_refused = counts.get("refused_by_template", 0)
    if not num_refused or num_refused < counts["prompts"]:
        return
    # Counts do not say why: the first prompt, refused again, does.
    row = next(read_all_rows(job.input_path("candidates")))
    raise _refusal(job, row["messages"])


def _refusal(job: Job[ScoreStage], messages: list[Message]) -> TemplateRefuses:
    from rlhf.models.chat_template import load_tokenizer, refusal_of_judge

    path = job.inputs["judge"]
    tokenizer = load_tokenizer(path, job.config.trust_remote_code)
    error = refusal_of_judge(tokenizer, messages) or "Its template takes no user turn."
    return TemplateRefuses(f"The judge cannot read what the policy has answered. {error}")


def _all_scores(
    rows: list[dict[str, Any]],
    known: dict[tuple[str, str], float],
    scored: Scored,
) -> list[list[float]]:
    """The scores of each row's candidates: the known ones, and in the other places the new ones in order."""
    new_scores = iter(scored.scores)
    scores = []
    for row in rows:
        values = []
        for candidate in row["candidates"]:
            key = (row["id"], candidate["text"])
            # No `known.get(key, next(new_scores))`: it would use up a new score for a known one.
            values.append(known[key] if key in known else next(new_scores))
        scores.append(values)
    return scores


def _counts(job: Job[ScoreStage], scores: list[list[float]], scored: Scored) -> dict[str, int]:
    num_responses = 0
    num_non_finite = 0
    for values in scores:
        num_responses += len(values)
        num_non_finite += sum(not math.isfinite(score) for score in values)
    counts = {
        "prompts": len(scores),
        "responses": num_responses,
        "scored_before": num_responses - len(scored.scores),
        "cut_on_the_left": scored.num_truncated,
        "non_finite": num_non_finite,
    }
    # Of judges that compare alone: by it others know them.
    compares = isinstance(job.config, ComparisonStage)
    if isinstance(job.config, GenerativeStage):
        compares = judge_file(job.config.judge_file).compares
    if compares:
        counts["judge_calls"] = scored.num_calls or 0
    # Only where there are any: shards of ordinary judges have the same bytes as ever.
    if scored.num_over_context:
        counts["over_context"] = scored.num_over_context
    return counts


def _add_warning(metrics: dict[str, str], warning: str = "") -> None:
    """Add to what the console shows of this stage; an empty text is none."""
    if warning:
        metrics["warning"] = " ".join(filter(None, (metrics.get("warning"), warning)))


def _unread(job: Job[ScoreStage], context: int | None) -> str:
    """What to say of conversations that the judge did not read whole, or not as it was trained; mostly
    nothing.

    `context` are the tokens that the judge was made for, None where that is not known.
    """
    counts = sum_counts(job.out_path)
    max_tokens = job.config.max_tokens
    # The other workers may still be at their last shards.
    at_least = "" if len(shard_paths(job.out_path)) == num_shards(job) else "at least "
    sentences = []
    if counts.get("cut_on_the_left"):
        sentences.append(
            f"{at_least}{counts['cut_on_the_left']} inputs of the judge are longer than "
            f"score.max_tokens={max_tokens} "
            "and lost their beginning."
        )
    if counts.get("over_context"):
        # Where a resumed stage had nothing left to score, no judge was loaded that would know.
        limit = "fewer" if context is None else context
        sentences.append(
            f"{at_least}{counts['over_context']} inputs are longer than the judge's context "
            "(score.max_tokens="
            f"{max_tokens}), beyond which its scores mean little: set score.max_tokens={limit}."
        )
    return " ".join(sentences)


def _golden_pair(job: Job[ScoreStage], judge: Any) -> dict[str, str]:
    """A metric `warning` when a model as judge prefers an absurd answer; asked once, when π0 is scored.

    Example:
        {"warning": "judge /models/rm scores 'Purple …' 1.2 and 'The capital …' -0.5 for 'What is …'. …"}
    """
    # The job's name is its folder inside of the run, as deep as it has parts.
    depth = len(Path(job.name).parts)
    run_dir = job.out_path.parents[depth - 1]
    # A rule may be about anything, and take none but its own prompts.
    if isinstance(job.config, GenerativeStage):
        return {}  # its own answers say more, and each costs
    if not job.name.startswith("iteration_000/") or "judge" not in job.inputs:
        return {}
    text, good_answer = _QUESTION, _GOOD
    was_made_here = Path(job.inputs["judge"]).is_relative_to(run_dir)
    if was_made_here and (run_dir / "world").is_dir():
        text, good_answer = _QUESTION_OF_THE_WORLD, _GOOD_IN_THE_WORLD
    question = [{"role": "user", "content": text}]
    golden = _scored(judge, [Group(question, [good_answer, _ABSURD])])
    if golden.refused:
        # Some templates demand a system turn.
        with_system = [{"role": "system", "content": "You are a helpful assistant."}, *question]
        golden = _scored(judge, [Group(with_system, [good_answer, _ABSURD])])
    good, absurd = golden.scores
    # A judge that reads neither has no order; its prompts say more.
    if good > absurd or golden.refused:
        return {}
    ask = "Is its template its own, and higher better?"
    if was_made_here:
        ask = (
            "It was trained in this run: is `chosen` the better answer in reward_model.data, and its "
            "held-out accuracy above chance? (Of a judge of another language or matter this says little.)"
        )
    warning = (
        f"judge {job.inputs['judge']} scores {_ABSURD!r} {absurd:.3g} and {good_answer!r} {good:.3g} for "
        f"{text!r}. {ask}"
    )
    return {"warning": warning}


def _texts(job: Job[ScoreStage], name: str, index: int) -> dict[str, list[str]]:
    """What another policy answered in the same shard, by prompt id.

    Example:
        {"5f1c…": ["Hello!", "Yo."]}
    """
    texts = {}
    path = job.input_path(name) / shard_name(index)
    for row in read_rows(path, ["id", "candidates"]):
        texts[row["id"]] = [candidate["text"] for candidate in row["candidates"]]
    return texts


def _known(job: Job[ScoreStage], index: int) -> dict[tuple[str, str], float]:
    """Finite scores that the judge has given before in the same shard, by prompt id and response.

    Example:
        {("5f1c…", "Hello!"): 1.5}
    """
    known: dict[tuple[str, str], float] = {}
    # In a fixed order: where two of them hold the same response, the last one counts.
    for name in sorted(job.inputs):
        if not name.startswith("known_scores."):
            continue
        texts = _texts(job, name.replace("scores", "candidates"), index)
        path = job.input_path(name) / shard_name(index)
        for row in read_rows(path):
            prompt_id = row["id"]
            for text, score in zip(texts[prompt_id], row["scores"], strict=True):
                # A score that is not finite is asked for again: the judge may have been mended.
                if math.isfinite(score):
                    known[prompt_id, text] = score
    return known
