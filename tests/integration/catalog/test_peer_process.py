# SPDX-License-Identifier: Apache-2.0
"""Peers in processes of their own: one that dies, hangs or refuses is a row; and the whole verb on a tiny shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_peers import TINY, CannotOpen, Dies, Hangs, Missing, Works
from ziggurat.catalog.peers.measure import measure_peers
from ziggurat.catalog.peers.process import PeerFailed, PeerProcess
from ziggurat.catalog.peers.registry import Job
from ziggurat.catalog.peers.work import ITEMS, Lengths
from ziggurat.catalog.peers.ziggurat_peer import ZigguratFp32
from ziggurat.cli.bench import peers as verb

ROOT = Path(__file__).parents[3]
JOB = Job(folder=Path("nowhere"), threads=1, max_num_seqs=32, max_model_len=64, max_kv_tokens=256)
LENGTHS = Lengths(
    prefill_tokens=24,
    decode_prompt_tokens=4,
    decode_output_tokens=8,
    num_clients=3,
    prefix_tokens=32,
    suffix_tokens=2,
    shared_output_tokens=4,
    num_repeats=1,
)


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_whatever_a_peer_does_it_is_a_row() -> None:
    rows = measure_peers([Dies, Works, Missing, CannotOpen], JOB, LENGTHS, vocab_size=50, progress=lambda *_: None)
    assert [(row["engine"], row["status"]) for row in rows] == [
        ("dies", "failed"),
        ("works", "measured"),
        ("missing", "absent"),
        ("cannot-open", "failed"),
    ]
    assert rows[0]["note"] == "the process died with code 4: illegal instruction"
    assert rows[0]["decode_b1"] is not None and rows[0]["decode_b8"] is None
    assert rows[3]["note"] == "ValueError: no kernels for 1 threads"
    assert all(rows[1][item] > 0 for item in ITEMS) and rows[1]["peak_rss_bytes"] > 1 << 20


def test_one_that_hangs_is_ended() -> None:
    with PeerProcess(Hangs, JOB, timeout_s=2.0) as peer:
        peer.open()
        with pytest.raises(PeerFailed, match="no answer within 2 s"):
            peer.generate([[1]], 1)
        with pytest.raises(PeerFailed):
            peer.peak_rss_bytes()


def test_the_whole_of_it_on_a_tiny_shape() -> None:
    result = verb.measure(TINY, [ZigguratFp32, Missing], LENGTHS, threads=1)
    ours, missing = result["rows"]
    assert ours["status"] == "measured", ours["note"]
    assert ours["prefill_512"] > 0 and ours["shared_prefix_32x1000"] > 0
    assert missing["status"] == "absent"
    assert result["machine"]["read_bandwidth_bytes_per_s"] > 1e6 and result["machine"]["fp32_flop_per_s"] > 1e6
    assert "ziggurat" in verb.as_text(result | {"machine": result["machine"] | {"cpu": "C", "commit": "abc"}})
