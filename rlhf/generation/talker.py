"""A policy that answers a conversation piece by piece, by the rules of the stage `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf.config.stage_configs import GenerateStage
from rlhf.data.records import Message
from rlhf.errors import ModelError
from rlhf.generation.request import Request, Sampling, text_of
from rlhf.generation.transformers_sampler import TransformersSampler
from rlhf.models.chat_template import load_tokenizer, longest_prompt, render_prompt, stop_token_ids

_UNFINISHED = "�"
"""What a tokenizer decodes half of a character to."""
_NO_LIMIT = 1 << 30


class Talker:
    """A model with its tokenizer and terminators.

    Args:
        config: what the stage `generate` of the run is told.
        path: of the model.
        seed: of draws without a seed of their own.
    """

    def __init__(self, config: GenerateStage, path: Path, seed: int) -> None:
        self._config = config
        self._path = path
        trusted = config.trust_remote_code
        self._tokenizer = load_tokenizer(path, trusted, special_tokens=config.special_tokens)
        self._stops = stop_token_ids(self._tokenizer, path, config.stop_token_ids, trusted)
        self._sampler = TransformersSampler(config, str(path), seed)

    def fitted(self, messages: list[Message], max_new_tokens: int) -> tuple[list[int], int]:
        """The token ids of a conversation, and how many of its oldest exchanges were left out to fit in.

        A conversation is a question and an answer in turn, and a question.

        Raises:
            TemplateRefuses: the chat template takes no such conversation.
            ModelError: the last question alone is too long.
        """
        trusted = self._config.trust_remote_code
        try:
            limit = longest_prompt(self._path, _NO_LIMIT, max_new_tokens, trusted)
        except ModelError as error:
            raise ModelError(
                f"An answer of {max_new_tokens} tokens leaves no room for a question in the model's context: "
                "set fewer (max_new_tokens=…, or /max 200)."
            ) from error
        for start in range(0, len(messages), 2):
            ids = render_prompt(self._tokenizer, messages[start:])
            if len(ids) <= limit:
                return ids, start // 2
        raise ModelError(
            f"The question has {len(ids)} tokens, and the model's context has room for {limit} beside an "
            f"answer of {max_new_tokens}. Ask less, or set fewer (max_new_tokens=…, /max 200)."
        )

    def pieces(
        self, ids: list[int], temperature: float, max_new_tokens: int, seed: int, drawn: list[int]
    ) -> Iterator[str]:
        """The text of an answer as it comes; together the text that the stage would keep.

        Args:
            ids: of the conversation.
            temperature: of sampling; 0 is greedy.
            max_new_tokens: at which it is cut.
            seed: of this answer.
            drawn: gets the answer's tokens, as they come.
        """
        config = self._config
        sampling = Sampling(max_new_tokens, config.top_p, config.top_k, self._stops)
        said = ""
        for token in self._sampler.tokens_of(Request(ids, temperature, seed), sampling):
            drawn.append(token)
            text = text_of(drawn, self._tokenizer, self._stops)
            # Tokens are not characters: the rest of one may come with the next.
            if text.startswith(said) and not text.endswith(_UNFINISHED):
                if text != said:
                    yield text[len(said) :]
                said = text
        text = text_of(drawn, self._tokenizer, self._stops)
        if text != said:
            yield text[len(said) :] if text.startswith(said) else f"\n{text}"

    def text_of(self, drawn: list[int]) -> str:
        """What the stage would keep of an answer's tokens."""
        return text_of(drawn, self._tokenizer, self._stops)

    def has_ended(self, drawn: list[int]) -> bool:
        """Whether an answer ended by itself."""
        return bool(drawn) and drawn[-1] in self._stops
