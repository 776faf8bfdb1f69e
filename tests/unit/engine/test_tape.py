# SPDX-License-Identifier: Apache-2.0
"""Recorded kernel calls: a replayed step computes what a checked one does, and old tapes go."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.unit.engine.rig import Rig
from ziggurat.engine.tape import TapeShelf
from ziggurat.kernels.native import NativeOps
from ziggurat.kernels.ops import load_native


class FakeTape:
    def __init__(self) -> None:
        self.num_plays = 0

    def play(self) -> None:
        self.num_plays += 1


def test_the_shelf_keeps_what_was_played_last() -> None:
    shelf, tapes = TapeShelf(2), {key: FakeTape() for key in "abc"}
    for key, tape in tapes.items():
        shelf.keep(key, tape)
        assert shelf.play("a")
    assert [shelf.play(key) for key in "abc"] == [True, False, True]
    assert [tape.num_plays for tape in tapes.values()] == [4, 0, 1]


@pytest.mark.skipif(load_native() is None, reason="only native calls are recorded")
def test_a_tape_keeps_the_calls_of_its_thread_while_it_runs() -> None:
    library = load_native()
    assert library is not None
    ops, x, delta = NativeOps(library), torch.zeros(2, 4), torch.ones(2, 4)
    other = torch.zeros(2, 4)
    ops.add(x, delta)
    tape = library.Tape()
    with tape:
        ops.add(x, delta)
        thread = threading.Thread(target=ops.add, args=(other, delta))
        thread.start()
        thread.join()
    ops.add(x, delta)
    assert len(tape) == 1
    tape.play()
    assert torch.equal(x, torch.full((2, 4), 4.0)) and torch.equal(other, delta)
    with pytest.raises(RuntimeError, match="stop"), tape:
        raise RuntimeError("stop")
    ops.add(x, delta)
    assert len(tape) == 1


@pytest.mark.skipif(load_native() is None, reason="only native calls are recorded")
def test_replayed_decodes_are_the_same_as_checked_ones(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two rigs over one checkpoint: one replays from its second decode on, the other is made to forget its tapes."""
    folder = write_checkpoint(tmp_path_factory.mktemp("tape"), "qwen2_window", with_tokenizer=False)
    replaying, checking = Rig(folder, backend="native"), Rig(folder, backend="native")
    prompts = {"a": list(range(5, 40)), "b": list(range(50, 60))}
    for rig in (replaying, checking):
        rig.logits(*(rig.item(name, ids, 0) for name, ids in prompts.items()))
    for step in range(12):
        names = ["a", "b"] if step % 3 else ["b"]
        rows = []
        for rig in (replaying, checking):
            starts = {name: len(prompts[name]) + step for name in names}
            rows.append(rig.logits(*(rig.item(name, [7 + step], start) for name, start in starts.items())))
        checking.executor._tapes = TapeShelf(4)
        assert torch.equal(*rows)
