# SPDX-License-Identifier: Apache-2.0
"""The rig of vattention with a real arena: torch's attention over slots gives what it gives over plain tensors."""

from __future__ import annotations

import torch

from ziggurat.catalog.virtual_rig import GROUP_TOKENS, HEAD_DIM, HEADS, KV_HEADS, VirtualRig, VirtualSpace, attend


def test_torch_attends_over_a_slot_as_over_a_tensor() -> None:
    space = VirtualSpace(8, layers=1)
    generator = torch.Generator().manual_seed(3)
    for name in ("other", "s"):
        space.store.open(name, [len(name)])
        space.store.reserve(name, GROUP_TOKENS)
        space.store.commit(name, [len(name)] * GROUP_TOKENS)
    space.store.reserve("s", 100)  # blocks 0 and 2 and on: apart in memory, side by side in the slot
    space.mapper.before_step()
    keys, values = space.planes("s")
    fresh = torch.randn(2, 150, KV_HEADS, HEAD_DIM, generator=generator)
    keys[:150], values[:150] = fresh[0], fresh[1]
    query = torch.randn(1, HEADS, 4, HEAD_DIM, generator=generator)
    got = attend(query, keys, values, 150, None)
    assert torch.equal(got, attend(query, fresh[0].contiguous(), fresh[1].contiguous(), 150, None))
    assert space.store.view("s").tables == ((1, 2, 3),)
    del keys, values
    space.close()


def test_the_rig_measures_what_it_says() -> None:
    rig = VirtualRig()
    assert all(rig.prefill_seconds(space, 512) > 0 for space in ("static", "gathered", "virtual"))
    assert all(
        len(rig.step_seconds(mapping, num_seqs=2, context=60, num_steps=8)) == 8
        for mapping in ("before", "async", "sync")
    )
    committed, paged, slack = rig.committed([10, 100])
    assert committed - paged <= slack
    assert rig.shared_bytes(3, 2) == (5 * 2 * 64 * 1024, 5 * 2 * 64 * 1024)
