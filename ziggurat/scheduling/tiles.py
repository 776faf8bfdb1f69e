# SPDX-License-Identifier: Apache-2.0
"""Tiles of unequal cost dealt to workers, in the four stages of COMET's scheduler, in virtual time.

::

    naive        tile i to worker i mod W, and all workers wait for each other after every round
    barrier-min  the same tiles, and they wait once, at the end
    remap        tiles of each cost are dealt in turn, so that every worker gets the same mix
    steal        as remap; an idle worker takes steps of the k loop from the tile that would end last, so that both end together

Source: COMET, arXiv 2410.12168, section 5 (SM scheduling: barrier minimization, tile remapping, tile decomposition).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ziggurat.errors import ConfigError

TilePolicy = Literal["naive", "barrier-min", "remap", "steal"]
TILE_POLICIES: tuple[TilePolicy, ...] = get_args(TilePolicy)


@dataclass(frozen=True, slots=True)
class Piece:
    """Steps [first, last) of a tile's k loop on a worker, from ``start_s`` to ``end_s``."""

    tile: int
    worker: int
    first: int
    last: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class TileTimeline:
    """What ran where.

    Attributes:
        utilisation: cost of all tiles over workers times makespan.
    """

    pieces: tuple[Piece, ...]
    makespan_s: float
    utilisation: float


def partition(costs: Sequence[int], workers: int, policy: TilePolicy) -> list[list[int]]:
    """Tiles of every worker in their order.

    Raises:
        ConfigError: unknown policy, no workers, or a cost that is not above zero.
    """
    if policy not in TILE_POLICIES:
        raise ConfigError(f"unknown tile policy {policy!r}. Known: {', '.join(TILE_POLICIES)}")
    if workers < 1 or any(cost < 1 for cost in costs):
        raise ConfigError(f"{workers} workers, cheapest tile {min(costs, default=1)}: both must be at least 1")
    tiles = list(range(len(costs)))
    if policy in ("remap", "steal"):
        tiles.sort(key=lambda tile: -costs[tile])  # stable: within a cost, the old order
    return [tiles[worker::workers] for worker in range(workers)]


def simulate(costs: Sequence[int], workers: int, policy: TilePolicy, *, steps: int = 32) -> TileTimeline:
    """Run in virtual time.

    Args:
        costs: of each tile, in steps' cost: a tile of cost c takes c seconds, c / steps per step of its k loop.
        steps: of every tile's k loop; what can be stolen.

    Raises:
        ConfigError: as `partition`.
    """
    queues = partition(costs, workers, policy)
    pieces = _rounds(costs, queues, steps) if policy == "naive" else _free(costs, queues, steps)
    if policy == "steal":
        pieces = _stolen(costs, pieces, workers, steps)
    makespan = max((piece.end_s for piece in pieces), default=0.0)
    return TileTimeline(tuple(pieces), makespan, sum(costs) / (workers * makespan) if makespan else 1.0)


def _rounds(costs: Sequence[int], queues: list[list[int]], steps: int) -> list[Piece]:
    pieces, clock = [], 0.0
    for number in range(max(map(len, queues))):
        of_round = [(worker, queue[number]) for worker, queue in enumerate(queues) if number < len(queue)]
        pieces += [Piece(tile, worker, 0, steps, clock, clock + costs[tile]) for worker, tile in of_round]
        clock += max(costs[tile] for _, tile in of_round)
    return pieces


def _free(costs: Sequence[int], queues: list[list[int]], steps: int) -> list[Piece]:
    pieces = []
    for worker, queue in enumerate(queues):
        clock = 0.0
        for tile in queue:
            pieces.append(Piece(tile, worker, 0, steps, clock, clock + costs[tile]))
            clock += costs[tile]
    return pieces


def _stolen(costs: Sequence[int], pieces: list[Piece], workers: int, steps: int) -> list[Piece]:
    """The worker that is idle first takes from the piece that ends last, so many steps that both end together; until none is left."""
    ends = [0.0] * workers
    for piece in pieces:
        ends[piece.worker] = max(ends[piece.worker], piece.end_s)
    while pieces:
        idle = min(range(workers), key=lambda worker: (ends[worker], worker))
        index = max(range(len(pieces)), key=lambda i: (pieces[i].end_s, -i))
        victim, step_s = pieces[index], costs[pieces[index].tile] / steps
        running = victim.first + max(0, math.ceil((ends[idle] - victim.start_s) / step_s - 1e-9))
        taken = min(victim.last - running, int((victim.end_s - ends[idle]) / (2 * step_s) + 1e-9))
        if taken < 1:
            break
        middle, end = victim.last - taken, victim.end_s - taken * step_s
        kept = (
            [Piece(victim.tile, victim.worker, victim.first, middle, victim.start_s, end)]
            if middle > victim.first
            else []
        )
        pieces[index : index + 1] = kept
        pieces.append(Piece(victim.tile, idle, middle, victim.last, ends[idle], ends[idle] + taken * step_s))
        ends[victim.worker], ends[idle] = end, ends[idle] + taken * step_s
    return pieces
