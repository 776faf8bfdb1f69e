# SPDX-License-Identifier: Apache-2.0
"""Attention over KV in three kinds of space, with torch's own kernel: reserved at full length, paged and gathered, virtual.

The kernel is `torch.nn.functional.scaled_dot_product_attention`, unchanged: it knows neither blocks nor slots. 8 layers' worth of 8 query
and 4 KV heads of 64 in fp32 (of 4 layers where memory counts and not time); values are random.
"""

from __future__ import annotations

import ctypes
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ziggurat.memory.virtual.arena import VirtualArena, page_group_bytes
from ziggurat.memory.virtual.mapper import Mapper
from ziggurat.memory.virtual.store import VirtualKVStore
from ziggurat.programs.program import KVGroup
from ziggurat.units import ceil_div

if TYPE_CHECKING:
    from torch import Tensor

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 8, 8, 4, 64
TOKEN_BYTES = KV_HEADS * HEAD_DIM * 4
GROUP_TOKENS = 64
PAGED_TOKENS = 16
CHUNK_TOKENS = 512
SLOTS, SLOT_TOKENS = 256, 32768

Space = Literal["static", "gathered", "virtual"]
Mapping = Literal["before", "async", "sync"]


def new_store(num_blocks: int, *, num_slots: int = SLOTS, tokens: int = GROUP_TOKENS) -> VirtualKVStore:
    """A virtual space without accounts."""
    group = KVGroup(index=0, layers=tuple(range(LAYERS)), num_kv_heads=KV_HEADS, head_dim=HEAD_DIM, window=None)
    return VirtualKVStore(
        [group], [num_blocks], tokens, num_slots=num_slots, max_model_len=SLOT_TOKENS, lease=None, block_bytes=[1]
    )


class VirtualSpace:
    """A store, its arena and its mapper; rows of a slot as tensors."""

    def __init__(self, num_blocks: int, *, mode: Literal["async", "sync"] = "async", layers: int = LAYERS) -> None:
        self.store = new_store(num_blocks)
        self.arena = VirtualArena(
            num_slots=SLOTS,
            slot_blocks=self.store.slots.slot_blocks,
            num_planes=2 * layers,
            group_bytes=page_group_bytes(GROUP_TOKENS, TOKEN_BYTES),
            num_blocks=num_blocks,
        )
        self.mapper = Mapper(self.store, self.arena, mode=mode)
        self.layers = layers

    def planes(self, seq_id: str) -> list[Tensor]:
        """Of each plane the whole slot, [SLOT_TOKENS, KV_HEADS, HEAD_DIM]; what is not mapped must not be read."""
        import torch

        slot = self.store.slot(seq_id)
        rows = []
        for plane in range(2 * self.layers):
            memory = (ctypes.c_byte * self.arena.plane_bytes).from_address(self.arena.plane_address(slot, plane))
            rows.append(torch.frombuffer(memory, dtype=torch.float32).view(-1, KV_HEADS, HEAD_DIM))
        return rows

    def close(self) -> None:
        """End the mapper and give the memory back; tensors of `planes` must be gone."""
        self.mapper.close()
        self.arena.close()


def attend(query: Tensor, keys: Tensor, values: Tensor, num_tokens: int, mask: Tensor | None) -> Tensor:
    """torch's kernel on the first ``num_tokens`` rows."""
    from torch.nn.functional import scaled_dot_product_attention

    k, v = (rows[:num_tokens].transpose(0, 1).unsqueeze(0) for rows in (keys, values))
    return scaled_dot_product_attention(query, k, v, attn_mask=mask, enable_gqa=True)


class VirtualRig:
    """Times and counts. Made anew for every figure, so that no run finds another's memory warm."""

    def prefill_seconds(self, space: Space, num_tokens: int) -> float:
        """Attention of all layers over a prompt, computed in chunks; getting at the keys and values is part of it, writing them too.

        Memory is there before the clock starts, in all three.
        """
        import torch

        generator = torch.Generator().manual_seed(1)
        query = torch.randn(1, HEADS, CHUNK_TOKENS, HEAD_DIM, generator=generator)
        fresh = torch.randn(CHUNK_TOKENS, KV_HEADS, HEAD_DIM, generator=generator)
        masks = {start: causal_mask(start) for start in range(0, num_tokens, CHUNK_TOKENS)}
        if space == "virtual":
            return _virtual_prefill(query, fresh, masks)
        if space == "static":
            rows = [torch.full((num_tokens, KV_HEADS, HEAD_DIM), 0.5) for _ in range(2 * LAYERS)]
            return _timed_prefill(query, fresh, masks, lambda end: rows, _write_rows)
        num_blocks = num_tokens // PAGED_TOKENS
        order = torch.randperm(num_blocks, generator=generator)
        pools = [torch.full((num_blocks, PAGED_TOKENS, KV_HEADS, HEAD_DIM), 0.5) for _ in range(2 * LAYERS)]

        def gather(end: int) -> list[Tensor]:
            table = order[: end // PAGED_TOKENS]
            return _Lazy(pools, table)  # type: ignore[return-value]

        def write(rows: Any, plane: int, start: int, fresh: Tensor) -> None:
            table = order[start // PAGED_TOKENS : (start + len(fresh)) // PAGED_TOKENS]
            pools[plane][table] = fresh.view(-1, PAGED_TOKENS, KV_HEADS, HEAD_DIM)

        return _timed_prefill(query, fresh, masks, gather, write)

    def step_seconds(self, mapping: Mapping, *, num_seqs: int, context: int, num_steps: int) -> list[float]:
        """Seconds of every decode step of a batch whose sequences all reach new page groups at the same steps."""
        import torch

        num_blocks = num_seqs * ceil_div(context + num_steps, GROUP_TOKENS) + 8
        space = VirtualSpace(num_blocks, mode="sync" if mapping == "sync" else "async")
        query, fresh = torch.randn(1, HEADS, 1, HEAD_DIM), torch.randn(1, KV_HEADS, HEAD_DIM)
        names = [f"s{number}" for number in range(num_seqs)]
        rows = {}
        for number, name in enumerate(names):
            space.store.open(name, [number])
            space.store.reserve(name, context + (num_steps if mapping == "before" else 0))
            space.mapper.before_step()
            space.store.commit(name, [number] * context)
            rows[name] = space.planes(name)
            for plane in rows[name]:
                plane[:context] = 0.5
        if mapping == "before":
            space.arena.apply(all_mapped(space.store), populate=True)
        seconds = []
        for step in range(num_steps):
            start = time.perf_counter()
            if mapping != "before":
                for name in names:
                    space.store.reserve(name, 1)
                space.mapper.before_step()
            for name in names:
                _decode(rows[name], query, fresh, context + step)
            seconds.append(time.perf_counter() - start)
            for number, name in enumerate(names):
                space.store.commit(name, [number])
        rows.clear()
        space.close()
        return seconds

    def committed(self, lengths: Sequence[int]) -> tuple[int, int, int]:
        """Physical bytes for sequences of these lengths, all written: (virtual, paged, a page group per sequence and plane)."""
        layers = LAYERS // 2
        space = VirtualSpace(sum(ceil_div(length, GROUP_TOKENS) for length in lengths), layers=layers)
        for number, length in enumerate(lengths):
            space.store.open(f"s{number}", [number])
            space.store.reserve(f"s{number}", length)
        space.mapper.before_step()
        space.mapper.join()
        for number, length in enumerate(lengths):
            for plane in space.planes(f"s{number}"):
                plane[:length] = 1
        committed = space.arena.committed_bytes()
        space.close()
        plane_tokens = sum(ceil_div(length, PAGED_TOKENS) * PAGED_TOKENS for length in lengths)
        slack = len(lengths) * 2 * layers * page_group_bytes(GROUP_TOKENS, TOKEN_BYTES)
        return committed, plane_tokens * TOKEN_BYTES * 2 * layers, slack

    def shared_bytes(self, num_seqs: int, prefix_groups: int) -> tuple[int, int]:
        """Physical bytes of sequences with a common prefix and one page group each of their own, and what they must be; every
        sequence reads the prefix through its own slot, and a wrong value is an error."""
        space = VirtualSpace(prefix_groups + num_seqs + 1, layers=1)
        tokens = list(range(prefix_groups * GROUP_TOKENS))
        for number in range(num_seqs):
            name = f"s{number}"
            cached = space.store.open(name, [*tokens, 7, number])
            space.store.reserve(name, len(tokens) + 2 - cached)
            space.mapper.before_step()
            space.mapper.join()
            keys, values = space.planes(name)
            keys[cached : len(tokens) + 2] = 3
            values[cached : len(tokens) + 2] = 4
            space.store.commit(name, [*tokens, 7, number][cached:])
            assert bool((keys[: len(tokens)] == 3).all()) and bool((values[: len(tokens)] == 4).all())
        del keys, values
        committed = space.arena.committed_bytes()
        space.close()
        return committed, 2 * (prefix_groups + num_seqs) * page_group_bytes(GROUP_TOKENS, TOKEN_BYTES)


class _Lazy:
    """Planes that are gathered when they are asked for, as a kernel without block tables needs it."""

    def __init__(self, pools: Sequence[Tensor], table: Tensor) -> None:
        self._pools, self._table = pools, table

    def __getitem__(self, plane: int) -> Tensor:
        return self._pools[plane][self._table].view(-1, KV_HEADS, HEAD_DIM)


def _write_rows(rows: Any, plane: int, start: int, fresh: Tensor) -> None:
    rows[plane][start : start + len(fresh)] = fresh


def causal_mask(start: int) -> Tensor:
    """What the chunk that begins at ``start`` may see."""
    import torch

    return torch.ones(CHUNK_TOKENS, start + CHUNK_TOKENS, dtype=torch.bool).tril(start)


def _timed_prefill(
    query: Tensor,
    fresh: Tensor,
    masks: dict[int, Tensor],
    rows_until: Callable[[int], Any],
    write: Callable[[Any, int, int, Tensor], None],
) -> float:
    begin = time.perf_counter()
    for start, mask in masks.items():
        end = start + CHUNK_TOKENS
        rows = rows_until(end)
        for layer in range(LAYERS):
            for plane in (2 * layer, 2 * layer + 1):
                write(rows, plane, start, fresh)
            attend(query, rows[2 * layer], rows[2 * layer + 1], end, mask)
    return time.perf_counter() - begin


def _virtual_prefill(query: Tensor, fresh: Tensor, masks: dict[int, Tensor]) -> float:
    space = VirtualSpace(len(masks) * CHUNK_TOKENS // GROUP_TOKENS)
    space.arena.commit()
    space.store.open("s", [0])
    rows = space.planes("s")

    def rows_until(end: int) -> list[Tensor]:
        space.store.commit("s", [0] * (end - CHUNK_TOKENS - space.store.sequences["s"].num_computed))
        space.store.reserve("s", CHUNK_TOKENS)
        space.mapper.before_step()
        return rows

    seconds = _timed_prefill(query, fresh, masks, rows_until, _write_rows)
    rows.clear()
    space.close()
    return seconds


def _decode(rows: Sequence[Tensor], query: Tensor, fresh: Tensor, position: int) -> None:
    for layer in range(LAYERS):
        keys, values = rows[2 * layer], rows[2 * layer + 1]
        keys[position : position + 1] = fresh
        values[position : position + 1] = fresh
        attend(query, keys, values, position + 1, None)


def all_mapped(store: VirtualKVStore) -> list[Any]:
    """Every place that is mapped, as runs of one block: mapping them again fills the page tables."""
    from ziggurat.memory.virtual.slots import UNMAPPED, MapRun

    return [
        MapRun(slot=slot, index=index, block=block, num_blocks=1)
        for slot, row in enumerate(store.slots.mapped)
        for index, block in enumerate(row)
        if block != UNMAPPED
    ]


def chat_lengths(count: int, seed: int) -> list[int]:
    """Tokens of conversations with the means of ShareGPT as vLLM's authors report them: prompts of 161, answers of 338 tokens (both
    lognormal with sigma 1, cut at 4,096 together)."""
    rng = random.Random(seed)
    return [
        min(4096, sum(max(1, round(rng.lognormvariate(math.log(mean) - 0.5, 1))) for mean in (161, 338)))
        for _ in range(count)
    ]
