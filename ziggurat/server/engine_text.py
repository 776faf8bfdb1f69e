# SPDX-License-Identifier: Apache-2.0
"""How the model of an engine reads and writes (`ModelText`). Imports no torch; whoever loads the engine does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ziggurat.engine.chat_template import TemplateOptions, missing_template
from ziggurat.engine.families import THINK_CLOSE, THINK_OPEN, Family, Thoughts, family_of, with_tools
from ziggurat.engine.grammar import GrammarCompiler, GrammarSpec
from ziggurat.engine.interface import EngineInterface
from ziggurat.engine.thinking import ThinkFirst
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.errors import RequestError
from ziggurat.scheduling.masks import LogitsMask
from ziggurat.server.errors import PromptTooLong

# A tokenizer needs some 200 bytes per token while it works: four million characters at once would take 800 MiB, far outside any
# budget, and most of a minute. So a text that cannot fit is found out piece by piece.
PIECE_CHARACTERS = 16_384
WHOLE_CHARACTERS = 65_536
# A cut through a word can add a few tokens to a piece.
MAX_EXTRA_TOKENS = 8


def refuse_hopeless(tokenizer: Tokenizer, text: str, max_model_len: int, param: str) -> None:
    """Stop at a text that is certainly longer than the context, in memory and time that depend on the context and not on the text.

    Raises:
        PromptTooLong: it is.
    """
    if len(text) <= max(WHOLE_CHARACTERS, max_model_len):
        return
    num_tokens = 0
    for start in range(0, len(text), PIECE_CHARACTERS):
        piece = tokenizer.encode(text[start : start + PIECE_CHARACTERS], add_special_tokens=False)
        num_tokens += max(0, len(piece) - MAX_EXTRA_TOKENS)
        if num_tokens > max_model_len:
            raise PromptTooLong(
                max_model_len=max_model_len, num_prompt_tokens=num_tokens, num_output_tokens=1, param=param
            )


class EngineText:
    """Reads what does not change while the engine runs, so any thread may use it.

    Args:
        engine: loaded.
    """

    def __init__(self, engine: EngineInterface) -> None:
        self._engine = engine
        self._grammars: GrammarCompiler | None = None
        template = engine.chat_template
        self.family = Family() if template is None else family_of(template.source)
        self.vocab_size = engine.model.vocab_size
        self.max_model_len = engine.model.max_model_len
        self.default_sampling: Mapping[str, Any] = engine.model.sampling_defaults

    @property
    def model_names(self) -> Sequence[str]:
        """The base model's name, then those of its LoRA adapters."""
        return (self._engine.model.name, *self._engine.lora_names())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """See `Service.encode`."""
        refuse_hopeless(self._tokenizer(), text, self.max_model_len, "prompt")
        return self._tokenizer().encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Service.decode`."""
        return self._tokenizer().decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Service.token_bytes`; a model without tokenizer has no text, so its tokens show as their numbers."""
        tokenizer = self._engine.tokenizer
        return f"<{token_id}>".encode() if tokenizer is None else tokenizer.token_bytes(token_id)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: TemplateOptions) -> list[int]:
        """See `Service.encode_chat`."""
        tokenizer = self._tokenizer()
        if self._engine.chat_template is None:
            raise missing_template(self._engine.model.name)
        for message in messages:
            refuse_hopeless(tokenizer, message["content"] or "", self.max_model_len, "messages")
        if not self.family.has_tools:
            messages, options = with_tools(messages, options.tools), replace(options, tools=())
        text = self._engine.chat_template.render_with(messages, options)
        refuse_hopeless(tokenizer, text, self.max_model_len, "messages")
        return tokenizer.encode(text, add_special_tokens=False)

    def _tokenizer(self) -> Tokenizer:
        if self._engine.tokenizer is None:
            raise RequestError(
                f"the model {self._engine.model.name!r} has no tokenizer; send token ids to /v1/completions",
                code="no_tokenizer",
            )
        return self._engine.tokenizer

    async def compile_grammar(self, spec: GrammarSpec, max_tokens: int | None, thoughts: Thoughts) -> LogitsMask:
        """See `Service.compile_grammar`."""
        model = self._engine.model
        if self._grammars is None:
            self._grammars = GrammarCompiler(self._tokenizer(), model.vocab_size, model.eos_ids, model.max_model_len)
        mask = await self._grammars.compile(spec, max_tokens)
        marks = [self._tokenizer().encode(mark, add_special_tokens=False) for mark in (THINK_OPEN, THINK_CLOSE)]
        if thoughts not in ("expected", "opened") or any(len(ids) != 1 for ids in marks):
            return mask
        return ThinkFirst(
            mask,
            marks[0][0],
            marks[1][0],
            is_open=thoughts == "opened",
            vocab_size=model.vocab_size,
            eos_ids=model.eos_ids,
        )

    def close_grammars(self) -> None:
        """End the compiler's threads."""
        if self._grammars is not None:
            self._grammars.close()
