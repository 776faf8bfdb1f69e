# SPDX-License-Identifier: Apache-2.0
"""The cache simulation against a model of a prefix cache that is a dictionary and a sort, and hit ratios worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.errors import ConfigError, TraceError
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.blocks import BlockNames, PrefixSymbols, prefix_source, unit_tokens
from ziggurat.workload.traces.cache import CacheSetting, CacheSimulation

# Few numbers, so that beginnings are shared and the cache is too small.
paths = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=30)


def hashed(index: int, hash_ids: list[int], *, rest: int = 0, block: int = 4) -> Arrival:
    """Whole blocks and ``rest`` tokens of another one."""
    ids = tuple(hash_ids) + ((99,) if rest else ())
    num_tokens = block * len(hash_ids) + rest
    return Arrival(t_s=index, id=str(index), max_new=1, prompt_len=num_tokens, hash_ids=ids, hash_block_tokens=block)


def lru_hits(prompts: list[list[int]], capacity: int, *, reuse_all: bool) -> int:
    """Blocks found by a prefix cache that evicts the leaf whose last use is longest ago.

    Space for all blocks that are not found is taken first, also for one that is cached and computed again because its last token's
    logits are wanted. Uses are ordered as a request lets go: its last block first.
    """
    last_use: dict[tuple[int, ...], int] = {}
    now = hits = 0
    for prompt in prompts:
        beginnings = [tuple(prompt[: end + 1]) for end in range(len(prompt))]
        num_found = 0
        most = len(prompt) if reuse_all else len(prompt) - 1
        while num_found < most and beginnings[num_found] in last_use:
            num_found += 1
        hits += num_found
        kept = beginnings[:capacity]
        while len(last_use) + len(kept) - num_found > capacity:
            parents = {other[:-1] for other in last_use}
            leaves = [other for other in last_use if other not in parents and other not in kept[:num_found]]
            del last_use[min(leaves, key=lambda leaf: last_use[leaf])]
        for each in reversed(kept):
            now += 1
            last_use[each] = now
    return hits


@given(paths, st.integers(1, 8), st.booleans())
def test_lru_is_the_model(prompts: list[list[int]], capacity: int, has_rest: bool) -> None:
    """With tokens after the last whole block that block can be reused; without them the last token must be computed."""
    settings = [CacheSetting(policy="lru", capacity_blocks=each) for each in (capacity, None)]
    simulation = CacheSimulation(settings, block_tokens=4)
    simulation.run(hashed(index, prompt, rest=has_rest) for index, prompt in enumerate(prompts))
    limited, unlimited = simulation.rows()
    assert limited["hit_blocks"] == lru_hits(prompts, capacity, reuse_all=has_rest)
    assert unlimited["hit_blocks"] == lru_hits(prompts, 10**6, reuse_all=has_rest) >= limited["hit_blocks"]
    assert unlimited["cached_blocks"] == len({tuple(p[: n + 1]) for p in prompts for n in range(len(p))})
    assert limited["cached_blocks"] <= capacity and unlimited["evicted_blocks"] == 0
    assert limited["query_blocks"] == sum(map(len, prompts))
    assert limited["num_oversized_requests"] == sum(len(prompt) > capacity for prompt in prompts)


@given(paths, st.sampled_from([1, 2, 3, 4, 6, 8, 12]), st.integers(0, 3))
def test_block_sizes_other_than_the_traces(prompts: list[list[int]], block_tokens: int, rest: int) -> None:
    """Hash ids cut up or put together find what token ids find that share exactly as much."""
    hashes = [hashed(index, prompt, rest=rest) for index, prompt in enumerate(prompts)]
    tokens = [
        Arrival(
            t_s=arrival.t_s,
            id=arrival.id,
            max_new=1,
            prompt_ids=[each * 4 + place for each in arrival.hash_ids for place in range(4)][: arrival.prompt_len],
        )
        for arrival in hashes
    ]
    setting = [CacheSetting(policy="lru", capacity_blocks=each) for each in (6, None)]
    assert (
        CacheSimulation(setting, block_tokens).run(hashes).rows()
        == CacheSimulation(setting, block_tokens).run(tokens).rows()
    )


def test_by_hand() -> None:
    """Blocks of 4: the second prompt finds 2 of its 3 whole blocks, the third nothing, the fourth (another model) nothing."""
    prompts = [hashed(0, [1, 2]), hashed(1, [1, 2, 3]), hashed(2, [7], rest=1)]
    other = Arrival(t_s=3, id="3", max_new=1, prompt_len=8, hash_ids=(1, 2), hash_block_tokens=4, model="other")
    (row,) = CacheSimulation([CacheSetting(policy="lru", capacity_blocks=None)], 4).run([*prompts, other]).rows()
    assert (row["query_tokens"], row["hit_tokens"], row["query_blocks"], row["hit_blocks"]) == (33, 8, 8, 2)
    assert (row["token_hit_ratio"], row["block_hit_ratio"], row["num_hit_requests"]) == (8 / 33, 0.25, 1)


def test_sessions_share_and_strangers_do_not() -> None:
    def of(index: int, session: str | None, length: int) -> Arrival:
        return Arrival(t_s=index, id=f"{index}", max_new=1, prompt_len=length, session=session)

    prompts = [of(0, "a", 9), of(1, "b", 9), of(2, "a", 17), of(3, None, 9), of(4, None, 9)]
    simulation = CacheSimulation([CacheSetting(policy="lru", capacity_blocks=None)], 4).run(prompts)
    assert simulation.rows()[0]["hit_tokens"] == 8 and simulation.num_unknown == 2


def test_settings_that_make_no_cache() -> None:
    with pytest.raises(ConfigError, match="at least one block, got 0"):
        CacheSetting(policy="lru", capacity_blocks=0)
    with pytest.raises(ConfigError, match="unknown eviction policy 'lri', did you mean 'lru'"):
        CacheSetting(policy="lri", capacity_blocks=1)
    with pytest.raises(ConfigError, match="at least one policy"):
        CacheSimulation([], 4)
    with pytest.raises(ConfigError, match="at least one token"):
        CacheSimulation([CacheSetting(policy="lru", capacity_blocks=1)], 0)


def test_units() -> None:
    known = hashed(0, [1, 2, 3])
    tokens = Arrival(t_s=0, id="t", max_new=1, prompt_ids=[5, 6, 7])
    assert [unit_tokens(known, size) for size in (2, 4, 6, 12)] == [2, 4, 2, 4] and unit_tokens(tokens, 16) == 1
    assert [prefix_source(each) for each in (known, tokens)] == ["hash_ids", "token_ids"]
    symbols = PrefixSymbols(2)
    assert list(symbols.of(known)) == [2, 3, 4, 5, 6, 7]
    with pytest.raises(TraceError, match="units of 1 tokens and earlier ones in units of 2"):
        symbols.of(tokens)


@given(paths)
def test_names_are_one_per_block_and_beginning(prompts: list[list[int]]) -> None:
    names = BlockNames(4)
    seen: dict[tuple[int, ...], int] = {}
    for index, prompt in enumerate(prompts):
        found = names.of(hashed(index, prompt))
        assert found is not None
        for end, name in enumerate(found):
            assert seen.setdefault(tuple(prompt[: end + 1]), name) == name
    assert names.num_distinct == len(seen) == len(set(seen.values()))
    assert names.of(Arrival(t_s=0, id="x", max_new=1, prompt_len=3)) is None
