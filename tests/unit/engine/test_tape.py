# SPDX-License-Identifier: Apache-2.0
"""Recorded kernel calls: a replayed step computes what a checked one does, and old tapes go."""

from __future__ import annotations

import types

import pytest
import torch

from tests.checkpoints import write_checkpoint
from tests.unit.engine.rig import Rig
from ziggurat.engine.tape import CallRecorder, TapeShelf
from ziggurat.kernels.ops import load_native


def test_calls_are_kept_only_while_a_tape_runs() -> None:
    seen: list[int] = []
    library = types.ModuleType("library")
    library.add = lambda a, b: seen.append(a + b)  # type: ignore[attr-defined]
    recorder = CallRecorder(library)
    recorder.add(1, 2)
    recorder.tape = tape = []
    recorder.add(3, 4)
    recorder.tape = None
    recorder.add(5, 6)
    assert len(tape) == 1 and seen == [3, 7, 11]
    shelf = TapeShelf(2)
    for key in "abc":
        shelf.keep(key, tape)
        assert shelf.play("a")
    assert seen == [3, 7, 11, 7, 7, 7]
    assert [shelf.play(key) for key in "abc"] == [True, False, True]


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
