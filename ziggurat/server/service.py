# SPDX-License-Identifier: Apache-2.0
"""What the server needs from whoever generates text: two small protocols. `EngineService` is the real one; tests bring a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ziggurat.engine.chat_template import TemplateOptions
from ziggurat.engine.families import Family, Thoughts
from ziggurat.engine.grammar import GrammarSpec
from ziggurat.engine.types import AnyRequest, BudgetChange, GenerateOutput
from ziggurat.scheduling.masks import LogitsMask


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStats:
    """What the engine counts, at one moment. Counters only grow.

    Attributes:
        kv_usage_ratio: share of the KV pool that requests hold, 0 to 1; reusable prefixes do not count.
        num_preemptions: sequences that gave up their KV so far.
        num_recomputed_tokens: tokens computed again because of that.
        num_swapped_out_tokens, num_swapped_in_tokens: copied to the swap space and back instead.
        num_evicted_blocks: reusable blocks that were given up.
        busy_s: time spent in steps.
        num_clients: clients that are remembered; jain_index: how evenly those with an open request were served, 1/n to 1.
    """

    num_running: int
    num_waiting: int
    kv_usage_ratio: float = 0.0
    num_preemptions: int = 0
    num_recomputed_tokens: int = 0
    num_swapped_out_tokens: int = 0
    num_swapped_in_tokens: int = 0
    num_evicted_blocks: int = 0
    num_steps: int = 0
    busy_s: float = 0.0
    num_clients: int = 0
    jain_index: float = 1.0


class ModelText(Protocol):
    """How a model reads and writes: names, tokens, templates, languages. Generates nothing.

    Attributes:
        model_names: names that requests may use: the base model's, then those of LoRA adapters.
        family: how the model writes calls and thoughts.
        vocab_size: token ids are below this.
        max_model_len: tokens per sequence, prompt and output.
        default_sampling: sampling settings of the model's generation_config, by `SamplingParams`' names; a request's own win.
    """

    @property
    def model_names(self) -> Sequence[str]: ...

    @property
    def family(self) -> Family: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def default_sampling(self) -> Mapping[str, Any]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a completion prompt, special tokens of the model added. Thread-safe."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. Thread-safe."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; half a character is possible."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], options: TemplateOptions) -> list[int]:
        """Token ids of a conversation through the model's chat template. Thread-safe.

        Raises:
            RequestError: the template refuses the conversation.
        """
        ...

    async def compile_grammar(self, spec: GrammarSpec, max_tokens: int | None, thoughts: Thoughts) -> LogitsMask:
        """The mask that keeps one request, which may generate ``max_tokens``, within a language; behind its thoughts if it has some.

        Raises:
            RequestError: it is not valid, too large or too costly.
            UnsupportedFeature: the library for it is not installed.
        """
        ...


class Service(ModelText, Protocol):
    """A loaded model that generates text."""

    async def start(self, request: AnyRequest) -> AsyncIterator[GenerateOutput]:
        """Admit a request. Closing (``aclose``) or cancelling the iterator aborts it and gives its memory back.

        Raises:
            RequestError: refused: it does not fit the context or the KV pool, or the queue is full.
            EngineError: the engine has failed.
        """
        ...

    async def reset_prefix_cache(self) -> int:
        """Forget every cached block that no request holds; returns their number.

        Raises:
            EngineError: the engine has failed.
        """
        ...

    async def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        """Write what is cached of a client's session; ``num_tokens`` and ``num_bytes``. Other requests wait meanwhile.

        Raises:
            UserError: unknown, not cached any more, or the file cannot be written.
            EngineError: the engine has failed.
        """
        ...

    async def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        """Put a saved session into the prefix cache; ``num_tokens`` and ``num_lost_tokens``.

        Raises:
            RequestError: nothing is saved, or it is of another model, adapter or format.
            EngineError: the engine has failed.
        """
        ...

    async def forget_session(self, client: str, session_id: str) -> None:
        """End a session.

        Raises:
            RequestError: unknown.
            EngineError: the engine has failed.
        """
        ...

    async def load_lora(self, name: str, folder: Path) -> None:
        """Serve one more LoRA adapter under that model name.

        Raises:
            UserError: the folder cannot be served, or the name is taken; all others go on.
            EngineError: the engine has failed.
        """
        ...

    async def unload_lora(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            RequestError: unknown, or requests use it.
            EngineError: the engine has failed.
        """
        ...

    async def set_memory(self, num_bytes: int) -> BudgetChange:
        """Another budget from now on; open requests go on.

        Raises:
            DoesNotFit: too small for the model and one long request, or more than the engine was started with; nothing changed.
            EngineError: the engine has failed.
        """
        ...

    async def stats(self) -> ServiceStats:
        """Counts, taken between two steps.

        Raises:
            EngineError: the engine has failed.
        """
        ...

    async def memory(self) -> dict[str, Any]:
        """Who owns which bytes, why, since when: plain data for ``GET /memory``, taken between two steps.

        Keys as `ziggurat.engine.report.memory_report` documents them.

        Raises:
            EngineError: the engine has failed.
        """
        ...

    def failure(self) -> str | None:
        """Why the engine is dead, or None while it lives."""
        ...

    async def drain(self, timeout_s: float) -> bool:
        """Take no new requests and wait for the open ones; those left at the timeout are aborted. True if none was left."""
        ...

    async def close(self) -> None:
        """End what runs and give everything back."""
        ...
