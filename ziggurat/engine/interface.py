# SPDX-License-Identifier: Apache-2.0
"""What drivers, the server and `LLM` need of an engine, and the facts about the model it runs. Torch-free.

`ziggurat.engine.engine.Engine` is the real one; tests of drivers and servers bring their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ziggurat.engine.chat_template import ChatTemplate
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.engine.types import AnyRequest, BudgetChange, GenerateOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """Facts about a loaded model.

    Attributes:
        name: what requests call it.
        path: the folder it was read from.
        vocab_size: rows of the output layer; prompt ids must be below it.
        max_model_len: tokens per sequence, prompt and output together.
        weight_format, kv_format: storage formats (``bf16`` ..).
        eos_ids: tokens that end a text, from generation_config.json, config.json and the tokenizer.
        sampling_defaults: `SamplingParams` fields that generation_config.json sets, for requests that leave them out.
    """

    name: str
    path: str
    architecture: str
    vocab_size: int
    max_model_len: int
    num_parameters: int
    weight_format: str
    kv_format: str
    eos_ids: tuple[int, ...]
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)


class EngineInterface(Protocol):
    """One model behind a synchronous loop. Not thread-safe: one thread calls everything but the attributes.

    Attributes:
        tokenizer: None if the folder has none (dummy weights of a bare config.json); prompts are token ids then.
        chat_template: None if the checkpoint has none.
    """

    model: ModelInfo
    tokenizer: Tokenizer | None
    chat_template: ChatTemplate | None

    def add(self, request: AnyRequest) -> None:
        """Queue a request.

        Raises:
            RequestError: it can never run (too long, token out of range, pool too small), or QueueFull.
            EngineError: the engine has failed or is closed.
        """
        ...

    def step(self) -> list[GenerateOutput]:
        """Run one step. Empty when nothing was to be done."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request at any state; the next `step` gives its last outputs (``abort``). Unknown ids are ignored."""
        ...

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        ...

    def reset_prefix_cache(self) -> int:
        """Forget every cached block that no sequence holds; returns their number. Open sequences keep theirs."""
        ...

    def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        """See `engine.sessions.Sessions.save`."""
        ...

    def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        """See `engine.sessions.Sessions.restore`."""
        ...

    def forget_session(self, client: str, session_id: str) -> None:
        """See `engine.sessions.Sessions.forget`."""
        ...

    def lora_names(self) -> tuple[str, ...]:
        """Adapters that requests may name; any thread may ask."""
        ...

    def load_lora(self, name: str, folder: Path) -> None:
        """Serve one more LoRA adapter.

        Raises:
            UserError: the folder cannot be served, or the name is taken; all others go on.
        """
        ...

    def unload_lora(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            RequestError: unknown, or in use.
        """
        ...

    def set_memory(self, num_bytes: int) -> BudgetChange:
        """Another budget from now on; open requests go on. It may not be above the one that the engine was started with.

        Raises:
            DoesNotFit: the model and one request of the longest kind would not fit, or it is too large; nothing changed.
        """
        ...

    def memory(self) -> dict[str, Any]:
        """Who owns which bytes: limits, ledger rows, KV per group and sequence, prefix cache, measured Pss and RSS."""
        ...

    def stats(self) -> dict[str, float]:
        """Counters (``*_total``) and gauges for metrics."""
        ...

    def close(self) -> None:
        """Give everything back; further calls raise EngineError."""
        ...
