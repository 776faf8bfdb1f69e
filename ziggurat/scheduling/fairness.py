# SPDX-License-Identifier: Apache-2.0
"""Who was served how much: a counter of service per client, as the virtual token counter keeps it. Pure.

Source: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (VTC). Service is 1 per prompt token that was computed and 2
per token that was generated, because a generated token costs about twice as much there. The virtual counter is service divided by the
client's weight, plus lifts: a client that comes back from a pause may not use up what it did not ask for meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ziggurat.errors import ConfigError

PROMPT_SERVICE = 1.0
OUTPUT_SERVICE = 2.0
# Clients without a request that are remembered; the longest idle is forgotten first, and with it only a lead or a lag of the past.
MAX_IDLE_CLIENTS = 1024


@dataclass(slots=True, kw_only=True, eq=False)
class ClientShare:
    """One client's account.

    Attributes:
        name: what the server calls it; "" is everybody who did not say.
        weight: how much service it may have beside a client of weight 1.
        virtual: the counter that the ``vtc`` order compares.
        service: what it got, unweighted.
        num_waiting: its sequences in the queue.
        num_requests: its requests that have not ended.
    """

    name: str
    weight: float = 1.0
    virtual: float = 0.0
    service: float = 0.0
    num_waiting: int = 0
    num_requests: int = 0

    def serve(self, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Count computed prompt tokens and generated tokens."""
        service = PROMPT_SERVICE * num_prompt_tokens + OUTPUT_SERVICE * num_output_tokens
        self.service += service
        self.virtual += service / self.weight


def jain_index(shares: Iterable[float]) -> float:
    """(sum x)^2 / (n sum x^2): 1 if all have the same, 1/n if one has everything; 1 for nobody (Jain, Chiu and Hawe 1984)."""
    values = list(shares)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


class Clients:
    """The accounts by name.

    Args:
        weights: of clients whose weight is not 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})
        self._shares: dict[str, ClientShare] = {}
        self._last_served = 0.0

    def __len__(self) -> int:
        return len(self._shares)

    def rows(self) -> list[dict[str, Any]]:
        """All accounts as plain data: ``client``, ``weight``, ``service``, ``num_requests`` and ``num_waiting``."""
        names = ("weight", "service", "num_requests", "num_waiting")
        return [
            {"client": share.name, **{name: getattr(share, name) for name in names}} for share in self._shares.values()
        ]

    def enter(self, name: str) -> ClientShare:
        """A request of this client arrives."""
        share = self._shares.pop(name, None) or ClientShare(name=name, weight=self._weights.get(name, 1.0))
        self._shares[name] = share
        share.num_requests += 1
        return share

    def leave(self, share: ClientShare) -> None:
        """A request of this client has ended."""
        share.num_requests -= 1
        idle = [each for each in self._shares.values() if not each.num_requests] if self._is_full() else []
        for each in idle[: len(idle) - MAX_IDLE_CLIENTS]:
            del self._shares[each.name]

    def _is_full(self) -> bool:
        return len(self._shares) > MAX_IDLE_CLIENTS

    def wait(self, share: ClientShare) -> None:
        """A sequence joins the queue. The first of its client lifts the counter to the least of those that wait, or to that of the
        client that left the queue last."""
        if not share.num_waiting:
            waiting = [each.virtual for each in self._shares.values() if each.num_waiting]
            share.virtual = max(share.virtual, min(waiting) if waiting else self._last_served)
        share.num_waiting += 1

    def go(self, share: ClientShare) -> None:
        """A sequence leaves the queue."""
        share.num_waiting -= 1
        if not share.num_waiting:
            self._last_served = share.virtual

    def jain_index(self) -> float:
        """Of service by weight, over clients with a request that has not ended: how even the present competitors were served."""
        return jain_index(each.service / each.weight for each in self._shares.values() if each.num_requests)


def named_weights(entries: Iterable[str]) -> dict[str, float]:
    """``NAME=WEIGHT`` texts as weights by name.

    Raises:
        ConfigError: one of them does not look so, or its weight is not above 0.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        name, is_pair, text = entry.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not is_pair or not 0 < weight < float("inf"):
            raise ConfigError(f"client_weight {entry!r} must look like alice=2, with a weight above 0")
        weights[name] = weight
    return weights
