# SPDX-License-Identifier: Apache-2.0
"""vAttention (arXiv 2405.04437): KV contiguous in virtual address space, its pages mapped on demand.

Torch's attention runs unchanged over slots of `VirtualKVStore`; beside it over tensors reserved at full length, and over blocks that are
gathered first. Page groups of 64 KiB are runs of the machine's pages of 4 KiB: on a CPU the page tables stay small-grained, so a map costs
a fault per page where a GPU's driver maps 2 MiB with one call.

Three lines miss here, and say more of CPUs than of the system. Gathering costs 5 % because attention over a chunk of 512 tokens is bound by
arithmetic on two cores and the gathered copy stays in the cache; on a GPU the paged kernel itself is the slower one. Static memory is 2 %
ahead of the slots through the page tables of 4 KiB that have to be filled (with memory that is there already; without, it is 10 %). And a
map takes 0.1 ms of a step of 20 ms, so that mapping when needed shows as 1.1x: the spikes of the paper come from driver calls.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.serving import SIMULATOR, Judged, Limit, pending
from ziggurat.catalog.virtual_rig import VirtualRig, chat_lengths, new_store
from ziggurat.memory.kv import OutOfBlocks
from ziggurat.units import ceil_div

COMMITTED = Judged(
    name="committed-over-paged", paper=None, unit="page groups per (request, K or V, layer)", limit=Limit(high=1)
)
BATCH = Judged(name="batch-over-static", paper=None, unit="x", limit=Limit(low=4), kind="derived")
GATHERED = Judged(name="prefill-over-gathered", paper=None, unit="x", limit=Limit(low=1.3))
STATIC = Judged(name="prefill-over-static", paper=None, unit="x", limit=Limit(low=0.98))
ASYNC = Judged(name="async-p99-over-premapped", paper=None, unit="x", limit=Limit(high=1.02))
SYNC = Judged(name="sync-p99-over-premapped", paper=None, unit="x", limit=Limit(low=1.2))
SHARED = Judged(name="shared-prefix-bytes", paper=None, unit="share of one copy", limit=Limit(high=1))
WASTE = Judged(
    name="waste-formula",
    paper=None,
    unit="largest relative difference over page sizes",
    limit=Limit(high=0),
    kind="derived",
)
JUDGED = (COMMITTED, BATCH, GATHERED, STATIC, ASYNC, SYNC, SHARED, WASTE)
A100 = Claim(
    name="a100-tokens-over-paged-kernels",
    paper=1.97,
    unit="x",
    kind="simulated",
    target="the paper's table and overheads",
)

STATIC_TOKENS = 4096
POOL_TOKENS = 1 << 19
YI_6B_TOKEN_BYTES = 4 * 128 * 2
YI_6B_PLANES = 2 * 32
PAGE_BYTES = (64 << 10, 128 << 10, 256 << 10, 2 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a scale runs."""

    prompt_tokens: int
    num_rounds: int
    num_steps: int
    num_requests: int


SIZES: dict[Scale, Size] = {
    "quick": Size(prompt_tokens=2048, num_rounds=3, num_steps=200, num_requests=64),
    "full": Size(prompt_tokens=4096, num_rounds=7, num_steps=400, num_requests=256),
}


def p99(values: Sequence[float]) -> float:
    """The value that 1 % exceed."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


class VAttention:
    """The experiment.

    Args:
        new_rig: measures; tests bring one without a model.
    """

    claims = (*(judged.claim for judged in JUDGED), A100)

    def __init__(self, new_rig: Callable[[], VirtualRig] = VirtualRig) -> None:
        self._rig = new_rig()

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        size = SIZES[scale]
        results = [self._committed(size, scale), batch_over_static(scale), *self._prefill(size, scale)]
        results += [*self._steps(size, scale), self._shared(scale), waste(scale)]
        return [*results, pending(A100.name, SIMULATOR)]

    def _committed(self, size: Size, scale: Scale) -> ClaimResult:
        virtual, paged, slack = self._rig.committed(chat_lengths(size.num_requests, seed=3))
        note = f"{size.num_requests} conversations: {virtual >> 20} MiB committed, {paged >> 20} MiB in blocks of 16"
        return COMMITTED.judge((virtual - paged) / slack, note, scale)

    def _prefill(self, size: Size, scale: Scale) -> list[ClaimResult]:
        seconds: dict[str, list[float]] = {"static": [], "gathered": [], "virtual": []}
        for _ in range(size.num_rounds):
            for space, found in seconds.items():
                found.append(self._rig.prefill_seconds(space, size.prompt_tokens))  # type: ignore[arg-type]
        median = {space: statistics.median(found) for space, found in seconds.items()}
        note = f"{size.prompt_tokens} tokens in chunks of 512, mapping and writing included: " + ", ".join(
            f"{space} {1e3 * value:.0f} ms" for space, value in median.items()
        )
        return [
            GATHERED.judge(median["gathered"] / median["virtual"], note, scale),
            STATIC.judge(median["static"] / median["virtual"], note, scale),
        ]

    def _steps(self, size: Size, scale: Scale) -> list[ClaimResult]:
        found: dict[str, list[float]] = {"before": [], "async": [], "sync": []}
        for _ in range(size.num_rounds):
            for mapping, values in found.items():
                steps = self._rig.step_seconds(mapping, num_seqs=8, context=500, num_steps=size.num_steps)  # type: ignore[arg-type]
                values.append(p99(steps))
        median = {mapping: statistics.median(values) for mapping, values in found.items()}
        note = "8 sequences that all reach a new page group at the same step; p99 of a step: " + ", ".join(
            f"{mapping} {1e3 * value:.2f} ms" for mapping, value in median.items()
        )
        return [
            ASYNC.judge(median["async"] / median["before"], note, scale),
            SYNC.judge(median["sync"] / median["before"], note, scale),
        ]

    def _shared(self, scale: Scale) -> ClaimResult:
        committed, expected = self._rig.shared_bytes(8, 16)
        note = f"8 sequences, a prefix of 1,024 tokens, a page group each of their own: {committed >> 10} KiB"
        return SHARED.judge(committed / expected, note, scale)


def batch_over_static(scale: Scale) -> ClaimResult:
    """How many conversations fit at their final lengths, where a static reservation has room for the longest each."""
    store = new_store(POOL_TOKENS // 64, num_slots=4096)
    for number, length in enumerate(chat_lengths(4096, seed=4)):
        try:
            store.open(str(number), [number])
            store.reserve(str(number), length)
        except OutOfBlocks:
            break
    static = POOL_TOKENS // STATIC_TOKENS
    note = f"{number} against {static} in {POOL_TOKENS} tokens of space, lengths up to {STATIC_TOKENS}"
    return BATCH.judge(number / static, note, scale)


def waste(scale: Scale) -> ClaimResult:
    """Bytes that the store holds beyond the tokens, against the paper's formula, for Yi-6B (4 KV heads of 128, 32 layers, fp16)."""
    lengths, differences, shown = chat_lengths(200, seed=5), [], []
    for page_bytes in PAGE_BYTES:
        tokens = page_bytes // YI_6B_TOKEN_BYTES
        store = new_store(sum(ceil_div(length, tokens) for length in lengths), tokens=tokens)
        for number, length in enumerate(lengths):
            store.open(str(number), [number])
            store.reserve(str(number), length)
        held = store.stats()[0].used * YI_6B_PLANES * page_bytes
        wasted = held - sum(lengths) * YI_6B_PLANES * YI_6B_TOKEN_BYTES
        formula = sum((-length % tokens) * YI_6B_PLANES * YI_6B_TOKEN_BYTES for length in lengths)
        differences.append(abs(wasted - formula) / formula)
        shown.append(f"{page_bytes >> 10} KiB ({tokens} tokens): {wasted / len(lengths) / 2**20:.1f} MiB")
    return WASTE.judge(max(differences), "wasted per conversation of Yi-6B, " + ", ".join(shown), scale)


@EXPERIMENTS.register("vattention")
def build() -> VAttention:
    """The experiment on this machine."""
    return VAttention()
