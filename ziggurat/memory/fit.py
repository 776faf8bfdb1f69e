# SPDX-License-Identifier: Apache-2.0
"""From a budget to a Plan and a KV pool: the one place where sizes are derived.

``ziggurat plan``, the engine and the tests call `fit`; the ledger then reserves exactly these bytes. Everything is closed form
over the Plan, so it needs neither weights nor torch.

Order of what is given up when the budget is small: first KV room beyond one full-length sequence, then the step (fewer tokens and
sequences per step), then, unless the user fixed it, the context length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ziggurat.errors import DoesNotFit
from ziggurat.memory.block_cache import peak_window_blocks
from ziggurat.programs.formats import FORMATS, FP32
from ziggurat.programs.lower import Formats, lower
from ziggurat.programs.plan import Limits, Plan
from ziggurat.programs.program import KVGroup, Program
from ziggurat.programs.streaming import place_bytes, streamed
from ziggurat.programs.tails import tail_blocks
from ziggurat.units import format_bytes

RESERVE_RATIO = 0.03
"""The planner's own reserve inside the budget."""

BLOCK_METADATA_BYTES = 1024
"""What Python keeps per KV block that is in use: reference counts, table entry, prefix-forest node with its token ids."""

_STEP_SIZES = ((256, 32), (128, 16), (64, 8), (32, 4), (16, 1))
"""(tokens, sequences) per step, tried in this order. A CPU turns compute-bound at 10 to 20 tokens per step; more tokens per step
only amortise the step's fixed cost and lengthen it for running sequences, hence 256 and not a GPU's thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRequest:
    """What was asked. None leaves the choice to `fit`.

    Attributes:
        memory_bytes: the budget over the baseline.
        can_stream: weights that do not fit may be read from a file in every step.
        overhead_bytes: calibrated lease for what is not in arenas: tokenizer, Python objects, allocator slack.
    """

    memory_bytes: int
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int = 16
    overhead_bytes: int = 0
    can_stream: bool = False

    @property
    def usable_bytes(self) -> int:
        """The budget without the reserve."""
        return int(self.memory_bytes * (1 - RESERVE_RATIO))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was derived.

    Attributes:
        num_blocks: KV blocks per group.
        kv_pool_bytes: the KV arenas together.
        metadata_bytes: bookkeeping of those blocks when all are in use.
        longest_context_tokens: the longest single sequence that the pool can hold, whatever max_model_len says, up to the model's
            own limit.
        largest_batch: sequences of max_model_len that the pool holds at once.
        is_context_lowered: max_model_len is below the model's limit because of the budget.
    """

    request: SizeRequest
    plan: Plan
    num_blocks: tuple[int, ...]
    kv_pool_bytes: int
    metadata_bytes: int
    longest_context_tokens: int
    largest_batch: int
    is_context_lowered: bool

    def planned_bytes(self) -> int:
        """Everything that the process adds over its baseline when all of it is in use."""
        return self.plan.fixed_bytes() + self.request.overhead_bytes + self.metadata_bytes + self.kv_pool_bytes


def sequence_blocks(group: KVGroup, num_tokens: int, limits: Limits) -> int:
    """The most blocks that one sequence of ``num_tokens`` ever holds in a group: what the KV store says, too."""
    chunk_tokens = min(limits.max_num_batched_tokens, num_tokens)
    return peak_window_blocks(group.window, num_tokens, chunk_tokens, limits.block_size)


def sequence_bytes(plan: Plan, num_tokens: int) -> int:
    """KV bytes, bookkeeping included, of one sequence of ``num_tokens``."""
    return sum(
        sequence_blocks(group, num_tokens, plan.limits) * (plan.block_bytes(group) + BLOCK_METADATA_BYTES)
        for group in plan.program.kv_groups()
        if not group.is_tail
    )


def _fixed_bytes(plan: Plan) -> int:
    """Everything whose size does not depend on how many tokens there are to remember: tails too, which a step's size bounds."""
    tails = [group for group in plan.program.kv_groups() if group.is_tail]
    return plan.fixed_bytes() + sum(
        tail_blocks(plan.limits) * (plan.block_bytes(tail) + BLOCK_METADATA_BYTES) for tail in tails
    )


def _table_bytes(plan: Plan, num_tokens: int) -> int:
    return plan.program.table_bytes(num_tokens)


def _longest_context(plan: Plan, request: SizeRequest, limit: int) -> int:
    """The largest context up to ``limit`` for which one sequence fits, 0 if none."""
    other = _fixed_bytes(plan) - plan.table_bytes + request.overhead_bytes
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if other + _table_bytes(plan, middle) + sequence_bytes(plan, middle) <= request.usable_bytes:
            low = middle
        else:
            high = middle - 1
    return low


def _step_candidates(request: SizeRequest) -> list[tuple[int, int]]:
    tokens, seqs = request.max_num_batched_tokens, request.max_num_seqs
    if tokens is not None and seqs is not None:
        return [(tokens, seqs)]
    if tokens is not None:
        return list(dict.fromkeys((tokens, max(1, min(s, tokens - 1))) for _, s in _STEP_SIZES))
    if seqs is not None:
        return list(dict.fromkeys((max(t, seqs + 1), seqs) for t, _ in _STEP_SIZES))
    return list(_STEP_SIZES)


def fit(program: Program, formats: Formats, request: SizeRequest) -> Fit:
    """Sizes everything inside the budget.

    With ``can_stream``, layers that do not fit at the full context length are streamed: the KV pool gets one full-length sequence, then
    at most half of what is left for the others of a step; the rest goes to layers that stay.

    Raises:
        DoesNotFit: not even the smallest step fits; the message names the smallest change that would do.
    """
    wanted = request.max_model_len or program.max_position
    longest, plan, smallest = _best_step(program, formats, request, wanted, can_stream=False)
    if request.can_stream and longest < wanted:
        longest, plan, smallest = _best_step(program, formats, request, wanted, can_stream=True)
    # One block is the least that makes sense; a fixed context length is never lowered behind the user's back.
    if longest < (wanted if request.max_model_len else min(request.block_size, wanted)):
        raise _does_not_fit(program, formats, request, smallest, longest)
    if longest < wanted:
        limits = replace(plan.limits, max_model_len=longest)
        is_streamed = bool(plan.streamed_layers)
        plan = lower(program, formats, limits)
        plan = streamed(plan, 0) if is_streamed else plan
    if plan.streamed_layers:
        plan = _keep_layers(lower(program, formats, plan.limits), plan, request)
    return _with_pool(plan, request, longest)


def _best_step(
    program: Program, formats: Formats, request: SizeRequest, wanted: int, *, can_stream: bool
) -> tuple[int, Plan, Plan]:
    """(the longest context that fits, the Plan with the largest step that has it, the Plan with the smallest step)."""
    best: tuple[int, Plan] | None = None
    smallest: Plan | None = None
    for tokens, seqs in _step_candidates(request):
        limits = Limits(
            max_model_len=wanted, max_num_seqs=seqs, max_num_batched_tokens=tokens, block_size=request.block_size
        )
        plan = lower(program, formats, limits)
        smallest = plan = streamed(plan, 0) if can_stream else plan
        longest = _longest_context(plan, request, wanted)
        if best is None or longest > best[0]:
            best = (longest, plan)
        if longest == wanted:
            break
    assert best is not None and smallest is not None
    return *best, smallest


def _keep_layers(whole: Plan, plan: Plan, request: SizeRequest) -> Plan:
    """As many resident layers as there is room for beside the KV of all sequences of a step, which get at most half of it."""
    one = sequence_bytes(plan, plan.limits.max_model_len)
    left = request.usable_bytes - _fixed_bytes(plan) - request.overhead_bytes - one
    others = min(left // 2, (plan.limits.max_num_seqs - 1) * one)
    return streamed(whole, max(0, left - others) // place_bytes(whole))


def _with_pool(plan: Plan, request: SizeRequest, max_model_len: int) -> Fit:
    """Splits what is left between the KV groups in proportion to what a full-length sequence needs; tails come first."""
    groups = plan.program.kv_groups()
    left = request.usable_bytes - _fixed_bytes(plan) - request.overhead_bytes
    per_sequence = [sequence_blocks(group, max_model_len, plan.limits) for group in groups]
    sequence_cost = sequence_bytes(plan, max_model_len)
    num_blocks = tuple(
        tail_blocks(plan.limits) if group.is_tail else max(count, left * count // sequence_cost)
        for count, group in zip(per_sequence, groups, strict=True)
    )
    longest = _longest_in_pool(plan, num_blocks)
    return Fit(
        request=request,
        plan=plan,
        num_blocks=num_blocks,
        kv_pool_bytes=sum(n * plan.block_bytes(group) for n, group in zip(num_blocks, groups, strict=True)),
        metadata_bytes=sum(num_blocks) * BLOCK_METADATA_BYTES,
        longest_context_tokens=longest,
        largest_batch=min(
            n // count for n, count, group in zip(num_blocks, per_sequence, groups, strict=True) if not group.is_tail
        ),
        is_context_lowered=request.max_model_len is None and max_model_len < plan.program.max_position,
    )


def _longest_in_pool(plan: Plan, num_blocks: tuple[int, ...]) -> int:
    limit = plan.program.max_position
    for count, group in zip(num_blocks, plan.program.kv_groups(), strict=True):
        if sequence_blocks(group, limit, plan.limits) > count:
            limit = min(limit, count * plan.limits.block_size)
    return limit


def refit(fit: Fit, memory_bytes: int, max_blocks: tuple[int, ...]) -> Fit:
    """The same Plan inside another budget: only the KV pool, its bookkeeping and the reserve change.

    Args:
        max_blocks: per group, what address space was taken for.

    Raises:
        DoesNotFit: one sequence of max_model_len would not fit any more, or the pool would be larger than the one that was made.
    """
    plan, longest = fit.plan, fit.plan.limits.max_model_len
    least = smallest_budget(plan, fit.request.overhead_bytes, longest)
    if memory_bytes < least:
        raise DoesNotFit(
            f"a budget of {format_bytes(memory_bytes)} ({memory_bytes} bytes) does not hold the model and one request of {longest} tokens: "
            f"{format_bytes(least)} ({least} bytes) is the least",
            needed_bytes=least,
            available_bytes=memory_bytes,
        )
    other = _with_pool(plan, replace(fit.request, memory_bytes=memory_bytes), longest)
    if any(count > most for count, most in zip(other.num_blocks, max_blocks, strict=True)):
        raise DoesNotFit(
            f"a budget of {format_bytes(memory_bytes)} ({memory_bytes} bytes) is more than this engine was started with: its KV pool has "
            f"address space for {' + '.join(map(str, max_blocks))} blocks, not {' + '.join(map(str, other.num_blocks))}; start it with "
            "the most it may ever have and lower that while it runs",
            needed_bytes=memory_bytes,
            available_bytes=fit.request.memory_bytes,
        )
    return other


def smallest_budget(plan: Plan, overhead_bytes: int, num_tokens: int) -> int:
    """The smallest ``--memory`` with which one sequence of ``num_tokens`` runs under this plan's step size."""
    fixed = _fixed_bytes(plan) - plan.table_bytes + _table_bytes(plan, num_tokens)
    needed = fixed + overhead_bytes + sequence_bytes(plan, num_tokens)
    return int(needed / (1 - RESERVE_RATIO)) + 1


def _does_not_fit(program: Program, formats: Formats, request: SizeRequest, plan: Plan, longest: int) -> DoesNotFit:
    """The error with the smallest change that would do: a shorter context, a smaller KV format, or more memory."""
    wanted = request.max_model_len or min(request.block_size, program.max_position)
    needed = smallest_budget(plan, request.overhead_bytes, wanted)
    changes = [f"raise --memory to {needed} ({format_bytes(needed)})"]
    if not request.can_stream and _longest_context(streamed(plan, 0), request, wanted) >= wanted:
        changes.insert(0, "--offload-folder FOLDER, to read layers from disk in every step")
    if longest >= min(request.block_size, wanted):
        changes.insert(0, f"lower --max-model-len to {longest}")
    half = next(fmt for fmt in FORMATS.values() if fmt.bits == 16)
    if formats.kv is FP32:
        smaller = lower(program, replace(formats, kv=half), plan.limits)
        if smallest_budget(smaller, request.overhead_bytes, wanted) <= request.memory_bytes:
            changes.insert(0, f"--kv-cache-dtype {half.name}")
    return DoesNotFit(
        f"{program.architecture} does not fit in {format_bytes(request.memory_bytes)} ({request.memory_bytes} bytes): weights "
        f"{format_bytes(plan.weight_bytes)}, workspace {format_bytes(plan.workspace_bytes)}, overhead "
        f"{format_bytes(request.overhead_bytes + plan.sampler_bytes)}, KV of {wanted} tokens "
        f"{format_bytes(sequence_bytes(plan, wanted))}, reserve {RESERVE_RATIO:.0%}: {format_bytes(needed)} needed. "
        f"The smallest change: {', or '.join(changes)}",
        needed_bytes=needed,
        available_bytes=request.memory_bytes,
    )
