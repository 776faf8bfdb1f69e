# SPDX-License-Identifier: Apache-2.0
"""Conversations that come back: what a session's last request left in the prefix cache is kept on demand, saved and restored.

A session belongs to its client: two clients may use the same id. Keeping pins cached blocks until a time; pins are a wish, the oldest gives
way when running work needs the room. A saved session holds whole blocks and is good for the same model, adapter, KV format and block size.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ziggurat.engine.session_file import Blocks, SessionHead, checksum, read_session, write_session
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import RequestError, UnsupportedFeature
from ziggurat.memory.arena import Arena
from ziggurat.memory.kv import DROPPED, OutOfBlocks, spare_blocks
from ziggurat.memory.paged import PagedKVStore
from ziggurat.programs.plan import Plan
from ziggurat.scheduling.sequence import salt_of

MAX_REMEMBERED_TOKENS = 1 << 20
"""Of all sessions together, 4 bytes each; the one that was silent for longest is forgotten first."""
_PADDING = 0  # the store never gives out all of a sequence's tokens; one more makes the last block one of those it does


@dataclass(slots=True, kw_only=True)
class _Session:
    token_ids: array[int]
    salt: str
    adapter: str
    expires_s: float | None = None
    num_pinned_blocks: int = 0


class Sessions:
    """The sessions of one engine. Used by its thread.

    Args:
        model: fingerprint of the model, asked for when something is saved or restored.
        adapter: fingerprint of an adapter by its name.
        set_aside: blocks of each group that are out of circulation, these among them.
    """

    def __init__(
        self,
        plan: Plan,
        store: PagedKVStore,
        pools: Sequence[Arena],
        *,
        model: Callable[[], str],
        adapter: Callable[[str], str],
        set_aside: Callable[[], int],
    ) -> None:
        self._plan, self._store, self._pools = plan, store, pools
        self._model, self._adapter, self._set_aside = model, adapter, set_aside
        self._sessions: OrderedDict[tuple[str, str], _Session] = OrderedDict()
        self._pinned: OrderedDict[tuple[str, str], _Session] = OrderedDict()  # looked at in every step
        self._num_tokens = 0

    # ---- remembering and keeping

    def note(self, request: GenerateRequest, output_ids: Sequence[int], now_s: float) -> None:
        """A request of a session has ended: remember its tokens, and pin what is cached of them if that was asked for."""
        key = (request.client, request.session_id)
        self._drop(key)
        ids = array("i", request.prompt_ids)
        ids.extend(output_ids)
        session = self._sessions[key] = _Session(
            token_ids=ids, salt=salt_of(request.cache_salt, request.adapter), adapter=request.adapter
        )
        self._num_tokens += len(ids)
        while self._num_tokens > MAX_REMEMBERED_TOKENS and len(self._sessions) > 1:
            self._drop(next(iter(self._sessions)))
        if request.keep_s:
            self._pin(key, session, now_s + request.keep_s)

    def expire(self, now_s: float) -> None:
        """Let go of pins whose time has come."""
        for key, session in list(self._pinned.items()):
            if session.expires_s is not None and session.expires_s <= now_s:
                self._unpin(key, session)

    def make_room(self, max_blocks: int) -> None:
        """Let go of the oldest pins until at most so many blocks are pinned."""
        while self._pinned and self.num_blocks > max_blocks:
            self._unpin(*next(iter(self._pinned.items())))

    @property
    def num_blocks(self) -> int:
        """Blocks of each group that pins hold."""
        return sum(session.num_pinned_blocks for session in self._pinned.values())

    def forget(self, client: str, session_id: str) -> None:
        """End a session: its pin goes, its tokens are forgotten; what is saved stays.

        Raises:
            RequestError: unknown.
        """
        self._find(client, session_id)
        self._drop((client, session_id))

    def forget_adapter(self, name: str) -> None:
        """Forget every session whose KV was computed with an adapter."""
        for key in [key for key, session in self._sessions.items() if session.adapter == name]:
            self._drop(key)

    def report(self, now_s: float) -> list[dict[str, Any]]:
        """A row per session, the one that was silent for longest first."""
        return [
            {
                "client": client,
                "session_id": session_id,
                "num_tokens": len(session.token_ids),
                "adapter": session.adapter,
                "num_pinned_blocks": session.num_pinned_blocks,
                "expires_in_s": None if session.expires_s is None else round(session.expires_s - now_s, 3),
            }
            for (client, session_id), session in self._sessions.items()
        ]

    def close(self) -> None:
        """Let go of everything."""
        for key in list(self._sessions):
            self._drop(key)

    # ---- saving and restoring

    def save(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        """Write what is cached of a session. Returns ``num_tokens`` and ``num_bytes``.

        Raises:
            RequestError: unknown, or nothing of it is cached any more; ConfigError: the file cannot be written.
        """
        self._check_windows()
        session = self._find(client, session_id)
        name = f"saving/{client}/{session_id}"
        num_tokens = self._store.hold(name, [*session.token_ids, _PADDING], salt=session.salt)
        try:
            if not num_tokens:
                raise RequestError(
                    f"nothing of session {session_id!r} is cached any more: ask with keep_s to keep it",
                    param="session_id",
                    code="session_not_cached",
                )
            tables = self._store.view(name).tables
            blocks = [self._views(tables, index) for index in range(num_tokens // self._store.block_size)]
            token_ids = tuple(session.token_ids[:num_tokens])
            head = self._head(session.adapter, session.salt, token_ids, [checksum(each) for each in blocks])
            num_bytes = write_session(path, head, blocks)
        finally:
            self._store.release(name)
        return {"num_tokens": num_tokens, "num_bytes": num_bytes}

    def restore(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        """Put a saved session into the prefix cache. Returns ``num_tokens`` (cached now) and ``num_lost_tokens`` (damaged, or no room).

        Raises:
            RequestError: nothing is saved, or it is of another model, adapter or format.
        """
        self._check_windows()
        head, read = read_session(path)
        wanted = self._head(adapter, head.salt, head.token_ids, list(head.crc32))
        for field in ("model", "adapter", "kv_format", "block_size", "block_bytes"):
            if getattr(head, field) != getattr(wanted, field):
                raise RequestError(
                    f"session {session_id!r} was saved with another {field}: {getattr(head, field)!r}, "
                    f"here it is {getattr(wanted, field)!r}",
                    param="session_id",
                    code="session_unusable",
                )
        num_tokens = self._fill(f"restoring/{client}/{session_id}", head, read)
        key = (client, session_id)
        self._drop(key)
        self._sessions[key] = _Session(
            token_ids=array("i", head.token_ids[:num_tokens]), salt=head.salt, adapter=adapter
        )
        self._num_tokens += num_tokens
        return {"num_tokens": num_tokens, "num_lost_tokens": len(head.token_ids) - num_tokens}

    def _fill(self, name: str, head: SessionHead, read: Callable[[Blocks], bool]) -> int:
        """Block by block: reserve, read, commit. What is cached already is not read again. Returns tokens that are cached now."""
        store, size = self._store, self._store.block_size
        num_cached = store.hold(name, [*head.token_ids, _PADDING], salt=head.salt)
        scratch = [memoryview(bytearray(num_bytes)) for num_bytes in head.block_bytes]
        try:
            for index in range(len(head.crc32)):
                if index * size < num_cached:
                    if not read(scratch):
                        return num_cached
                    continue
                store.reserve(name, size)
                if not read(self._views(store.view(name).tables, index)):
                    return index * size
                store.commit(name, head.token_ids[index * size : (index + 1) * size])
            return len(head.token_ids)
        except OutOfBlocks:
            return store.sequences[name].num_computed
        finally:
            store.release(name)

    # ---- parts

    def _find(self, client: str, session_id: str) -> _Session:
        session = self._sessions.get((client, session_id))
        if session is None:
            raise RequestError(f"no session {session_id!r} is known", param="session_id", code="session_not_found")
        return session

    def _pin(self, key: tuple[str, str], session: _Session, expires_s: float) -> None:
        num_blocks = len(session.token_ids) // self._store.block_size
        room = spare_blocks(self._store, self._plan.limits.max_model_len) - (self._set_aside() - self.num_blocks)
        if num_blocks > room:
            return
        self.make_room(room - num_blocks)
        num_tokens = self._store.hold(_pin_name(key), [*session.token_ids, _PADDING], salt=session.salt)
        session.num_pinned_blocks, session.expires_s = num_tokens // self._store.block_size, expires_s
        self._pinned[key] = session

    def _unpin(self, key: tuple[str, str], session: _Session) -> None:
        if self._pinned.pop(key, None) is not None:
            self._store.release(_pin_name(key))
            session.expires_s, session.num_pinned_blocks = None, 0

    def _drop(self, key: tuple[str, str]) -> None:
        session = self._sessions.get(key)
        if session is not None:
            self._unpin(key, session)
            del self._sessions[key]
            self._num_tokens -= len(session.token_ids)

    def _check_windows(self) -> None:
        if self._plan.kv_format.block_tokens:
            raise UnsupportedFeature(
                f"sessions with KV in {self._plan.kv_format.name} are not saved: serve with another --kv-cache-dtype",
                feature="session:kv-cache-dtype",
            )
        if any(group.window is not None for group in self._plan.program.kv_groups()):
            raise UnsupportedFeature(
                "sessions of models with sliding windows are not saved: what has left a window is not there",
                feature="session:window",
            )

    def _head(self, adapter: str, salt: str, token_ids: tuple[int, ...], crc32: list[int]) -> SessionHead:
        plan = self._plan
        return SessionHead(
            model=self._model(),
            adapter=self._adapter(adapter) if adapter else "",
            salt=salt,
            kv_format=plan.kv_format.name,
            block_size=self._store.block_size,
            block_bytes=tuple(plan.block_bytes(group) for group in plan.program.kv_groups()),
            token_ids=token_ids,
            crc32=tuple(crc32),
        )

    def _views(self, tables: Sequence[Sequence[int]], index: int) -> list[memoryview]:
        """A block of every group in the pools."""
        views = []
        for group, pool, table in zip(self._plan.program.kv_groups(), self._pools, tables, strict=True):
            assert table[index] != DROPPED, "full groups keep every block"
            size = self._plan.block_bytes(group)
            views.append(pool.buffer[table[index] * size : (table[index] + 1) * size])
        return views


def _pin_name(key: tuple[str, str]) -> str:
    return f"session/{key[0]}/{key[1]}"
