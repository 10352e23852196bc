"""Sample responses to the prompts of a file: `python -m rlhf.generate model.path=… input=… output=….jsonl`.

Writes a line per distinct prompt: `prompt` (messages), `responses`, and beside them `finish_reasons`,
`temperatures` and `seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlhf.command.file_tool import read_input, write_file
from rlhf.command.line import main
from rlhf.config.tools import FileTool, GenerateTool
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
        return sample(run, tool)

    write_file(tool, make, lines)


def sample(
    run: Run, tool: FileTool, what: str = "prompts", look: Callable[[Artifact], None] | None = None
) -> list[Artifact]:
    """The prompts (or `questions`) of a file, and the candidates sampled for them.

    `look` has a look at the prompts as soon as they are read, and may raise.
    """
    section = run.cfg.generate
    # A shard of prompts becomes a shard of responses, so it has the sampler's size.
    prompts = read_input(run, tool, what, section.shard_size)
    if look is not None and prompts.digest is not None:
        look(prompts)
    model = run.cfg.model
    policy = sources.model(run, model.path, model.revision, "model.path")
    max_new_tokens = section.max_new_tokens
    contexts = {
        "the model's context has": context_length(policy.path),
        "generate.vllm_args.max_model_len is": longest_sequence(section),
    }
    for what, context in contexts.items():
        if context is not None and max_new_tokens >= context:
            # Half of it: a prompt needs room too, and no key should be needed to sample from a small model.
            run.say(
                f"  responses have at most {context // 2} tokens: {what} {context}, not "
                f"{max_new_tokens} and more"
            )
            max_new_tokens = context // 2
    # Settled from the files, as in a run: fp32 weights are sampled from in fp32.
    dtype = policy_dtype(run.cfg, policy)
    config = stage_config(run.cfg, "generate", dtype=dtype, max_new_tokens=max_new_tokens)
    inputs = {"policy": policy, "prompts": prompts.part("prompts")}
    candidates = run.stage("generate", "generate", config, inputs)
    return [prompts, candidates]


def lines(artifacts: Sequence[Artifact]) -> Iterator[dict[str, Any]]:
    """The output's rows.

    Example:
        {"prompt": [{"role": "user", "content": "Hi"}], "responses": ["Hello!"], "finish_reasons": ["stop"],
         "temperatures": [1.0], "seeds": [7]}
    """
    _, candidates = artifacts
    return map(candidates_line, read_all_rows(candidates.path))


if __name__ == "__main__":
    main(generate, "tool", GenerateTool)
