"""Sample responses to the prompts of a file: `python -m rlhf.generate model.path=… input=… output=….jsonl`.

Writes a line per distinct prompt: `prompt` (messages), `responses`, and beside them `finish_reasons`, `temperatures`
and `seeds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rlhf.command.file_tool import write_file
from rlhf.command.line import main
from rlhf.config.stage_configs import ReadStage
from rlhf.config.tools import GenerateTool
from rlhf.data.responses import candidates_line
from rlhf.data.shards import read_all_rows
from rlhf.generation.vllm_args import longest_sequence
from rlhf.loop.step import policy_dtype, stage_config
from rlhf.models.context import context_length
from rlhf.run import sources
from rlhf.run.artifact import Artifact
from rlhf.run.plan import Run


def generate(tool: GenerateTool) -> None:
    """From prompts to candidates."""

    def make(run: Run) -> list[Artifact]:
        file = sources.data_file(run, tool.input, "input")
        return sample(run, run.stage("read", "read", reading(run), {"file": file}))

    write_file(tool, make, lines)


def reading(run: Run, what: str = "prompts") -> ReadStage:
    """What `read` is told where its shards are sampled from."""
    return ReadStage(what, run.cfg.generate.shard_size)


def sample(run: Run, read: Artifact) -> list[Artifact]:
    """The prompts that were read, and the candidates sampled for them."""
    policy = sources.model(run, run.cfg.model.path, run.cfg.model.revision, "model.path")
    max_new_tokens = run.cfg.generate.max_new_tokens
    contexts = {
        "the model's context has": context_length(policy.path),
        "generate.vllm_args.max_model_len is": longest_sequence(run.cfg.generate),
    }
    for what, context in contexts.items():
        if context is not None and max_new_tokens >= context:
            # Half of it: a prompt needs room too, and no key should be needed to sample from a small model.
            run.say(f"  responses have at most {context // 2} tokens: {what} {context}, not {max_new_tokens} and more")
            max_new_tokens = context // 2
    dtype = policy_dtype(run.cfg, policy)
    config = stage_config(run.cfg, "generate", dtype=dtype, max_new_tokens=max_new_tokens)
    inputs = {"policy": policy, "prompts": read.part("prompts")}
    return [read, run.stage("generate", "generate", config, inputs)]


def lines(made: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The output's rows."""
    return map(candidates_line, read_all_rows(made[-1].path))


if __name__ == "__main__":
    main(generate, "tool", GenerateTool)
