# SPDX-License-Identifier: Apache-2.0
"""Station 4 of ten: add, step, abort. Puts a model, its memory, a planner and the core together, and turns tokens into text."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ziggurat import kernels
from ziggurat.clock import Clock, WallClock
from ziggurat.engine.adapters import AdapterPool
from ziggurat.engine.assembly import make_core, make_sessions, make_store, model_info
from ziggurat.engine.assets import load_assets
from ziggurat.engine.budget import change_budget
from ziggurat.engine.calibrate import calibrate_engine
from ziggurat.engine.checks import check_request
from ziggurat.engine.config import EngineConfig
from ziggurat.engine.drift import DriftWatch
from ziggurat.engine.embedding import finish_embedding
from ziggurat.engine.executor import Memory, PlanExecutor
from ziggurat.engine.output import TextOutput
from ziggurat.engine.report import memory_report, stats_report
from ziggurat.engine.resources import Resources
from ziggurat.engine.scores import ScoreBudget
from ziggurat.engine.sizing import ModelSource, open_model, size
from ziggurat.engine.streaming import make_stream
from ziggurat.engine.swapping import learn_costs, make_resources
from ziggurat.engine.types import BudgetChange, EmbedRequest, FinishReason, GenerateOutput, GenerateRequest
from ziggurat.engine.warmup import warm_up
from ziggurat.engine.weights import Progress, fill_weights, weight_views
from ziggurat.errors import ConfigError, EngineError
from ziggurat.kernels import KernelOps
from ziggurat.memory.fit import Fit
from ziggurat.memory.machine import Machine, default_budget, limit_heap_slack
from ziggurat.scheduling.outputs import Admission, Finished, NewToken
from ziggurat.scheduling.protocol import SampledToken
from ziggurat.units import parse_size

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Continuation:
    """The outside of one sequence: its text and its totals."""

    request: GenerateRequest | EmbedRequest
    index: int
    text: TextOutput
    arrival_s: float
    num_cached_tokens: int = 0
    queue_s: float | None = None
    num_output_tokens: int = 0
    prompt_logprobs: list[SampledToken] = field(default_factory=list)
    output_ids: list[int] = field(default_factory=list)  # of a session's request only


class Engine:
    """A loaded model. See `EngineInterface` for the contract of add, step and abort. Owns its memory until `close`.

    Use `Engine.load`; the constructor takes parts that have been made already.

    Attributes:
        config: what was asked.
        fit: what was derived.
        core, store, executor, resources: stations 5 to 8 and the ledger.
    """

    def __init__(
        self, config: EngineConfig, source: ModelSource, resources: Resources, ops: KernelOps, clock: Clock
    ) -> None:
        self.config = config
        self.fit: Fit = resources.fit
        self.resources = resources
        self.machine = Machine()
        self._clock = clock
        assets = load_assets(source)
        self.tokenizer, self.chat_template = assets.tokenizer, assets.template
        self.model = model_info(config, source, resources.fit, assets.defaults)
        self.layers = make_stream(config, source, resources)
        self.store = make_store(config, resources)
        self.adapters = AdapterPool(self.fit.plan, self.store, resources.pools, self._set_aside)
        memory = Memory(
            weights=weight_views(self.fit.plan, resources.weights),
            workspace=resources.workspace,
            tables=resources.tables,
            pools=resources.pools,
            swap=resources.swap,
            layers=self.layers,
            adapters=self.adapters,
        )
        self.executor = PlanExecutor(self.fit.plan, memory, ops)
        self.core = make_core(config, self.fit, self.model, self.store, self.executor)
        self.sessions = make_sessions(self, source)
        self.drift = DriftWatch(resources, self.store, self.machine, self._set_aside)
        self.scores = ScoreBudget(resources.reserve_bytes() // 2)
        self.num_steps = 0
        self.busy_s = 0.0
        self._continuations: dict[str, _Continuation] = {}
        self._pending: list[GenerateOutput] = []
        self._is_open = True

    @classmethod
    def load(cls, config: EngineConfig, *, clock: Clock | None = None, progress: Progress | None = None) -> Engine:
        """Find, size and load a model. What was taken is given back if anything fails, Ctrl-C included.

        Args:
            progress: called while weights are read, (text, bytes done, bytes in total); raising from it ends the loading.

        Raises:
            ModelError, UnsupportedFeature: the checkpoint cannot be read as it is.
            DoesNotFit: the budget is too small; names the smallest change that would do.
            ConfigError: a setting contradicts the model or the machine.
        """
        clock = clock or WallClock()
        source = open_model(config, may_download=True)
        machine = Machine()
        ops = kernels.select(config.kernels, num_threads=config.threads or machine.usable_cores())
        limit_heap_slack()
        warm_up(ops)
        baseline_bytes = machine.process_memory().charged_bytes
        budget = default_budget(baseline_bytes, machine) if config.memory is None else parse_size(config.memory)
        with ExitStack() as on_error:
            resources = make_resources(config, size(config, source, budget), baseline_bytes, clock)
            on_error.callback(resources.close)
            # Small parts first: a damaged tokenizer or adapter is found before gigabytes have been read.
            engine = cls(config, source, resources, ops, clock)
            for name, folder in config.adapters.items():
                engine.adapters.register(name, folder)
            if engine.layers is None:
                fill_weights(config, source, resources, ops, progress)
            else:
                on_error.callback(engine.layers.close)
                engine.layers.fill(ops, progress)
            if config.is_calibrated:
                calibrate_engine(engine)
            on_error.pop_all()
        return engine

    # ---- the loop

    def add(self, request: GenerateRequest | EmbedRequest) -> None:
        """See `EngineInterface.add`; texts to be embedded go the same way."""
        self._check_open()
        check_request(request, self.model.vocab_size, self.config.scheduling_policy)
        arrival_s = self._clock.now()
        pooling = request.pooling if isinstance(request, EmbedRequest) else None
        with self.scores.holding(request), self.adapters.holding(request):
            seq_ids = self.core.add(request, arrival_s, pooling=pooling)
        params = request.params
        for index, seq_id in enumerate(seq_ids):
            detokenizer = (
                None
                if self.tokenizer is None
                else self.tokenizer.stream(skip_special_tokens=params.skip_special_tokens)
            )
            text = TextOutput(
                detokenizer,
                params.stop,
                keeps_stop=params.include_stop_str_in_output,
                min_tokens=params.min_tokens,
            )
            self._continuations[seq_id] = _Continuation(request=request, index=index, text=text, arrival_s=arrival_s)

    def step(self) -> list[GenerateOutput]:
        """See `EngineInterface.step`.

        Raises:
            EngineError: the engine is closed.
        """
        self._check_open()
        outputs, self._pending = self._pending, []
        if not self.core.has_work:
            return outputs
        started_s = self._clock.now()
        done = self.core.step(started_s)
        self.sessions.expire(started_s)
        if done.preempted:
            # What is only wished for gives way.
            self.adapters.make_room(0)
            self.sessions.make_room(0)
        for admission in done.admitted:
            self._note_admission(admission, started_s)
        if done.error is not None:
            _LOG.error("%s", done.error, exc_info=done.error)
        for scored in done.prompt_logprobs:
            self._continuations[scored.seq_id].prompt_logprobs += scored.tokens
        ended = {each.seq_id: each for each in done.finished}
        outputs += [self._on_token(new, ended.pop(new.seq_id, None)) for new in done.tokens]
        outputs += [self._on_end(end) for end in ended.values()]
        self.num_steps += 1
        self.drift.tick()
        elapsed_s = self._clock.now() - started_s
        self.busy_s += elapsed_s
        learn_costs(self.core.swapper, self.executor.mover, done.num_batched_tokens, elapsed_s)
        return outputs

    def abort(self, request_id: str) -> None:
        """See `EngineInterface.abort`."""
        if self._is_open:
            self._pending += [self._on_end(end) for end in self.core.abort(request_id)]

    @property
    def has_work(self) -> bool:
        """See `EngineInterface.has_work`."""
        return self._is_open and (bool(self._pending) or self.core.has_work)

    # ---- what can be seen

    def now(self) -> float:
        """The engine's clock, seconds."""
        return self._clock.now()

    def reset_prefix_cache(self) -> int:
        """See `EngineInterface.reset_prefix_cache`."""
        self._check_open()
        num_blocks = sum(group.cached for group in self.store.stats())
        self.store.drop_cache()
        return num_blocks

    def save_session(self, client: str, session_id: str, path: Path) -> dict[str, int]:
        """See `Sessions.save`."""
        self._check_open()
        return self.sessions.save(client, session_id, path)

    def restore_session(self, client: str, session_id: str, adapter: str, path: Path) -> dict[str, int]:
        """See `Sessions.restore`."""
        self._check_open()
        return self.sessions.restore(client, session_id, adapter, path)

    def forget_session(self, client: str, session_id: str) -> None:
        """See `Sessions.forget`."""
        self._check_open()
        self.sessions.forget(client, session_id)

    def lora_names(self) -> tuple[str, ...]:
        """See `EngineInterface.lora_names`."""
        return self.adapters.names()

    def load_lora(self, name: str, folder: Path) -> None:
        """See `EngineInterface.load_lora`."""
        self._check_open()
        if name == self.model.name:
            raise ConfigError(f"{name!r} is the base model's name: take another one")
        self.adapters.register(name, folder)

    def unload_lora(self, name: str) -> None:
        """See `EngineInterface.unload_lora`."""
        self._check_open()
        self.adapters.unregister(name)
        # The name may come back with other numbers, and cached KV is found by the name.
        self.sessions.forget_adapter(name)
        self.store.drop_cache()

    def set_memory(self, num_bytes: int) -> BudgetChange:
        """See `EngineInterface.set_memory`."""
        self._check_open()
        return change_budget(self, num_bytes)

    def memory(self) -> dict[str, object]:
        """See `EngineInterface.memory`; documented in `report.memory_report`."""
        self._check_open()
        return memory_report(self)

    def stats(self) -> dict[str, float]:
        """See `EngineInterface.stats`."""
        self._check_open()
        return stats_report(self)

    def close(self) -> None:
        """End everything and give all memory back; audited. Open requests get no further output."""
        if not self._is_open:
            return
        self._is_open = False
        # From the last line to the first, each even if one before it failed: what a crash left behind must not keep memory.
        with ExitStack() as parts:
            parts.callback(self.resources.close)
            if self.layers is not None:
                parts.callback(self.layers.close)
            parts.callback(self._drop_tensors)
            parts.callback(self.store.close)
            parts.callback(self.store.audit)
            parts.callback(self.drift.release)
            parts.callback(self.adapters.close)
            parts.callback(self.sessions.close)
            parts.callback(self._end_all)

    def _end_all(self) -> None:
        for request_id in {each.request.request_id for each in self._continuations.values()}:
            self.core.abort(request_id)
        self._continuations.clear()
        self._pending.clear()

    def _drop_tensors(self) -> None:
        """Tensors over the arenas go before the arenas do."""
        del self.executor, self.core
        gc.collect()
        assert not self.resources.kv_lease.children, f"KV leases are left: {list(self.resources.kv_lease.children)}"

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- parts

    def _set_aside(self) -> int:
        """Blocks of each group that neither sequences nor the prefix cache can have now."""
        return self.drift.num_blocks + self.adapters.num_blocks + self.sessions.num_blocks

    def _check_open(self) -> None:
        if not self._is_open:
            raise EngineError("the engine is closed")

    def _note_admission(self, admission: Admission, now_s: float) -> None:
        first = self._continuations[admission.seq_id]
        if not admission.is_readmission:
            for index in range(first.request.params.num_sequences):
                member = self._continuations.get(f"{admission.request_id}/{index}")
                if member is not None:
                    member.num_cached_tokens = admission.num_cached_tokens
                    member.queue_s = now_s - member.arrival_s
        if admission.miss_reason is not None:
            _LOG.info("request %s: no prefix reused: %s", admission.request_id, admission.miss_reason)

    def _on_token(self, new: NewToken, end: Finished | None) -> GenerateOutput:
        continuation = self._continuations[new.seq_id]
        continuation.num_output_tokens += 1
        if continuation.request.session_id:
            continuation.output_ids.append(new.token.token_id)
        text = continuation.text
        is_stop_token = end is not None and end.stop_token_id is not None
        shown = (
            ""
            if is_stop_token and not continuation.request.params.include_stop_str_in_output
            else text.add(new.token.token_id)
        )
        reason: FinishReason | None = None if end is None else end.reason
        stop_reason: str | int | None = None if end is None else end.stop_token_id
        if text.stop is not None:
            if end is None:
                self.core.finish(new.seq_id, "stop")
            reason, stop_reason = "stop", text.stop
        elif reason is not None:
            shown += text.finish()
        if reason is not None:
            del self._continuations[new.seq_id]
        return self._output(continuation, shown, (new.token,), reason, self._reported(stop_reason))

    def _reported(self, stop_reason: str | int | None) -> str | int | None:
        """The end-of-sequence token is no stop reason (vLLM's convention): the text simply ended."""
        return None if stop_reason in self.model.eos_ids else stop_reason

    def _on_end(self, end: Finished) -> GenerateOutput:
        """The end of a sequence without a token in this step."""
        continuation = self._continuations.pop(end.seq_id)
        request, embedding = continuation.request, None
        if isinstance(request, EmbedRequest) and end.pooled is not None:
            embedding = finish_embedding(
                end.pooled, len(request.prompt_ids), request.pooling, normalize=request.normalize
            )
        return self._output(continuation, continuation.text.finish(), (), end.reason, None, end.error, embedding)

    def _output(
        self,
        continuation: _Continuation,
        text: str,
        tokens: tuple[SampledToken, ...],
        reason: FinishReason | None,
        stop_reason: str | int | None,
        error: str | None = None,
        embedding: Sequence[float] | None = None,
    ) -> GenerateOutput:
        prompt_logprobs, continuation.prompt_logprobs = tuple(continuation.prompt_logprobs), []
        if reason is not None and continuation.index == 0:
            self.scores.release(continuation.request.request_id)
        if reason is not None:
            request = continuation.request
            if isinstance(request, GenerateRequest) and request.session_id and continuation.index == 0:
                self.sessions.note(request, continuation.output_ids, self._clock.now())
            self.adapters.release(continuation.request.request_id)
        return GenerateOutput(
            request_id=continuation.request.request_id,
            index=continuation.index,
            text=text,
            tokens=tokens,
            finish_reason=reason,
            stop_reason=stop_reason,
            num_prompt_tokens=len(continuation.request.prompt_ids),
            num_cached_tokens=continuation.num_cached_tokens,
            num_output_tokens=continuation.num_output_tokens,
            error=error,
            queue_s=continuation.queue_s,
            prompt_logprobs=prompt_logprobs,
            embedding=embedding,
        )
