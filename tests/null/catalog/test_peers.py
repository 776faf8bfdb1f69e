# SPDX-License-Identifier: Apache-2.0
"""``bench peers`` without processes: turns, medians, who fails and who is absent, the protocol, the table."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fake_peers import CannotOpen, Missing, SaysTooMuch, Works
from ziggurat.catalog.peers.child import serve
from ziggurat.catalog.peers.measure import measure_peers, measure_sessions
from ziggurat.catalog.peers.process import PeerFailed
from ziggurat.catalog.peers.registry import Job, all_peers, not_installed
from ziggurat.catalog.peers.shapes import SHAPES
from ziggurat.catalog.peers.work import ITEMS, QUICK, Lengths, Sampler, decode, prefill, shared_prefix
from ziggurat.cli.bench import peers as verb
from ziggurat.cli.main import main
from ziggurat.errors import ConfigError
from ziggurat.programs.architectures import build_program

SMALL = Lengths(
    prefill_tokens=8,
    decode_prompt_tokens=4,
    decode_output_tokens=10,
    num_clients=3,
    prefix_tokens=6,
    suffix_tokens=2,
    shared_output_tokens=5,
    num_repeats=3,
)
JOB = Job(folder=Path("nowhere"), threads=1, max_num_seqs=32, max_model_len=64, max_kv_tokens=256)


class Timed:
    """A session whose seconds follow from a speed; fails at a given call."""

    format = "fp32"

    def __init__(self, engine: str, log: list[str], *, slowness: Sequence[float] = (1.0,), fails_at: int = -1) -> None:
        self.engine, self._log, self._slowness, self._fails_at = engine, log, slowness, fails_at
        self.calls: list[tuple[list[list[int]], int]] = []

    def open(self) -> float:
        return 0.0

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        if len(self.calls) == self._fails_at:
            raise PeerFailed("it broke")
        self.calls.append(([list(prompt) for prompt in prompts], num_tokens))
        self._log.append(self.engine)
        slowness = self._slowness[len(self.calls) % len(self._slowness)]
        return slowness * (sum(map(len, prompts)) / 1000 + len(prompts) * num_tokens / 100)

    def peak_rss_bytes(self) -> int:
        return 1 << 20


def sampler(seed: int = 0) -> Sampler:
    return Sampler(lengths=SMALL, vocab_size=100, rng=random.Random(seed))


def silent(num_done: int, num_steps: int, what: str) -> None:
    assert 0 <= num_done <= num_steps


def test_decode_leaves_the_prompt_out() -> None:
    session = Timed("a", [])
    assert decode(sampler(), session.generate, batch=4) == pytest.approx(100.0)
    assert [(len(prompts), tokens) for prompts, tokens in session.calls] == [(4, 1), (4, 11)]
    assert session.calls[0][0] != session.calls[1][0], "the same prompts would find their KV cached"


def test_a_difference_that_is_not_positive_is_no_sample() -> None:
    times_s = iter((2.0, 1.0))
    assert decode(sampler(), lambda prompts, num_tokens: next(times_s), batch=1) is None


def test_prefill_counts_prompt_tokens_and_clients_share_a_prefix() -> None:
    session = Timed("a", [])
    assert prefill(sampler(), session.generate) == pytest.approx(8 / (8 / 1000 + 1 / 100))
    assert shared_prefix(sampler(), session.generate) == pytest.approx(15 / (24 / 1000 + 15 / 100))
    prompts = session.calls[1][0]
    assert len({tuple(prompt[:6]) for prompt in prompts}) == 1
    assert len({tuple(prompt) for prompt in prompts}) == 3


def test_peers_take_turns_on_the_same_prompts_and_rows_are_medians() -> None:
    log: list[str] = []
    # Neither quick nor slow runs move the median of three.
    steady, shaken = Timed("steady", log), Timed("shaken", log, slowness=(1.0, 1.0, 50.0, 1.0, 1.0))
    rows = measure_sessions([steady, shaken], SMALL, vocab_size=100, progress=silent)
    assert steady.calls == shaken.calls
    assert log[2:8] == ["steady", "shaken", "shaken", "steady", "steady", "shaken"]
    assert all(len(rows[0]["samples"][item]) == 3 for item in ITEMS)
    assert rows[1]["prefill_512"] == pytest.approx(rows[0]["prefill_512"])
    assert rows[0]["decode_b32"] == pytest.approx(100.0)
    assert rows[0]["peak_rss_bytes"] == 1 << 20 and rows[0]["status"] == "measured"


def test_one_that_fails_keeps_what_it_has_and_stops_nobody() -> None:
    log: list[str] = []
    rows = measure_sessions(
        [Timed("breaks", log, fails_at=4), Timed("works", log)], SMALL, vocab_size=100, progress=silent
    )
    assert (rows[0]["status"], rows[0]["note"]) == ("failed", "it broke")
    assert rows[0]["prefill_512"] is not None and rows[0]["decode_b32"] is None and rows[0]["peak_rss_bytes"] is None
    assert all(rows[1][item] is not None for item in ITEMS)


def test_absent_engines_are_rows() -> None:
    (row,) = measure_peers([Missing], JOB, SMALL, vocab_size=100, progress=silent)
    assert (row["engine"], row["status"], row["note"]) == ("missing", "absent", "not installed: missing")
    assert {row[item] for item in ITEMS} == {None}


def test_the_list_has_ours_first_and_names_what_is_missing() -> None:
    names = [f"{peer.engine}:{peer.format}" for peer in all_peers()]
    assert names[:4] == ["ziggurat:fp32", "ziggurat:bf16", "ziggurat:q4_0", "ziggurat:q8_0"]
    llama = {f"llama-cpp-python:{name}" for name in ("f16", "q8_0", "q4_0")}
    assert set(names[4:]) == {"transformers:fp32", "openvino:fp32", "vllm:fp32", *llama}
    assert not_installed("json", "no_such_package") == "not installed: no_such_package"


def test_answers_are_json_lines() -> None:
    job = {"folder": "f", "threads": 1, "max_num_seqs": 1, "max_model_len": 8, "max_kv_tokens": 8}
    answers = {}
    for peer in (Works, SaysTooMuch, CannotOpen):
        requests = [
            {"op": "open", "peer": f"tests.fake_peers:{peer.__name__}", "job": job},
            {"op": "generate", "prompts": [[1, 2]], "num_tokens": 2},
            {"op": "peak_rss"},
        ]
        out = io.StringIO()
        serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), out)
        answers[peer] = [json.loads(line) for line in out.getvalue().splitlines()]
    assert answers[Works][1]["seconds"] > 0 and answers[Works][2]["peak_rss_bytes"] > 1 << 20
    assert answers[SaysTooMuch][1] == {"error": "RuntimeError: asked for 1 x 2 tokens, got [3]"}
    assert answers[CannotOpen][0] == {"error": "ValueError: no kernels for 1 threads"}


def test_the_shapes_are_the_published_ones() -> None:
    sizes = {}
    for name, config in SHAPES.items():
        specs = [spec for spec in build_program(config).weights.values() if spec.tied_to is None]
        sizes[name] = sum(spec.shape[0] * (spec.shape[1] if len(spec.shape) > 1 else 1) for spec in specs)
    assert sizes == {"135m": 134_515_008, "1.2b": 1_235_814_400}


def test_quick_shortens_and_changes_no_prompt() -> None:
    full = Lengths()
    assert (QUICK.prefill_tokens, QUICK.prefix_tokens, QUICK.num_clients) == (512, 1000, 32)
    assert QUICK.num_repeats < full.num_repeats and QUICK.shared_output_tokens < full.shared_output_tokens == 128
    assert full.num_repeats >= 5 and full.suffix_tokens == 32


def test_the_table_names_who_is_not_in_it(tmp_path: Path) -> None:
    rows = measure_sessions([Timed("works", [])], SMALL, vocab_size=100, progress=silent)
    rows += measure_peers([Missing], JOB, SMALL, vocab_size=100, progress=silent)
    machine = {"cpu": "C", "threads": 2, "commit": "abc", "read_bandwidth_bytes_per_s": 1.5e10, "fp32_flop_per_s": 2e11}
    result = {"rows": rows, "machine": machine, "lengths": {"num_repeats": 3}}
    lines = verb.as_text(result).splitlines()
    assert lines[0].split() == ["engine", "format", *ITEMS, "peak", "RSS"]
    assert lines[1].split()[:2] == ["works", "fp32"] and lines[2].split()[2:] == ["-"] * 6
    assert "2 threads, reads 15.0 GB/s, 200 GFLOP/s" in lines[4]
    assert lines[5] == "missing fp32: absent, not installed: missing"


def test_bad_options_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        verb.PeersOptions(threads=0)
    monkeypatch.setattr(verb, "not_installed", lambda *names: "not installed: matplotlib")
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        verb.PeersOptions(plot=Path("rows.png"))
    assert main(["bench", "peers", "--shape", "136m"]) == 2
    assert "135m" in capsys.readouterr().err
