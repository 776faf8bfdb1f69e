# SPDX-License-Identifier: Apache-2.0
"""`MemStore` against a dictionary, through restarts, lost indexes, torn logs and hard deletion; and what it refuses."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ziggurat.durable import CheckedLog
from ziggurat.errors import ConfigError, RequestError
from ziggurat.recall.bm25 import BM25
from ziggurat.recall.cube import ExpiredOnArrival, Filter, NewMemory, VersionConflict
from ziggurat.recall.records import INDEX, LOG
from ziggurat.recall.store import MemStore

WORDS = ["tea", "boat", "paris", "dog", "piano", "monday", "winter", "garden"]
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


class Clock:
    """A clock that is set."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        self.now_s += 1
        return self.now_s


class WordEncoder:
    """One dimension per word."""

    name, dim = "words", len(WORDS)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.array([[text.split().count(word) for word in WORDS] for text in texts], dtype=np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


class StoreMachine(RuleBasedStateMachine):
    """Random writes; the model holds (text, status, versions) by id."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.numbers = iter(range(10**6))
        self.model: dict[str, dict[str, object]] = {}
        self.erased: list[str] = []

    def open(self) -> None:
        self.store = MemStore(
            self.folder, encoder=WordEncoder(), clock=self.clock, new_id=lambda: f"m{next(self.numbers):05d}"
        )

    @initialize()
    def start(self) -> None:
        self.open()

    @rule(text=TEXTS, session=st.sampled_from(["", "s"]))
    def add(self, text: str, session: str) -> None:
        twin = [k for k, v in self.model.items() if (v["text"], v["session"], v["status"]) == (text, session, "active")]
        (added,) = self.store.add([NewMemory(text=text, session=session)])
        assert added.is_new == (not twin)
        if twin:
            assert added.id == twin[0]
        else:
            self.model[added.id] = {"text": text, "session": session, "status": "active", "versions": [text]}

    @precondition(lambda self: self.model)
    @rule(data=st.data(), text=TEXTS)
    def update(self, data: st.DataObject, text: str) -> None:
        memory_id = data.draw(st.sampled_from(sorted(self.model)))
        entry = self.model[memory_id]
        if entry["status"] != "active":
            with pytest.raises(RequestError, match="restore it first"):
                self.store.update(memory_id, text)
            return
        assert self.store.update(memory_id, text).version == len(entry["versions"]) + 1  # type: ignore[arg-type]
        entry["text"] = text
        entry["versions"] = [*entry["versions"], text]  # type: ignore[misc]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), hard=st.booleans())
    def delete(self, data: st.DataObject, hard: bool) -> None:
        memory_id = data.draw(st.sampled_from(sorted(self.model)))
        self.store.delete(memory_id, hard=hard)
        if hard:
            del self.model[memory_id]
            self.erased.append(memory_id)
        else:
            self.model[memory_id]["status"] = "deleted"

    @rule(lost=st.booleans())
    def restart(self, lost: bool) -> None:
        self.store.catch_up()
        self.store.close()
        if lost:
            for each in self.folder.glob(f"{INDEX}*"):
                each.unlink()
        self.open()

    @rule()
    def encode(self) -> None:
        assert self.store.catch_up() == 0

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        found = {each.id: (each.text, each.session, each.status) for each in self.store.all()}
        assert found == {k: (v["text"], v["session"], v["status"]) for k, v in self.model.items()}
        for memory_id, entry in self.model.items():
            assert [each.text for each in self.store.history(memory_id)] == entry["versions"]
        for word in WORDS[:3]:
            hits = {hit.memory.id for hit in self.store.search(word, k=100)}
            with_word = {k for k, v in self.model.items() if v["status"] == "active" and word in str(v["text"]).split()}
            assert with_word <= hits <= {k for k, v in self.model.items() if v["status"] == "active"}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.folder)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=20, stateful_step_count=20, deadline=None)


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with MemStore(tmp_path / "store", clock=Clock()) as store:
        yield store


def test_words_rank_as_our_own_bm25_does(tmp_path: Path) -> None:
    rng = random.Random(3)
    index: BM25[str] = BM25()
    with MemStore(tmp_path, clock=Clock()) as store:
        texts = list({" ".join(rng.choices(WORDS, k=rng.randint(2, 9))) for _ in range(60)})
        for text, added in zip(texts, store.add([NewMemory(text=text) for text in texts]), strict=True):
            index.add(added.id, text)
        for query in ("tea in the garden", "a dog on monday", "piano"):
            ours = {key: score for key, score in index.scores(query).items() if score > 0}
            found = store.search(query, k=1000)
            best = max(ours.values())
            assert {hit.memory.id for hit in found} >= set(ours)
            assert ours[found[0].memory.id] == pytest.approx(best, rel=0.05)


def test_only_what_the_filter_lets_through(store: MemStore) -> None:
    store.add(
        [
            NewMemory(text="tea in paris", agent="a", said_s=100.0, kind="event"),
            NewMemory(text="tea at home", agent="b", said_s=200.0, valid_until_s=5000.0),
            NewMemory(text="tea is over", expires_s=5000.0),
        ]
    )

    def texts(wanted: Filter) -> set[str]:
        return {hit.memory.text for hit in store.search("tea", wanted=wanted)}

    assert texts(Filter()) == {"tea in paris", "tea at home", "tea is over"}
    assert texts(Filter(agent="a")) == texts(Filter(kind="event")) == texts(Filter(until_s=150.0)) == {"tea in paris"}
    assert texts(Filter(since_s=150.0, agent="b")) == {"tea at home"}
    assert texts(Filter(as_of_s=6000.0)) == {"tea in paris", "tea is over"}
    assert texts(Filter(as_of_s=50.0)) == set()
    clock = store._clock
    assert isinstance(clock, Clock)
    clock.now_s = 5001.0
    assert texts(Filter()) == {"tea in paris"}
    assert store.sweep() == 1 and store.stats()["num_archived"] == 1


def test_what_was_made_from_a_memory_becomes_stale(store: MemStore) -> None:
    (first,) = store.add([NewMemory(text="anna lives in paris")])
    (second,) = store.add([NewMemory(text="anna is french", sources=(first.id,))])
    (third,) = store.add([NewMemory(text="anna speaks french", sources=(second.id,))])
    assert store.derived(first.id) == [second.id]
    store.update(first.id, "anna lives in rome", expected_version=1, update_type="conflict")
    assert [store.get(each.id).is_stale for each in (first, second, third)] == [False, True, True]
    assert [each.update_type for each in store.history(first.id)] == ["added", "conflict"]
    with pytest.raises(VersionConflict, match="at version 2, not 1"):
        store.update(first.id, "anna lives in bonn", expected_version=1)
    assert store.restore(first.id, 1).text == "anna lives in paris" and store.get(first.id).version == 3
    receipt = store.delete(first.id)
    assert (receipt.is_hard, receipt.num_records, receipt.num_stale) == (False, 0, 2)
    assert store.search("paris") == [] and store.restore(first.id, 1).status == "active"


def test_a_hard_deletion_leaves_no_byte(tmp_path: Path) -> None:
    folder, secret = tmp_path / "store", "xylophone-qzwv"
    with MemStore(folder, encoder=WordEncoder(), clock=Clock()) as store:
        store.add([NewMemory(text=f"boat {number}") for number in range(50)])
        (added,) = store.add([NewMemory(text=f"the password is {secret}", tags=(secret,))])
        store.update(added.id, f"the new password is {secret}", update_type="feedback")
        (child,) = store.add([NewMemory(text="somebody has a password", sources=(added.id,))])
        store.catch_up()
        assert b"xylophone" in (folder / LOG).read_bytes()
        receipt = store.delete(added.id, hard=True)
        assert receipt.num_records == 2
        assert store.get(child.id).sources == () and store.get(child.id).is_stale
        with pytest.raises(RequestError, match="no memory"):
            store.get(added.id)
        _nowhere(folder, b"xylophone", b"qzwv")
    _nowhere(folder, b"xylophone", b"qzwv")
    for each in folder.glob(f"{INDEX}*"):
        each.unlink()
    with MemStore(folder, encoder=WordEncoder()) as store:
        assert len(list(store.all())) == 51 and store.get(child.id).is_stale
    _nowhere(folder, b"xylophone", b"qzwv")


def _nowhere(folder: Path, *secrets: bytes) -> None:
    for file in folder.rglob("*"):
        for secret in secrets:
            assert secret not in file.read_bytes(), f"{secret!r} is in {file}"


def test_a_torn_log_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    with MemStore(tmp_path, clock=Clock()) as store:
        added = store.add([NewMemory(text=f"boat {number}") for number in range(5)])
    log = tmp_path / LOG
    log.write_bytes(log.read_bytes() + b'{"op":"add","id":"half')
    (tmp_path / INDEX).write_bytes(b"this is no database at all, whatever it says" * 100)
    with MemStore(tmp_path, clock=Clock()) as store:
        assert store.stats()["torn_bytes"] == 22
        assert [each.id for each in store.all()] == [each.id for each in added]


def test_one_writer_at_a_time_and_no_newer_store(tmp_path: Path) -> None:
    with MemStore(tmp_path / "a"), pytest.raises(ConfigError, match="another process"):
        MemStore(tmp_path / "a")
    log = CheckedLog(_folder(tmp_path / "b") / LOG)
    log.append(b'{"op":"store","format":99,"id":"x","generation":0}')
    log.close()
    with pytest.raises(ConfigError, match="format 99, and this version reads up to 1"):
        MemStore(tmp_path / "b")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    class Other(WordEncoder):
        name = "other"

    MemStore(tmp_path, encoder=WordEncoder()).close()
    with pytest.raises(ConfigError, match="vectors of 'words', and the encoder is 'other'"):
        MemStore(tmp_path, encoder=Other())
    MemStore(tmp_path, encoder=WordEncoder()).close()


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (NewMemory(text=" \n"), "is empty"),
        (NewMemory(text="x" * 10_000_000), "10000000 bytes and a memory at most 65536"),
        (NewMemory(text="a\ud800b"), "half a character at 1"),
        (NewMemory(text="a", confidence=1.5), "between 0 and 1"),
        (NewMemory(text="a", said_s=float("nan")), "finite time"),
        (NewMemory(text="a", session="s" * 201), "session has 201 characters"),
        (NewMemory(text="a", sources=("nobody",)), "'nobody' is no memory"),
        (NewMemory(text="a", kind="rumour"), "kind must be one of"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_kept(store: MemStore, memory: NewMemory, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        store.add([NewMemory(text="fine"), memory])
    assert list(store.all()) == []


def test_lifetimes_that_are_over(store: MemStore) -> None:
    with pytest.raises(ExpiredOnArrival):
        store.add([NewMemory(text="a", expires_s=5.0)])
    with pytest.raises(ExpiredOnArrival):
        store.add([replace(NewMemory(text="a"), valid_from_s=9.0, valid_until_s=9.0)])


def test_queries_out_of_range(store: MemStore) -> None:
    for query, k in (("", 1), ("  ", 1), ("x" * 20_000, 1), ("x", 0), ("x", 1001)):
        with pytest.raises(RequestError):
            store.search(query, k=k)
    assert store.search('"; DROP TABLE memories; -- NEAR(a b) * ^ col:') == []


def test_vectors_find_what_words_do_not(tmp_path: Path) -> None:
    class Meaning(WordEncoder):
        name = "meaning"

        def encode(self, texts: Sequence[str]) -> np.ndarray:
            return super().encode([text.replace("canoe", "boat") for text in texts])

    with MemStore(tmp_path, encoder=Meaning(), clock=Clock()) as store:
        store.add([NewMemory(text="a boat"), NewMemory(text="a piano"), NewMemory(text="the dog")])
        assert store.stats()["num_without_vector"] == 3
        assert store.catch_up(2) == 1 and store.catch_up() == 0
        hit = store.search("canoe", k=1)[0]
        assert hit.memory.text == "a boat" and list(hit.parts) == ["meaning"] and hit.words == ()
