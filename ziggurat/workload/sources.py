# SPDX-License-Identifier: Apache-2.0
"""What a replay asks for its next request: an open loop (times are fixed) or a closed loop (a client waits for its answer)."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import check_trace
from ziggurat.workload.records import Arrival


class Source(Protocol):
    """Requests to come. Times are seconds from the start of the replay."""

    def next_s(self) -> float | None:
        """When the next request is due; None if nothing is due before another one ends."""
        ...

    def pop(self) -> Arrival:
        """The next request; its ``t_s`` is when it should be sent."""
        ...

    def on_end(self, request_id: str, t_s: float, answer_ids: Sequence[int], num_answer_tokens: int) -> None:
        """A request has ended. ``answer_ids`` is empty when the client cannot tell them."""
        ...


class OpenLoop:
    """Sends at the times of the workload, whatever has become of earlier requests.

    Raises:
        ConfigError: the arrivals are not in order of time.
    """

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        check_trace(arrivals)
        self._coming = deque(arrivals)

    def next_s(self) -> float | None:
        """See `Source.next_s`."""
        return self._coming[0].t_s if self._coming else None

    def pop(self) -> Arrival:
        """See `Source.pop`."""
        return self._coming.popleft()

    def on_end(self, request_id: str, t_s: float, answer_ids: Sequence[int], num_answer_tokens: int) -> None:
        """Changes nothing: the loop is open."""


class Capped:
    """Another source with at most ``max_concurrency`` requests open: one that is due waits for a place, and counts from then on.

    Raises:
        ConfigError: the limit is below one.
    """

    def __init__(self, source: Source, max_concurrency: int) -> None:
        if max_concurrency < 1:
            raise ConfigError(f"max_concurrency must be at least 1, got {max_concurrency}")
        self._source = source
        self._num_free = max_concurrency
        self._freed_s = 0.0

    def next_s(self) -> float | None:
        """See `Source.next_s`."""
        due_s = self._source.next_s() if self._num_free else None
        return None if due_s is None else max(due_s, self._freed_s)

    def pop(self) -> Arrival:
        """See `Source.pop`."""
        self._num_free -= 1
        arrival = self._source.pop()
        return replace(arrival, t_s=max(arrival.t_s, self._freed_s))

    def on_end(self, request_id: str, t_s: float, answer_ids: Sequence[int], num_answer_tokens: int) -> None:
        """See `Source.on_end`."""
        if not self._num_free:
            self._freed_s = max(self._freed_s, t_s)
        self._num_free += 1
        self._source.on_end(request_id, t_s, answer_ids, num_answer_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Turns of one session, each sent when the answer before it is there.

    Attributes:
        turns: (new tokens of the user, tokens to generate) per turn.
        think_s: pause between an answer and the next turn.
    """

    id: str
    turns: tuple[tuple[int, int], ...]
    think_s: float = 0.0


class ClosedLoop:
    """``num_clients`` clients; each plays one conversation after another and has one request open at most.

    A turn's prompt is everything before it, token for token (prompts and answers), and the new tokens, so that a prefix cache finds
    the beginning. Where a client cannot tell the answer's ids, made-up ones stand for them.

    Raises:
        ConfigError: no client, or a turn without tokens.
    """

    def __init__(self, conversations: Iterable[Conversation], num_clients: int, *, vocab_size: int) -> None:
        if num_clients < 1:
            raise ConfigError(f"a closed loop needs at least one client, got {num_clients}")
        self._left = deque(conversations)
        self._vocab_size = vocab_size
        self._due: list[tuple[float, int, Conversation, int]] = []
        self._open: dict[str, tuple[Conversation, int]] = {}
        self._history: dict[str, list[int]] = {}
        self._sequence = 0
        for _ in range(num_clients):
            self._start(0.0)

    def next_s(self) -> float | None:
        """See `Source.next_s`."""
        return self._due[0][0] if self._due else None

    def pop(self) -> Arrival:
        """See `Source.pop`."""
        t_s, _, conversation, turn = heapq.heappop(self._due)
        num_new, max_new = conversation.turns[turn]
        history = self._history.setdefault(conversation.id, [])
        history += self._made_up(f"{conversation.id}/user/{turn}", num_new)
        arrival = Arrival(
            t_s=t_s,
            id=f"{conversation.id}.{turn}",
            prompt_ids=tuple(history),
            max_new=max_new,
            session=conversation.id,
        )
        self._open[arrival.id] = (conversation, turn)
        return arrival

    def on_end(self, request_id: str, t_s: float, answer_ids: Sequence[int], num_answer_tokens: int) -> None:
        """See `Source.on_end`."""
        conversation, turn = self._open.pop(request_id)
        if turn + 1 < len(conversation.turns):
            made_up = self._made_up(f"{conversation.id}/answer/{turn}", num_answer_tokens)
            self._history[conversation.id] += answer_ids or made_up
            self._schedule(t_s + conversation.think_s, conversation, turn + 1)
        else:
            del self._history[conversation.id]
            self._start(t_s)

    def _start(self, t_s: float) -> None:
        if self._left:
            self._schedule(t_s, self._left.popleft(), 0)

    def _schedule(self, t_s: float, conversation: Conversation, turn: int) -> None:
        heapq.heappush(self._due, (t_s, self._sequence, conversation, turn))
        self._sequence += 1

    def _made_up(self, name: str, count: int) -> list[int]:
        words = memoryview(hashlib.shake_128(name.encode()).digest(4 * count)).cast("I")
        return [word % self._vocab_size for word in words]


def as_conversations(arrivals: Iterable[Arrival]) -> list[Conversation]:
    """Each request as a conversation of one turn: the lengths of a workload for a closed loop."""
    return [Conversation(id=arrival.id, turns=((arrival.prompt_len, arrival.max_new),)) for arrival in arrivals]
