"""Talk to the iterates of a run.

`python -m rlhf.chat run_dir=RUN iterations=[0,3]`, or for scripts `once="a question" json=true`

Answers are sampled as the stage `generate` samples them, by transformers, and scored by the run's own judges.
/help lists what can be typed besides messages.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.check import as_json
from rlhf.command.line import main
from rlhf.command.saved import merged, read_saved
from rlhf.command.settings import to_config
from rlhf.config.chat_tool import ChatTool
from rlhf.config.choices import TRAINED, Engine
from rlhf.config.limits import check_numbers
from rlhf.config.overrides import iterate_command, override, pasted
from rlhf.config.schema import Config
from rlhf.config.training import MAIN_JUDGE
from rlhf.data.records import Message
from rlhf.data.rows import has_half_pair
from rlhf.errors import ConfigError, Stopped, UserError, WorkerFailed, one_line
from rlhf.launch.machine import starting_environment
from rlhf.loop.figures import best
from rlhf.loop.judges import initial_policy, judges_of
from rlhf.loop.step import policy_dtype, stage_config
from rlhf.run.artifact import Artifact
from rlhf.run.output import show
from rlhf.run.plan import Run
from rlhf.view.chat_input import Keyboard
from rlhf.view.chat_screen import Lines, Screen, screen_for
from rlhf.view.chat_session import Answer, Command, Session, chosen_iterations, obeyed
from rlhf.view.run_folder import RunFolder, open_run

_PATIENCE_SECONDS = 5.0
"""For which a judge's server that does not answer is asked again."""


class _Silent:
    """A screen on which nothing is shown: the answers come as one document."""

    def piece(self, name: str, text: str) -> None:
        pass

    def foot(self, name: str, text: str) -> None:
        pass


@dataclass
class _Scoring:
    """The run's judges by name, loaded; `missing` says of each that is not there why."""

    judges: dict[str, Any]
    missing: dict[str, str]

    def scores(self, messages: list[Message], response: str) -> dict[str, float | None]:
        """What each judge gives a response; None where it has no finite score."""
        from rlhf.scoring.tournament import Group, score_groups

        scores: dict[str, float | None] = {}
        for name, judge in self.judges.items():
            try:
                (score,) = score_groups(judge, [Group(messages, [response])]).scores
            except Stopped:
                raise
            except Exception as error:  # a rule may raise anything, and a server be gone: the answer stays
                show(f"    (no score by {name}: {type(error).__name__}: {one_line(error)})", error=True)
                score = math.nan
            scores[name] = score if math.isfinite(score) else None
        return scores


def chat(tool: ChatTool) -> None:
    """Load whom a person wants to talk to, and talk."""
    check_numbers(tool)
    question = _question(tool)
    folder = open_run(tool.run_dir)
    cfg = _as_made(_settings_of(folder.path), folder)
    run = Run(folder.path, cfg, made=dict(folder.artifacts))
    iterates = _iterates(folder)
    best_iteration = folder.rows[best(folder.rows)].iteration if folder.rows else None
    chosen = chosen_iterations(tool.iterations, [0, *sorted(iterates)], best_iteration, _not_there(folder))
    policies = {}
    for iteration in chosen:
        # π0 may be large and far away: it is fetched for those who talk to it.
        policies[f"π{iteration}"] = iterates[iteration] if iteration > 0 else initial_policy(cfg, run)
    # Weights that were damaged would talk nonsense, and nobody would know why.
    run.verify(*policies.values())
    os.environ.update(starting_environment(cfg.compute.device.value))
    with _quietly():
        talkers = _load(cfg, _dtype(cfg, folder, policies), policies, tool.seed)
        scoring = _judges(cfg, run, next(iter(policies.values()))) if tool.scores else _Scoring({}, {})
    for name, reason in scoring.missing.items():
        show(f"! no scores by {name}: {reason}", error=True)
    session = Session(
        list(talkers), tool.temperature, tool.max_new_tokens or cfg.generate.max_new_tokens, tool.seed
    )
    if question is not None:
        _answer_once(session, talkers, scoring, question, tool.json)
    else:
        _converse(session, talkers, scoring)


def _settings_of(folder: Path) -> Config:
    """The settings that a run was made with.

    Raises:
        ConfigError: there are none, or they have another user's code run.
    """
    saved = read_saved(folder)
    if saved is None:
        raise ConfigError(
            f"run_dir={folder}: it has no config.yaml, so nobody knows how its models are loaded. "
            "Put the file back, or begin the run (python -m rlhf.iterate … writes it)."
        )
    config: Config = to_config(merged(saved, OmegaConf.create({})), Config)
    return config


def _as_made(cfg: Config, folder: RunFolder) -> Config:
    """Settings in which what the run has made itself stands as a model that is given, and nothing is trained.

    Not the plan of the loop: a run whose prompts are gone, or that an earlier version has made, talks too.
    """
    changes: dict[str, Any] = {"world": replace(cfg.world, enabled=False)}
    if "sft" in folder.artifacts:
        trained = str(folder.artifacts["sft"].path / "model")
        changes["model"] = replace(cfg.model, path=trained, revision=None)
        changes["sft"] = replace(cfg.sft, data=None)
    if "reward_model" in folder.artifacts:
        trained = str(folder.artifacts["reward_model"].path / "model")
        changes["reward_model"] = replace(cfg.reward_model, path=trained, revision=None, data=None)
    return replace(cfg, **changes)


def _iterates(folder: RunFolder) -> dict[int, Artifact]:
    """Every policy that the run has trained to the end and whose weights are there, by iteration."""
    iterates = {}
    for name, artifact in folder.artifacts.items():
        iteration, _, stage = name.partition("/")
        if stage in TRAINED and not artifact.lacks:
            iterates[int(iteration.removeprefix("iteration_"))] = artifact.part("model")
    return iterates


def _dtype(cfg: Config, folder: RunFolder, policies: dict[str, Artifact]) -> str:
    """The dtype in which the run has sampled; where it has not yet, that of the settings."""
    for name, artifact in folder.artifacts.items():
        if name.endswith("/generate") and name.startswith("iteration_"):
            dtype = artifact.record["config"].get("dtype")
            if isinstance(dtype, str):
                return dtype
    return policy_dtype(cfg, next(iter(policies.values())))


def _not_there(folder: RunFolder) -> dict[int, str]:
    """Why an iterate that was begun cannot be talked to, by iteration."""
    reasons = {}
    for name, what in folder.removed.items():
        if name.partition("/")[2] in TRAINED:
            again = pasted("rm", "-r", str(folder.path / name))
            reasons[_iteration(name)] = (
                f"{what}; {again}, and then {iterate_command(folder.path)}, would train it again"
            )
    why = dict.fromkeys(folder.unfinished, "it is not finished") | folder.damaged
    for name, reason in why.items():
        if name.partition("/")[2] in TRAINED:
            reasons[_iteration(name)] = reason
    return reasons


def _iteration(name: str) -> int:
    """Of a training, `iteration_003/dpo`."""
    return int(name.removeprefix("iteration_").removesuffix("/dpo"))


def _question(tool: ChatTool) -> str | None:
    """What is asked once; None for a conversation.

    Raises:
        ConfigError: it is empty, or there is none to make a document of.
    """
    if tool.once is None:
        if tool.json:
            raise ConfigError('json=true: goes with once="a question", which is what the document is about.')
        return None
    question = tool.once
    if question == "-":
        # Bytes that are no text come out as half pairs.
        question = sys.stdin.buffer.read().decode(errors="surrogateescape")
    if not question.strip():
        raise ConfigError('once=: the question is empty. Ask something, as in once="What is 2+2?".')
    if has_half_pair(question):
        raise ConfigError("once=…: the question holds bytes that are no text. Write it in UTF-8.")
    return question


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Libraries say much while they load, on standard output too, which is the answers'."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _load(cfg: Config, dtype: str, policies: dict[str, Artifact], seed: int) -> dict[str, Any]:
    """A talker for each name."""
    show(f"loading {', '.join(policies)} …", error=True)
    from transformers.utils import logging

    from rlhf.generation.talker import Talker

    logging.disable_progress_bar()
    config = stage_config(cfg, "generate", dtype=dtype)
    return {name: Talker(config, policy.path, seed) for name, policy in policies.items()}


def _judges(cfg: Config, run: Run, policy: Artifact) -> _Scoring:
    """The judges whose scores counted in the run, those that can be loaded here."""
    from rlhf.scoring.choose_judge import load_judge
    from rlhf.scoring.tournament import Tournament

    loaded: dict[str, Any] = {}
    missing = {}
    if cfg.reward_model.data is not None and cfg.reward_model.rule is None:
        return _Scoring({}, {"the judge": "the run has not trained it yet"})
    try:
        found = judges_of(cfg, run, policy)
    except UserError as error:
        return _Scoring({}, {"the judges": one_line(error)})
    for name, judge in found.items():
        shown = "judge" if name == MAIN_JUDGE else name
        try:
            inputs = {}
            if judge.model is not None:
                inputs["judge"] = str(judge.model.path)
            # Up in seconds; its scores are vLLM's up to rounding. Nobody waits at a prompt for a server.
            patience = min(judge.config.retry_seconds, _PATIENCE_SECONDS)
            config = replace(judge.config, engine=Engine.transformers, retry_seconds=patience)
            one = load_judge(config, inputs)
        except (UserError, WorkerFailed, ImportError) as error:
            missing[shown] = one_line(error)
            continue
        if isinstance(one, Tournament):
            missing[shown] = "it compares answers, and gives none a score of its own"
            continue
        loaded[shown] = one
    return _Scoring(loaded, missing)


def _answer_once(
    session: Session, talkers: dict[str, Any], scoring: _Scoring, question: str, is_json: bool
) -> None:
    screen: Screen = _Silent() if is_json else Lines()
    _answer_all(session, talkers, scoring, question, screen)
    if is_json:
        answers = []
        for name in session.names:
            answers.append({"policy": name, **vars(session.answers[name][0])})
        document = {"question": question, "seed": session.seed, "answers": answers}
        show(as_json(document))


def _converse(session: Session, talkers: dict[str, Any], scoring: _Scoring) -> None:
    """Answer messages, to the end of the input.

    Raises:
        UserError: a line of a script could not be obeyed or answered: the first one that could not. A person
            is told at once, and goes on.
    """
    keyboard = Keyboard()
    show(f"{' and '.join(session.names)}; /help lists commands, Ctrl-D leaves", error=True)
    # A Ctrl-C ends what is under way and not the program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed: UserError | None = None
    while True:
        try:
            text = keyboard.message()
            if text is None:
                break
            command = obeyed(session, text)
            if command.kind == "exit":
                break
            if command.kind == "read":
                show(command.text)
                continue
            keyboard.was_stopped = _say(session, talkers, scoring, command, keyboard.is_terminal)
        except UserError as error:
            show(f"error: {error}", error=True)
            failed = failed or error
    if failed is not None and not keyboard.is_terminal:
        raise type(failed)(f"not all lines could be answered; the first that could not: {failed}")


def _say(
    session: Session, talkers: dict[str, Any], scoring: _Scoring, command: Command, is_shown: bool
) -> bool:
    """Have a message answered; True where a Ctrl-C has stopped that.

    Raises:
        UserError: it cannot be; the conversation is what it was.
    """
    if not is_shown:
        show(f"you> {command.text}")
    try:
        with screen_for(session.names) as screen:
            was_stopped = _answer_all(session, talkers, scoring, command.text, screen)
    except (UserError, KeyboardInterrupt) as error:
        if command.before is not None:
            session.add(command.text, command.before)
        if isinstance(error, UserError):
            raise
        show("\n(stopped before everybody had answered; nothing of it is kept)", error=True)
        return True
    return was_stopped


def _answer_all(
    session: Session, talkers: dict[str, Any], scoring: _Scoring, question: str, screen: Screen
) -> bool:
    """Everybody's answer to a question, shown as it comes and kept when all are there; whether a Ctrl-C has
    stopped one of them.
    """
    answers = {}
    for name, talker in talkers.items():
        messages = session.messages_of(name, question)
        ids, num_left_out = talker.fitted(messages, session.max_new_tokens)
        drawn: list[int] = []
        interrupted = False
        pieces = talker.pieces(ids, session.temperature, session.max_new_tokens, session.seed, drawn)
        try:
            for piece in pieces:
                screen.piece(name, piece)
        except KeyboardInterrupt:
            interrupted = True
        text = talker.text_of(drawn)
        finish = "stop" if talker.has_ended(drawn) else "length"
        if interrupted:
            finish = "interrupted"
        answers[name] = Answer(text, len(drawn), finish, scoring.scores(messages, text))
        screen.foot(name, _foot(answers[name], num_left_out))
    session.add(question, answers)
    return any(answer.finish_reason == "interrupted" for answer in answers.values())


def _foot(answer: Answer, num_left_out: int) -> str:
    """The line below an answer.

    Example:
        judge +1.234, 18 tokens, cut at the limit
    """
    parts = []
    for name, score in answer.scores.items():
        parts.append(f"{name} –" if score is None else f"{name} {score:+.3f}")
    parts.append(f"{answer.num_tokens} tokens")
    if answer.finish_reason == "length":
        parts.append("cut at the limit")
    if answer.finish_reason == "interrupted":
        parts.append("stopped by Ctrl-C")
    if num_left_out:
        parts.append(f"without the first {num_left_out} exchanges, for which the context has no room")
    return ", ".join(parts)


def _with_question(words: Sequence[str]) -> list[str]:
    """Words of a command line in which the question is taken as it stands, however it is written.

    Hydra's grammar would refuse `2 + 2 = ?` and take `null` for none.

    Example:
        ["--once", "2 + 2 = ?"] and ["once=2 + 2 = ?"] give ['once="2 + 2 = ?"']
    """
    written = []
    left = iter(words)
    for word in left:
        key, equals, question = word.partition("=")
        if key == "--once" and not equals:
            question = next(left, "")
        elif key not in ("once", "--once") or not equals:
            written.append(word)
            continue
        elif _is_quoted(question):
            written.append(f"once={question}")
            continue
        written.append(override("once", question))
    return written


def _is_quoted(text: str) -> bool:
    """Whether a text stands in quotes for Hydra already."""
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


if __name__ == "__main__":
    sys.argv[1:] = _with_question(sys.argv[1:])
    main(chat, "tool", ChatTool)
