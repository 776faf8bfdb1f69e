# SPDX-License-Identifier: Apache-2.0
"""The budget's and the adapters' part of the fake service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ziggurat.engine.types import BudgetChange
from ziggurat.errors import DoesNotFit, ModelError, RequestError


class FakeBudget:
    """Takes any budget of at least 1 MiB; knows folders of adapters that exist."""

    model_names: Sequence[str]

    async def load_lora(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise ModelError(f"{folder} has no adapter_config.json")
        self.model_names = (*self.model_names, name)

    async def unload_lora(self, name: str) -> None:
        if name not in self.model_names[1:]:
            raise RequestError(f"no adapter {name!r} is loaded.", param="lora_name")
        self.model_names = tuple(each for each in self.model_names if each != name)

    async def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{client} {session_id}")
        return {"num_tokens": 32, "num_bytes": path.stat().st_size}

    async def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        if not path.exists() or path.read_text() != f"{client} {session_id}":
            raise RequestError("no session is saved under that id", param="session_id", code="session_not_found")
        return {"num_tokens": 32, "num_lost_tokens": 0}

    async def forget_session(self, client: str, session_id: str) -> None:
        raise RequestError(f"no session {session_id!r} is known", param="session_id", code="session_not_found")

    async def set_memory(self, num_bytes: int) -> BudgetChange:
        if num_bytes < 1 << 20:
            raise DoesNotFit("1.00 MiB is the least", needed_bytes=1 << 20, available_bytes=num_bytes)
        return BudgetChange(
            before_bytes=1 << 30, after_bytes=num_bytes, num_blocks=(7,), num_preempted=1, num_evicted_blocks=2
        )
