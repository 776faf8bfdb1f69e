# SPDX-License-Identifier: Apache-2.0
"""The peers that are installed with the tests do the same work: the same tokens from the same folder."""

from __future__ import annotations

from pathlib import Path

from tests.fake_peers import TINY
from ziggurat.catalog.peers.registry import Job
from ziggurat.catalog.peers.shapes import write_checkpoint
from ziggurat.catalog.peers.transformers_peer import TransformersFp32
from ziggurat.catalog.peers.ziggurat_peer import ZigguratBf16, ZigguratFp32, ZigguratQ4, ZigguratQ8


def test_the_same_tokens_in_fp32_and_as_many_in_other_formats(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    job = Job(folder=tmp_path, threads=1, max_num_seqs=4, max_model_len=64, max_kv_tokens=256)
    prompts = [[5, 9, 200, 31, 8], [77, 3, 4, 150, 90], [12, 13, 14, 15, 16]]
    outputs = []
    for peer in (ZigguratFp32(), TransformersFp32(), ZigguratBf16(), ZigguratQ8(), ZigguratQ4()):
        assert peer.absent() is None
        peer.open(job)
        outputs.append(peer.generate(prompts, 6))
    assert outputs[0] == outputs[1]
    for other in outputs[2:]:
        assert [len(each) for each in other] == [6, 6, 6]
