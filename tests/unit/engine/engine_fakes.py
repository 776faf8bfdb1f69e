# SPDX-License-Identifier: Apache-2.0
"""An engine without a model: every step gives each open continuation one numbered token, until max_tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ziggurat.engine.interface import ModelInfo
from ziggurat.engine.types import BudgetChange, FinishReason, GenerateOutput, GenerateRequest
from ziggurat.errors import ModelError, RequestError
from ziggurat.scheduling.protocol import SampledToken

INFO = ModelInfo(
    name="fake",
    path="/nowhere",
    architecture="FakeForCausalLM",
    vocab_size=1000,
    max_model_len=64,
    num_parameters=0,
    weight_format="fp32",
    kv_format="fp32",
    eos_ids=(),
)


class FakeEngine:
    """Refuses empty prompts with RequestError, fails as a whole from step ``fails_at`` on."""

    tokenizer = None
    chat_template = None

    def __init__(self) -> None:
        self.model = INFO
        self.num_steps = 0
        self.is_closed = False
        self.fails_at: int | None = None
        self._open: dict[tuple[str, int], tuple[GenerateRequest, int]] = {}
        self._aborted: list[GenerateOutput] = []

    def add(self, request: GenerateRequest) -> None:
        if not request.prompt_ids:
            raise RequestError("the prompt is empty", param="prompt")
        for index in range(request.params.n):
            self._open[request.request_id, index] = (request, 0)

    def step(self) -> list[GenerateOutput]:
        self.num_steps += 1
        if self.fails_at is not None and self.num_steps >= self.fails_at:
            raise RuntimeError("a wire came loose")
        outputs, self._aborted = self._aborted, []
        for key, (request, count) in list(self._open.items()):
            count += 1
            is_last = count == (request.params.max_tokens or 8)
            outputs.append(output(request, key[1], count, "length" if is_last else None))
            if is_last:
                del self._open[key]
            else:
                self._open[key] = (request, count)
        return outputs

    def abort(self, request_id: str) -> None:
        for key, (request, count) in list(self._open.items()):
            if key[0] == request_id:
                del self._open[key]
                self._aborted.append(output(request, key[1], count, "abort"))

    @property
    def has_work(self) -> bool:
        return bool(self._open or self._aborted)

    def reset_prefix_cache(self) -> int:
        return 5

    def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        raise RequestError(f"no session {session_id!r} is known", param="session_id")

    def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        raise RequestError(f"no session {session_id!r} is saved", param="session_id")

    def forget_session(self, client: str, session_id: str) -> None:
        raise RequestError(f"no session {session_id!r} is known", param="session_id")

    def lora_names(self) -> tuple[str, ...]:
        return ()

    def load_lora(self, name: str, folder: Path) -> None:
        raise ModelError(f"{folder} has no adapter_config.json")

    def unload_lora(self, name: str) -> None:
        raise RequestError(f"no adapter {name!r} is loaded.", param="lora_name")

    def set_memory(self, num_bytes: int) -> BudgetChange:
        return BudgetChange(
            before_bytes=100, after_bytes=num_bytes, num_blocks=(7,), num_preempted=0, num_evicted_blocks=0
        )

    def memory(self) -> dict[str, Any]:
        return {"open": len(self._open)}

    def stats(self) -> dict[str, float]:
        return {"steps_total": float(self.num_steps)}

    def close(self) -> None:
        self.is_closed = True


def output(request: GenerateRequest, index: int, count: int, reason: FinishReason | None) -> GenerateOutput:
    return GenerateOutput(
        request_id=request.request_id,
        index=index,
        text=f"{count} ",
        tokens=(SampledToken(token_id=count),),
        finish_reason=reason,
        stop_reason=None,
        num_prompt_tokens=len(request.prompt_ids),
        num_cached_tokens=0,
        num_output_tokens=count,
    )
