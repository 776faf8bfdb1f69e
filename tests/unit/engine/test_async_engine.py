# SPDX-License-Identifier: Apache-2.0
"""The engine thread and its asyncio side, with an engine that has no model."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from pathlib import Path

import pytest

from tests.checkpoints import write_checkpoint
from tests.unit.engine.engine_fakes import FakeEngine
from ziggurat.engine.async_engine import AsyncEngine
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.engine import Engine
from ziggurat.engine.handover import MAX_STEPS_AHEAD
from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import Draining, EngineError, RequestError
from ziggurat.scheduling.sampling import SamplingParams


def request(name: str, *, max_tokens: int = 5, n: int = 1, prompt: tuple[int, ...] = (1, 2)) -> GenerateRequest:
    return GenerateRequest(request_id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=max_tokens, n=n))


async def collect(engine: AsyncEngine, asked: GenerateRequest) -> list[tuple[int, str, str | None]]:
    return [(each.index, each.text, each.finish_reason) async for each in engine.generate(asked)]


def test_streams_are_complete_and_separate() -> None:
    async def body() -> None:
        engine = AsyncEngine(FakeEngine())
        results = await asyncio.gather(*(collect(engine, request(f"r{i}", max_tokens=i + 1)) for i in range(20)))
        for i, outputs in enumerate(results):
            assert [text for _, text, _ in outputs] == [f"{count} " for count in range(1, i + 2)]
            assert outputs[-1][2] == "length"
        both = await collect(engine, request("two", n=2))
        assert sorted(index for index, _, _ in both) == [0] * 5 + [1] * 5
        assert engine.num_open_requests == 0
        await engine.close()
        assert engine.engine.is_closed

    asyncio.run(body())


def test_errors_of_add_reach_the_caller() -> None:
    async def body() -> None:
        engine = AsyncEngine(FakeEngine())
        with pytest.raises(RequestError, match="empty"):
            await collect(engine, request("bad", prompt=()))
        first = await engine.submit(request("twice", max_tokens=10_000))
        with pytest.raises(EngineError, match="in use"):
            await engine.submit(request("twice"))
        await first.aclose()
        assert await engine.drain(5.0)
        await engine.close()

    asyncio.run(body())


def test_closing_a_stream_aborts_its_request() -> None:
    async def body() -> None:
        engine = AsyncEngine(FakeEngine())
        async with contextlib.aclosing(engine.generate(request("long", max_tokens=10_000_000))) as stream:
            assert (await anext(stream)).text == "1 "
        assert await engine.drain(5.0)
        with pytest.raises(Draining):
            await engine.submit(request("late"))
        await engine.close()

    asyncio.run(body())


def test_a_cancelled_reader_aborts_its_request() -> None:
    async def body() -> None:
        engine = AsyncEngine(FakeEngine())
        rng = random.Random(0)
        tasks = [asyncio.create_task(collect(engine, request(f"r{i}", max_tokens=10_000_000))) for i in range(30)]
        for task in tasks:  # at every state: before submit, while it is being added, while it streams
            await asyncio.sleep(rng.choice((0.0, 0.0, 0.002)))
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await engine.drain(5.0)
        assert engine.num_open_requests == 0
        await engine.close()

    asyncio.run(body())


def test_an_engine_that_outruns_its_loop_waits_for_it() -> None:
    """Memory of outputs that nobody has read is bounded, and the loop gets to its other work."""

    async def body() -> None:
        fake = FakeEngine()
        engine = AsyncEngine(fake)
        stream = await engine.submit(request("endless", max_tokens=10_000_000))
        before = fake.num_steps
        time.sleep(0.2)  # the loop itself is blocked
        assert fake.num_steps - before <= MAX_STEPS_AHEAD
        outputs = [await anext(stream) for _ in range(3 * MAX_STEPS_AHEAD)]
        assert [each.num_output_tokens for each in outputs] == list(range(1, 3 * MAX_STEPS_AHEAD + 1))
        await stream.aclose()
        assert await engine.drain(5.0)
        await engine.close()

    asyncio.run(body())


def test_an_engine_thread_survives_its_loop() -> None:
    """A loop that was closed without `close`: the thread must not wait for it for ever."""
    fake = FakeEngine()

    async def body() -> AsyncEngine:
        engine = AsyncEngine(fake)
        await engine.submit(request("orphan", max_tokens=10_000_000))
        return engine

    engine = asyncio.run(body())
    before = fake.num_steps
    deadline = time.monotonic() + 5.0
    while fake.num_steps <= before + 2 * MAX_STEPS_AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fake.num_steps > before + 2 * MAX_STEPS_AHEAD
    assert engine._driver.stop(5.0)


def test_drain_aborts_after_its_timeout() -> None:
    async def body() -> None:
        engine = AsyncEngine(FakeEngine())
        stream = await engine.submit(request("endless", max_tokens=10_000_000))
        assert not await engine.drain(0.05)
        reasons = [each.finish_reason async for each in stream]
        assert reasons[-1] == "abort" and set(reasons[:-1]) == {None}
        await engine.close()

    asyncio.run(body())


def test_a_failing_engine_ends_every_stream_with_an_error() -> None:
    async def body() -> None:
        fake = FakeEngine()
        engine = AsyncEngine(fake)
        streams = [await engine.submit(request(f"r{i}", max_tokens=10_000_000, n=2)) for i in range(3)]
        fake.fails_at = fake.num_steps
        for stream in streams:
            last = [each async for each in stream][-2:]
            assert [each.finish_reason for each in last] == ["error", "error"]
            assert "a wire came loose" in (last[0].error or "")
        with pytest.raises(EngineError, match="wire"):
            await engine.submit(request("later"))
        assert "wire" in (engine.failure or "")
        await engine.close()

    asyncio.run(body())


def test_closing_ends_open_streams() -> None:
    async def body() -> None:
        engine = AsyncEngine(FakeEngine())
        stream = await engine.submit(request("open", max_tokens=10_000_000))
        await engine.close()
        outputs = [each async for each in stream]
        assert outputs[-1].finish_reason == "error"

    asyncio.run(body())


def test_an_idle_engine_does_not_step() -> None:
    async def body() -> None:
        fake = FakeEngine()
        engine = AsyncEngine(fake)
        await collect(engine, request("one", max_tokens=3))
        before = fake.num_steps
        await asyncio.sleep(0.05)
        assert fake.num_steps == before
        assert (await engine.stats())["steps_total"] == before and (await engine.memory()) == {"open": 0}
        await engine.close()

    asyncio.run(body())


def test_a_real_engine_gives_everything_back_after_disconnects(tmp_path: Path) -> None:
    """Readers that leave at random moments; all others get the text that a lone request gets."""

    async def body() -> None:
        real = Engine.load(EngineConfig(model=str(write_checkpoint(tmp_path)), memory="48MiB", max_num_seqs=4))
        ledger, engine, rng = real.resources.ledger, AsyncEngine(real), random.Random(1)

        async def read(number: int, patience: int) -> str:
            params = SamplingParams(max_tokens=20, seed=number, ignore_eos=True)
            asked = GenerateRequest(request_id=f"r{number}/{patience}", prompt_ids=[5, 6, 7 + number], params=params)
            text = ""
            async with contextlib.aclosing(engine.generate(asked)) as stream:
                async for each in stream:
                    text += each.text
                    patience -= 1
                    if patience == 0:
                        return "left"
            return text

        alone = [await read(number, 1000) for number in range(8)]
        tasks = [asyncio.create_task(read(number, patience)) for number in range(8) for patience in (999, 1, 7)]
        for task in rng.sample(tasks, 6):
            await asyncio.sleep(0.001)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        whole = [(number, text) for number, text in enumerate(results[::3]) if isinstance(text, str)]
        assert whole and all(text == alone[number] for number, text in whole)
        assert await engine.drain(10.0)
        await engine.close()
        assert ledger.used() == 0

    asyncio.run(body())
