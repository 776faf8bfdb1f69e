# SPDX-License-Identifier: Apache-2.0
"""The real `Service`: an engine on its own thread, seen from the event loop. Imports no torch; whoever loads the engine does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ziggurat.engine.async_engine import AsyncEngine
from ziggurat.engine.interface import EngineInterface
from ziggurat.engine.types import AnyRequest, BudgetChange, GenerateOutput
from ziggurat.server.engine_text import EngineText
from ziggurat.server.service import ServiceStats


class EngineService(EngineText):
    """Owns the engine from here on; must be made on the event loop that serves.

    Args:
        engine: loaded, and not stepped by anybody else.
    """

    def __init__(self, engine: EngineInterface) -> None:
        super().__init__(engine)
        self._async = AsyncEngine(engine)

    async def start(self, request: AnyRequest) -> AsyncIterator[GenerateOutput]:
        """See `Service.start`."""
        return await self._async.submit(request)

    async def reset_prefix_cache(self) -> int:
        """See `Service.reset_prefix_cache`."""
        return await self._async.reset_prefix_cache()

    async def stats(self) -> ServiceStats:
        """See `Service.stats`."""
        raw = await self._async.stats()
        return ServiceStats(
            num_running=int(raw["num_requests_running"]),
            num_waiting=int(raw["num_requests_waiting"]),
            num_preemptions=int(raw["num_preemptions_total"]),
            num_recomputed_tokens=int(raw["recomputed_tokens_total"]),
            num_swapped_out_tokens=int(raw["swapped_out_tokens_total"]),
            num_swapped_in_tokens=int(raw["swapped_in_tokens_total"]),
            num_evicted_blocks=int(raw["evicted_blocks_total"]),
            num_steps=int(raw["steps_total"]),
            busy_s=raw["busy_seconds_total"],
            num_clients=int(raw["num_clients"]),
            jain_index=raw["jain_index"],
            kv_usage_ratio=raw["kv_used_bytes"] / max(raw["kv_total_bytes"], 1.0),
        )

    async def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        """See `Service.save_session`."""
        return await self._async.save_session(client, session_id, path)

    async def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        """See `Service.restore_session`."""
        return await self._async.restore_session(client, session_id, adapter, path)

    async def forget_session(self, client: str, session_id: str) -> None:
        """See `Service.forget_session`."""
        await self._async.forget_session(client, session_id)

    async def load_lora(self, name: str, folder: Path) -> None:
        """See `Service.load_lora`."""
        await self._async.load_lora(name, folder)

    async def unload_lora(self, name: str) -> None:
        """See `Service.unload_lora`."""
        await self._async.unload_lora(name)

    async def set_memory(self, num_bytes: int) -> BudgetChange:
        """See `Service.set_memory`."""
        return await self._async.set_memory(num_bytes)

    async def memory(self) -> dict[str, Any]:
        """See `Service.memory`."""
        return await self._async.memory()

    def failure(self) -> str | None:
        """See `Service.failure`."""
        return self._async.failure

    async def drain(self, timeout_s: float) -> bool:
        """See `Service.drain`."""
        return await self._async.drain(timeout_s)

    async def close(self) -> None:
        """See `Service.close`."""
        self.close_grammars()
        await self._async.close()
