# SPDX-License-Identifier: Apache-2.0
"""Prompt log-probabilities and embeddings: against transformers, the same bits whatever the chunks, inside the planned workspace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from tests.checkpoints import VOCAB_SIZE, write_checkpoint
from tests.preempting import Preempting
from tests.unit.engine.rig import Rig
from tests.unit.engine.settings import FASTEST, Setting, load
from ziggurat.engine.engine import Engine
from ziggurat.engine.scores import ENTRY_BYTES, score_bytes
from ziggurat.engine.types import EmbedRequest, GenerateOutput, GenerateRequest
from ziggurat.errors import EngineError, QueueFull, RequestError
from ziggurat.kernels.ops import load_native
from ziggurat.programs.plan import Limits
from ziggurat.scheduling.protocol import Batch, BatchItem, ReadRequest
from ziggurat.scheduling.sampling import SamplingParams

MAX_ERROR = 1e-4
TOKENS = torch.randint(2, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(4)).tolist()
BACKENDS = ["torch", *(["native"] if load_native() is not None else [])]
SCORE = SamplingParams(prompt_logprobs=3, max_tokens=2, temperature=0, ignore_eos=True)
# Pieces of one row, of a part of the chunk and of all of it; chunks that end anywhere; a pool that preempts.
SETTINGS = {
    "one piece": Setting(backend=FASTEST, max_num_seqs=80, max_num_batched_tokens=128),
    "pieces": Setting(backend=FASTEST, max_num_seqs=8, max_num_batched_tokens=128),
    "one row": Setting(backend=FASTEST, max_num_seqs=1, max_num_batched_tokens=64),
    "chunks": Setting(backend=FASTEST, max_num_seqs=3, max_num_batched_tokens=7),
    "cached": Setting(backend=FASTEST, has_prefix_cache=True, max_num_batched_tokens=48),
    "preempts": Setting(backend=FASTEST, spare_blocks=2, has_prefix_cache=True, max_num_batched_tokens=24),
}


@pytest.fixture(scope="module", params=["llama", "gemma2", "mixtral"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """A checkpoint with transformers' log-probabilities [T, vocab] and hidden states after the final norm [T, hidden] of TOKENS."""
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param, with_tokenizer=False)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        logits = oracle.eval()(torch.tensor([TOKENS])).logits[0]
        hidden = oracle.model(torch.tensor([TOKENS])).last_hidden_state[0]
    return folder, logits.double().log_softmax(-1), hidden.double()


def drain(engine: Engine) -> list[GenerateOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def answers(engine: Engine) -> dict[str, object]:
    """All kinds of requests at once, and a prompt that was there before; what was read, by request."""
    for name, size in (("before", 60), ("", 70), ("short", 1)):
        engine.add(GenerateRequest(request_id=f"s{name}", prompt_ids=TOKENS[:size], params=SCORE))
        for pooling in ("mean", "last"):
            engine.add(EmbedRequest(request_id=f"{pooling}{name}", prompt_ids=TOKENS[:size], pooling=pooling))
        if name == "before":
            drain(engine)
    outputs = drain(engine)
    assert all(output.error is None for output in outputs)
    found: dict[str, object] = {f"{o.request_id} embedding": o.embedding for o in outputs if o.embedding is not None}
    for output in outputs:
        if output.prompt_logprobs:
            assert output.request_id not in found, "delivered twice"
            found[output.request_id] = output.prompt_logprobs
    return found


def test_against_transformers_and_the_same_bits_in_every_setting(
    model: tuple[Path, torch.Tensor, torch.Tensor],
) -> None:
    folder, logprobs, hidden = model
    first: dict[str, object] | None = None
    for name, setting in SETTINGS.items():
        with load(folder, setting) as engine:
            if name == "preempts":
                planner = Preempting(engine.core.planner, times=40)
                engine.core.planner = planner
            found = answers(engine)
            if name == "preempts":
                assert any(0 < computed < 70 for _, computed in planner.at)
        if first is None:
            first = found
        assert found == first, f"{name}: other bits than in {next(iter(SETTINGS))!r}"
    assert first is not None
    entries: list = first["s"]  # type: ignore[type-arg, assignment]
    assert [entry.token_id for entry in entries] == TOKENS[1:]
    for position, entry in enumerate(entries):
        row = logprobs[position]
        assert abs(entry.logprob - float(row[entry.token_id])) <= MAX_ERROR
        # Soft caps make near ties: a rank may differ by those that are closer than the error.
        own = row[entry.token_id]
        assert int((row > own + MAX_ERROR).sum()) < entry.rank <= 1 + int((row > own - MAX_ERROR).sum())
        for (token_id, logprob), best in zip(entry.top_logprobs, row.topk(3).values, strict=True):
            assert abs(logprob - float(row[token_id])) <= MAX_ERROR and abs(logprob - float(best)) <= MAX_ERROR
    assert "sshort" not in first  # one token: nothing to score
    for pooling, vector in (("mean", hidden.mean(0)), ("last", hidden[-1])):
        expected = vector / vector.norm()
        assert float((torch.tensor(first[f"{pooling} embedding"]) - expected).abs().max()) <= MAX_ERROR
    assert first["meanshort embedding"] == first["lastshort embedding"]


def test_embeddings_as_they_are(model: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    folder, _, hidden = model
    with load(folder, SETTINGS["chunks"]) as engine:
        engine.add(EmbedRequest(request_id="a", prompt_ids=TOKENS, normalize=False))
        (output,) = drain(engine)
    expected = hidden.mean(0)
    assert float((torch.tensor(output.embedding) - expected).abs().max() / expected.abs().max()) <= MAX_ERROR
    assert (output.finish_reason, output.num_prompt_tokens, output.num_output_tokens) == ("stop", 70, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), with_tokenizer=False)


def reading(item: BatchItem, kind: str) -> BatchItem:
    num_rows = len(item.token_ids) - 1
    read = ReadRequest(kind=kind, first=0, num_rows=num_rows, next_ids=item.token_ids[1:])  # type: ignore[arg-type]
    return BatchItem(**{name: getattr(item, name) for name in item.__slots__} | {"read": read, "sample": None})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_long_prompt_takes_time_and_no_memory(folder: Path, backend: str) -> None:
    """vllm#5907: prompt log-probabilities once took a row of logits per prompt token. Here the Plan's workspace is all there is."""
    rig = Rig(
        folder,
        backend=backend,
        limits=Limits(max_model_len=128, max_num_seqs=2, max_num_batched_tokens=128, block_size=8),
    )
    sizes: list[int] = []
    head = rig.executor.rows

    def watched(rows: list[int], *, is_hidden: bool) -> np.ndarray:
        values = head(rows, is_hidden=is_hidden)
        low, high = rig.memory.workspace.address, rig.memory.workspace.address + rig.plan.workspace_bytes
        start = values.__array_interface__["data"][0]
        assert low <= start and start + values.nbytes <= high, "rows outside the workspace"
        sizes.append(len(rows))
        return values

    rig.executor.rows = watched  # type: ignore[method-assign, assignment]
    for number, kind in enumerate(("logprobs", "mean")):
        item = reading(rig.item(kind, TOKENS, 0, params=None), kind)
        result = rig.executor.run(Batch(step=number, copies=(), items=(item,)))
        assert not result.errors
    assert max(sizes) == 2 and sum(sizes) == 2 * 69


def test_broken_hidden_states_end_their_sequence_only(folder: Path) -> None:
    rig = Rig(folder)
    head = rig.executor.rows

    def broken(rows: list[int], *, is_hidden: bool) -> np.ndarray:
        values = head(rows, is_hidden=is_hidden).copy()
        values[[row < 10 for row in rows]] = np.nan
        return values

    rig.executor.rows = broken  # type: ignore[method-assign, assignment]
    for kind in ("logprobs", "mean"):
        items = [reading(rig.item(name, TOKENS[:10], 0, params=None), kind) for name in ("bad", "good")]
        result = rig.executor.run(Batch(step=0, copies=(), items=tuple(items)))
        assert list(result.errors) == ["bad"] and "NaN" in result.errors["bad"]
        assert "good" in result.prompt_logprobs or "good" in result.pooled


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="pooling must be 'mean' or 'last', got 'max'"):
        EmbedRequest(request_id="a", prompt_ids=[5], pooling="max")  # type: ignore[arg-type]
    with load(folder, Setting()) as engine:
        for prompt, message in (([], "empty"), ([300], "not in the vocabulary"), ([5] * 97, "context")):
            with pytest.raises((RequestError, EngineError), match=f"(?i){message}"):
                engine.add(EmbedRequest(request_id="a", prompt_ids=prompt))
        assert not engine.has_work


def test_log_probabilities_of_many_prompts_stay_within_the_reserve(folder: Path) -> None:
    with load(folder, SETTINGS["pieces"]) as engine:
        size = score_bytes(GenerateRequest(request_id="s", prompt_ids=TOKENS, params=SCORE))
        assert size == 70 * 4 * ENTRY_BYTES <= engine.resources.reserve_bytes() // 2 == engine.scores.max_bytes
        engine.scores.max_bytes = 2 * size
        for name in "ab":
            engine.add(GenerateRequest(request_id=name, prompt_ids=TOKENS, params=SCORE))
        with pytest.raises(QueueFull, match="prompts that are being scored hold"):
            engine.add(GenerateRequest(request_id="c", prompt_ids=TOKENS, params=SCORE))
        with pytest.raises(RequestError, match="in use"):
            engine.add(GenerateRequest(request_id="a", prompt_ids=[5], params=SamplingParams()))
        engine.abort("a")
        drain(engine)
        assert engine.scores.held_bytes == 0
        with pytest.raises(RequestError, match="not in the vocabulary"):
            engine.add(GenerateRequest(request_id="d", prompt_ids=[300], params=SCORE))
        with pytest.raises(RequestError, match="context"):
            engine.add(GenerateRequest(request_id="d", prompt_ids=[5] * 97, params=SCORE))
        assert engine.scores.held_bytes == 0
        engine.scores.max_bytes = size - 1
        with pytest.raises(RequestError, match="ask for fewer alternatives") as caught:
            engine.add(GenerateRequest(request_id="c", prompt_ids=TOKENS, params=SCORE))
        assert caught.value.param == "prompt_logprobs" and not isinstance(caught.value, QueueFull)
