# SPDX-License-Identifier: Apache-2.0
"""The prefix forest against a set of prefixes."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ziggurat.memory.forest import MAX_REMEMBERED_EVICTIONS, PrefixForest, PrefixNode
from ziggurat.memory.kv import DROPPED

SIZE = 2
tokens = st.lists(st.integers(0, 2), max_size=8)
salts = st.sampled_from(["", "b"])


class Collision(int):
    """A token id whose hash is that of every other one."""

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return int(self) != other


def test_equal_hashes_do_not_confuse() -> None:
    forest = PrefixForest(SIZE, 1)
    one, other = [Collision(1), Collision(2)], [Collision(2), Collision(1)]
    assert hash(tuple(one)) == hash(tuple(other))
    node = forest.insert(forest.root(""), forest.key(one, 0), [5])
    assert forest.match(one, "", 9) == [node]
    assert forest.match(other, "", 9) == []


def test_salts_never_meet() -> None:
    forest = PrefixForest(SIZE, 1)
    forest.insert(forest.root("a"), (1, 2), [0])
    assert forest.match([1, 2], "b", 9) == []
    assert forest.has_first_block((1, 2))
    assert not forest.has_first_block((2, 1))


def test_a_pin_keeps_the_path_and_unpinning_gives_empty_nodes_back() -> None:
    forest = PrefixForest(SIZE, 1)
    first = forest.insert(forest.root(""), (1, 2), [DROPPED])
    second = forest.insert(first, (3, 4), [DROPPED])
    forest.pin(second)
    forest.prune(second)
    assert forest.match([1, 2, 3, 4], "", 9) == [first, second]
    with pytest.raises(AssertionError):
        forest.evict(second)
    forest.unpin(second)
    assert list(forest.nodes()) == []
    assert list(forest.roots()) == []
    with pytest.raises(AssertionError):
        forest.unpin(second)


def test_only_leaves_are_evicted_and_remembered_for_a_while() -> None:
    forest = PrefixForest(SIZE, 1)
    first = forest.insert(forest.root(""), (1, 2), [0])
    second = forest.insert(first, (3, 4), [1])
    with pytest.raises(AssertionError):
        forest.evict(first)
    assert forest.evict(second) is first
    assert forest.was_evicted(first, "", (3, 4))
    assert not forest.was_evicted(first, "", (4, 3))
    assert not forest.was_evicted(None, "", (1, 2))
    for token in range(MAX_REMEMBERED_EVICTIONS):
        forest.evict(forest.insert(first, (token, 99), [1]))
    assert not forest.was_evicted(first, "", (3, 4))


class ForestMachine(RuleBasedStateMachine):
    """The model: every prefix of whole blocks that is in the forest."""

    def __init__(self) -> None:
        super().__init__()
        self.forest = PrefixForest(SIZE, 1)
        self.prefixes: set[tuple[str, tuple[int, ...]]] = set()

    def path(self, ids: list[int], salt: str) -> list[PrefixNode]:
        return self.forest.match(ids, salt, len(ids))

    @rule(ids=tokens, salt=salts)
    def insert(self, ids: list[int], salt: str) -> None:
        node = self.forest.root(salt)
        self.forest.pin(node)
        root = node
        for index in range(len(ids) // SIZE):
            key = self.forest.key(ids, index)
            child = node.children.get(key)
            node = child or self.forest.insert(node, key, [index])
            self.prefixes.add((salt, tuple(ids[: (index + 1) * SIZE])))
        self.forest.unpin(root)

    @rule(ids=tokens, salt=salts)
    def match(self, ids: list[int], salt: str) -> None:
        num_blocks = 0
        while (salt, tuple(ids[: (num_blocks + 1) * SIZE])) in self.prefixes and (num_blocks + 1) * SIZE <= len(ids):
            num_blocks += 1
        path = self.path(ids, salt)
        assert len(path) == num_blocks
        assert [token for node in path for token in node.key] == ids[: num_blocks * SIZE]
        assert self.forest.match(ids, salt, 1) == path[:1]

    @rule(ids=tokens, salt=salts)
    def evict(self, ids: list[int], salt: str) -> None:
        path = self.path(ids, salt)
        if path and not path[-1].children:
            assert self.forest.evict(path[-1]) in path[-2:-1] or len(path) == 1
            self.prefixes.remove((salt, tuple(ids[: len(path) * SIZE])))

    @rule(ids=tokens, salt=salts)
    def cut(self, ids: list[int], salt: str) -> None:
        path = self.path(ids, salt)
        if path:
            start = tuple(ids[: len(path) * SIZE])
            gone = {prefix for prefix in self.prefixes if prefix[0] == salt and prefix[1][: len(start)] == start}
            assert len(self.forest.cut(path[-1])) == len(gone)
            self.prefixes -= gone

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert len(list(self.forest.nodes())) == len(self.prefixes)
        assert {root.salt for root in self.forest.roots()} == {salt for salt, _ in self.prefixes}
        first_blocks = {ids for _, ids in self.prefixes if len(ids) == SIZE}
        assert all(self.forest.has_first_block(ids) for ids in first_blocks)
        assert len(self.forest._first_keys) == len(first_blocks)


TestForest = ForestMachine.TestCase
TestForest.settings = settings(max_examples=40, stateful_step_count=25)
