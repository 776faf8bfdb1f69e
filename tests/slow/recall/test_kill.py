# SPDX-License-Identifier: Apache-2.0
"""``kill -9`` at random moments of adding, updating and deleting: nothing acknowledged is lost, and the store is consistent."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ziggurat.errors import RequestError
from ziggurat.recall.cube import Filter
from ziggurat.recall.store import MemStore

NUM_KILLS = 100
WRITER = """
import random, sys
from pathlib import Path
from ziggurat.recall.cube import NewMemory
from ziggurat.recall.store import MemStore

rng, store = random.Random(int(sys.argv[2])), MemStore(Path(sys.argv[1]))
mine = [each.id for each in store.all() if each.status == "active"]
print("open", flush=True)
while True:
    kind = rng.random()
    if kind < 0.5 or len(mine) < 3:
        sources = tuple(rng.sample(mine, min(len(mine), 1)))
        added = store.add([NewMemory(text=f"boat {rng.random()}", sources=sources) for _ in range(rng.randint(1, 8))])
        mine += [each.id for each in added]
        print("add", *(each.id for each in added), flush=True)
    elif kind < 0.8:
        chosen = rng.choice(mine)
        memory = store.update(chosen, f"piano {rng.random()}")
        print("update", chosen, memory.version, flush=True)
    else:
        chosen = mine.pop(rng.randrange(len(mine)))
        hard = rng.random() < 0.3
        store.delete(chosen, hard=hard)
        print("erase" if hard else "delete", chosen, flush=True)
"""


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    rng = random.Random(5)
    versions: dict[str, int] = {}
    status: dict[str, str] = {}
    for kill in range(NUM_KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(kill)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(process.pid, signal.SIGKILL)
        lines = process.stdout.read().split("\n")
        process.wait()
        for line in lines[:-1]:  # a line without its end was not acknowledged
            kind, *words = line.split()
            if kind == "add":
                versions |= dict.fromkeys(words, 1)
                status |= dict.fromkeys(words, "active")
            elif kind == "update":
                versions[words[0]] = int(words[1])
            else:
                status[words[0]] = "erased" if kind == "erase" else "deleted"
        with MemStore(tmp_path / "store") as store:
            check(store, versions, status)
    assert len(versions) > NUM_KILLS


def check(store: MemStore, versions: dict[str, int], status: dict[str, str]) -> None:
    """What was acknowledged is there; one operation more may be, which was on its way."""
    found = {each.id: each for each in store.all()}
    num_unasked = 0
    for memory_id, wanted in list(status.items()):
        if wanted == "erased":
            with pytest.raises(RequestError):
                store.get(memory_id)
            continue
        if memory_id not in found:
            status[memory_id] = "erased"
            num_unasked += 1
            continue
        memory = found[memory_id]
        assert memory.status in (wanted, "deleted") and memory.version >= versions.get(memory_id, 1)
        num_unasked += (memory.status != wanted) + (memory.version != versions.get(memory_id, 1))
    # What is in the store now, acknowledged or not, has been written: it may not go any more.
    for memory_id, memory in found.items():
        versions[memory_id], status[memory_id] = memory.version, memory.status
        history = store.history(memory_id)
        assert [each.version for each in history] == list(range(1, memory.version + 1))
        assert history[-1].text == memory.text
        assert all(source in found for source in memory.sources), "half a link"
    assert num_unasked <= 1, "more than the one operation that was on its way"
    words = {hit.memory.id for hit in store.search("boat piano", k=1000)}
    active = {each.id for each in store.all(Filter())}
    assert words <= active and (len(active) > 1000 or words == active)
