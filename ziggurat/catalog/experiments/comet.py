# SPDX-License-Identifier: Apache-2.0
"""COMET (arXiv 2410.12168): 4-bit weights and activations, with 8 bits for the few blocks of channels that hold outliers.

The embedded model gets outlier channels that leave its function alone. Its linears read 256 channels where Llama-2-7B's read 4,096: blocks
have 32 channels here, the paper's 128 stand in the notes. This CPU has no unit for 4-bit products, so the twofold speed of INT4 tiles can
only be simulated.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.dense_rig import Rig, new_rig
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.experiments.bfp_ksort import kivi_keys
from ziggurat.catalog.serving import SIMULATOR, Judged, Limit, pending
from ziggurat.quantization import fmpq, kivi
from ziggurat.quantization.dense import DenseCheckpoint, Floats, Linear
from ziggurat.scheduling.tiles import TILE_POLICIES, TilePolicy, simulate

FMPQ = Judged(name="fmpq-over-w4a16", paper=None, unit="x perplexity", limit=Limit(high=1.05))
NAIVE = Judged(name="w4a4-over-w4a16", paper=None, unit="x perplexity", limit=Limit(low=1.5))
SHARE = Judged(name="int8-blocks-permuted", paper=0.16, unit="share of the blocks", limit=Limit(high=0.2))
UNSORTED = Judged(
    name="int8-blocks-unpermuted", paper=None, unit="share, 4,096 channels", limit=Limit(low=0.6), kind="derived"
)
EXACT = Judged(name="fold-changes-logits", paper=0, unit="share of the largest logit", limit=Limit(high=1e-5))
KERNELS = tuple(
    Judged(name=name, paper=None, unit=unit, limit=Limit(low=low))
    for name, unit, low in (
        ("kernel-over-fp32-m1", "x", 3.0),
        ("kernel-over-fp32-m256", "x", 1.6),
        ("a4-over-a8-blocks", "x, no native INT4 unit", 1.1),
    )
)
THREADS = Judged(name="stages-on-two-threads", paper=None, unit="stages in order", limit=Limit(low=3, high=3))
STAGES = Judged(name="stages-on-108-sms", paper=3, unit="stages in order", limit=Limit(low=3, high=3), kind="simulated")
STEAL = Judged(name="steal-over-bound", paper=None, unit="x, 108 SMs", limit=Limit(low=0.95), kind="simulated")
BATCHES = {16: 2.91, 64: 2.97, 256: 2.75}
A100 = {
    m: Judged(
        name=f"a100-over-fp16-batch-{m}",
        paper=paper,
        unit="x",
        limit=Limit(low=0.85 * paper, high=1.15 * paper),
        kind="simulated",
    )
    for m, paper in BATCHES.items()
}
SERVING = Judged(
    name="a100-end-to-end-over-w4a16", paper=2.02, unit="x", limit=Limit(low=1.62, high=2.42), kind="simulated"
)
JUDGED = (FMPQ, NAIVE, SHARE, UNSORTED, EXACT, *KERNELS, THREADS, STAGES, STEAL, *A100.values(), SERVING)
BLOCK = 32
NO_KERNEL = "waits for B (the native W4Ax kernel)"


class Comet:
    """The experiment.

    Args:
        new_rig: tests bring a tiny model.
        block: channels of a block.
    """

    claims: tuple[Claim, ...] = tuple(judged.claim for judged in JUDGED)

    def __init__(self, new_rig: Callable[[Scale], Rig] = new_rig, block: int = BLOCK) -> None:
        self._new_rig, self._block = new_rig, block

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        rig = self._new_rig(scale)
        model = fmpq.norm_outliers(rig.base, share=0.01, seed=1).fold(rig.base)
        absmax = fmpq.collect_absmax(model, rig.prompts)
        return [
            *self._accuracy(rig, model, absmax, scale),
            UNSORTED.judge(*unpermuted_share(), scale),
            _exact(rig, model, absmax, scale),
            *(pending(judged.name, NO_KERNEL) for judged in (*KERNELS, THREADS)),
            *stages(scale),
            *a100(scale),
            pending(SERVING.name, SIMULATOR),
        ]

    def _accuracy(self, rig: Rig, model: DenseCheckpoint, absmax: dict[str, Floats], scale: Scale) -> list[ClaimResult]:
        ours = accuracy(rig, model, absmax, self._block)
        note = f"perplexity fp32 {rig.perplexity(model):.2f}; blocks of {self._block}: {_text(ours)}"
        if scale == "full":
            note += f"; blocks of 128: {_text(accuracy(rig, model, absmax, 128))}"
        shares = f"blocks of {self._block}; without permutation {ours['unpermuted share']:.0%} here, where 3 of 256 channels are outliers"
        return [
            FMPQ.judge(ours["fmpq"] / ours["w4a16 permuted"], "the same weights in both; " + note, scale),
            NAIVE.judge(ours["w4a4"] / ours["w4a16"], "channels in their own order; " + note, scale),
            SHARE.judge(ours["share"], shares, scale),
        ]


def accuracy(rig: Rig, model: DenseCheckpoint, absmax: dict[str, Floats], block: int) -> dict[str, float]:
    """Perplexities by format, and the share of 8-bit blocks with and without permutation."""

    def plans(factor: float = fmpq.OUTLIER_FACTOR, *, permute: bool = True) -> dict[str, fmpq.ChannelPlan]:
        return {
            name: fmpq.plan_channels(found, block=block, factor=factor, permute=permute)
            for name, found in absmax.items()
        }

    mixed, plain = plans(), plans(permute=False)
    narrow = linear_of(model, plans(np.inf, permute=False))
    return {
        "w4a16": rig.perplexity(model, linear=linear_of(model, plain, rounds_inputs=False)),
        "w4a8": rig.perplexity(model, linear=linear_of(model, plans(0.0, permute=False))),
        "w4a4": rig.perplexity(model, linear=narrow),
        "w4a16 permuted": rig.perplexity(model, linear=linear_of(model, mixed, rounds_inputs=False)),
        "fmpq": rig.perplexity(model, linear=linear_of(model, mixed)),
        "fmpq kv4": rig.perplexity(model, linear=linear_of(model, mixed), keys=kivi_keys, values=kivi_values),
        "share": statistics.fmean(plan.wide_share for plan in mixed.values()),
        "unpermuted share": statistics.fmean(plan.wide_share for plan in plain.values()),
    }


def linear_of(model: DenseCheckpoint, plans: dict[str, fmpq.ChannelPlan], *, rounds_inputs: bool = True) -> Linear:
    """Linears with 4-bit weights, and with packed inputs or plain ones."""
    weights = {name: fmpq.pack_weights(model.tensors[name + ".weight"], plan) for name, plan in plans.items()}

    def linear(name: str, x: Floats, _weight: Floats) -> Floats:
        if rounds_inputs:
            return fmpq.w4ax(fmpq.pack_activations(x, plans[name]), weights[name])
        return np.asarray(x @ fmpq.shown_weights(weights[name], plans[name]).T)

    return linear


def kivi_values(_layer: int, values: Floats) -> Floats:
    """Values in KIVI-4: groups of 32 channels of a token, or the whole head where it is smaller."""
    flat = values.reshape(len(values), -1)
    return (
        flat.astype(values.dtype)
        if flat.shape[1] % kivi.GROUP
        else kivi.quantize(flat, 4).values().reshape(values.shape)
    )


def _text(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items())


def unpermuted_share() -> tuple[float, str]:
    """(share of 128-channel blocks that hold an outlier without permutation, note): 1 % of 4,096 channels, anywhere."""
    rng, found, kept = np.random.default_rng(4), [], []
    for _ in range(200):
        absmax = np.ones(4096)
        absmax[rng.choice(4096, 41, replace=False)] = 40
        found.append(fmpq.plan_channels(absmax, permute=False).wide_share)
        kept.append(fmpq.plan_channels(absmax).wide_share)
    return statistics.fmean(
        found
    ), f"200 draws of 41 outliers among 4,096 channels; permuted {statistics.fmean(kept):.1%}"


def _exact(rig: Rig, model: DenseCheckpoint, absmax: dict[str, Floats], scale: Scale) -> ClaimResult:
    from ziggurat.quantization.dense import ReferenceDecoder

    ids = rig.prompts[0][:64]
    folded = fmpq.fold_order(model, absmax).fold(model)
    first, second = (ReferenceDecoder(each).logits(ids) for each in (rig.base, folded))
    note = "fp32: outliers put in and orders of what down projections read folded"
    return EXACT.judge(float(np.abs(first - second).max() / np.abs(first).max()), note, scale)


def utilisation(policy: TilePolicy, workers: int, num_tiles: int) -> float:
    """Mean over twenty draws of tiles of which a quarter have 8 bits and cost 2, the others 1."""
    draws = (np.random.default_rng(seed).random(num_tiles) < 0.25 for seed in range(20))
    return statistics.fmean(
        simulate([2 if wide else 1 for wide in draw], workers, policy).utilisation for draw in draws
    )


def stages(scale: Scale) -> list[ClaimResult]:
    """The scheduler's four stages on 108 multiprocessors."""
    found = {policy: utilisation(policy, 108, 300) for policy in TILE_POLICIES}
    values = list(found.values())
    rises = sum(a < b for a, b in itertools.pairwise(values))
    few = {policy: utilisation(policy, 2, 25) for policy in TILE_POLICIES}
    note = "300 tiles: " + ", ".join(f"{policy} {value:.3f}" for policy, value in found.items())
    note += "; 2 workers, 25 tiles: " + ", ".join(f"{policy} {value:.3f}" for policy, value in few.items())
    worst = min(utilisation("steal", 108, num_tiles) for num_tiles in (108, 300, 1000))
    return [STAGES.judge(rises, note, scale), STEAL.judge(worst, "the worst of 108, 300 and 1,000 tiles", scale)]


def a100(scale: Scale) -> list[ClaimResult]:
    """Speed over FP16 by the roofline: 4,096 x 4,096, three quarters of the blocks in INT4, one efficiency fitted at batch 256."""
    scales, mixed = 2 / fmpq.BLOCK, 0.75 * 0.5 + 0.25  # bytes per value: fp16 scales of blocks, and codes of inputs
    rate = 1 / (0.75 / 1248 + 0.25 / 624)
    ideal = {m: _seconds(m, 2, 2, 312) / _seconds(m, 0.5 + scales, mixed + scales, rate) for m in A100}
    efficiency = A100[256].paper
    assert isinstance(efficiency, float)
    efficiency /= ideal[256]
    note = f"A100: 312, 624, 1,248 T(FL)OPS, 2.0 TB/s; efficiency {efficiency:.2f} fitted at batch 256; scales counted"
    return [judged.judge(efficiency * ideal[m], note + f"; ideal {ideal[m]:.2f}", scale) for m, judged in A100.items()]


def _seconds(m: int, weight_bytes: float, input_bytes: float, tera_ops: float, n: int = 4096, k: int = 4096) -> float:
    num_bytes = n * k * weight_bytes + m * k * input_bytes + 2 * m * n
    return max(num_bytes / 2.0e12, 2 * m * n * k / (tera_ops * 1e12))


@EXPERIMENTS.register("comet")
def build() -> Comet:
    """The experiment on this machine."""
    return Comet()
