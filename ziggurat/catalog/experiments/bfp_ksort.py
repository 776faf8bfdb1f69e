# SPDX-License-Identifier: Apache-2.0
"""BFP with K-sort (arXiv 2403.20137): keys in block floating point, channels sorted by size so that outliers share few blocks.

The embedded model gets key outliers that leave its function alone. Its heads have 64 channels where the publication's have 128, so a
block is compared by its share of a head: n = 16, 32 and 64 here stand for 32, 64 and 128 there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.dense_rig import Rig, new_rig
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.serving import Judged, Limit, pending
from ziggurat.quantization import bfp, kivi
from ziggurat.quantization.dense import DenseCheckpoint, Entries, Floats
from ziggurat.quantization.ksort import ORDER_RULES, agreement, calibrated_scores, key_outliers, ksort_by, norm_scores

QUARTER = Judged(name="gap-recovered-n32-of-128", paper=None, unit="share of the perplexity gap", limit=Limit(low=0.6))
HALF = Judged(name="gap-recovered-n64-of-128", paper=None, unit="share of the perplexity gap", limit=Limit(low=0.3))
WHOLE = Judged(
    name="change-n128-of-128", paper=0, unit="|sorted / unsorted - 1| of the perplexity", limit=Limit(high=0.005)
)
BYTES = Judged(name="bytes-over-formula", paper=None, unit="x", limit=Limit(low=0.99, high=1.01))
SPEED = Judged(name="decode-attention-over-fp32", paper=None, unit="x at 8,192 tokens", limit=Limit(low=2))
EXACT = Judged(
    name="fold-changes-logits", paper=0, unit="largest difference, share of the largest logit", limit=Limit(high=1e-5)
)
SYNTHETIC = {
    n: Judged(
        name=f"ordinary-error-n{n}", paper=None, unit="x less on ordinary channels, sorted", limit=limit, kind="derived"
    )
    for n, limit in {32: Limit(low=1.7), 64: Limit(low=1.2), 128: Limit(low=0.99, high=1.01)}.items()
}
LLAMA = Judged(
    name="llama2-7b-bfp16-over-bfp12",
    paper=2,
    unit="x bytes of keys at 4,096 tokens",
    limit=Limit(low=1.9, high=2.1),
    kind="derived",
)
JUDGED = (QUARTER, HALF, WHOLE, BYTES, SPEED, EXACT, *SYNTHETIC.values(), LLAMA)
KERNEL = "waits for B (block floating point in the attention kernels)"


class BfpKsort:
    """The experiment.

    Args:
        new_rig: tests bring a tiny model.
    """

    claims: tuple[Claim, ...] = tuple(judged.claim for judged in JUDGED)

    def __init__(self, new_rig: Callable[[Scale], Rig] = new_rig) -> None:
        self._new_rig = new_rig

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        rig = self._new_rig(scale)
        model = key_outliers(rig.base, share=0.05, low=8, high=16, seed=1).fold(rig.base)
        return [
            *_gaps(rig, model, scale),
            _bytes(model, scale),
            pending(SPEED.name, KERNEL),
            _exact(rig, model, scale),
            *(judged.judge(*ordinary_error(n), scale) for n, judged in SYNTHETIC.items()),
            llama2_7b(scale),
        ]


def _gaps(rig: Rig, model: DenseCheckpoint, scale: Scale) -> list[ClaimResult]:
    dim = model.config.head_dim
    plain = rig.perplexity(model)
    models = {rule: ksort_by(model, rule, prompts=rig.prompts, seed=5).fold(model) for rule in ORDER_RULES}
    kivi4 = rig.perplexity(model, keys=kivi_keys)
    found: dict[int, dict[str, float]] = {}
    for n in (dim // 4, dim // 2, dim):
        rules = ORDER_RULES if scale == "full" else ("identity", "norm")
        found[n] = {rule: rig.perplexity(models[rule], keys=bfp_entries(4, n)) for rule in rules}
    results = []
    for judged, (n, by_rule) in zip((QUARTER, HALF, WHOLE), found.items(), strict=True):
        unsorted, ranked = by_rule["identity"], by_rule["norm"]
        note = f"n = {n} of {dim}: perplexity fp32 {plain:.2f}, KIVI-4 {kivi4:.2f}, BFP12 " + ", ".join(
            f"{rule} {value:.2f}" for rule, value in by_rule.items()
        )
        if scale == "full":
            note += "; norm order by bits: " + _sweep(rig, models["norm"], n)
        change = abs(ranked / unsorted - 1)
        results.append(
            judged.judge(change if judged is WHOLE else (unsorted - ranked) / (unsorted - plain), note, scale)
        )
    return results


def _sweep(rig: Rig, model: DenseCheckpoint, n: int) -> str:
    found = {p: rig.perplexity(model, keys=bfp_entries(p, n)) for p in (3, 6, 8)}
    both = rig.perplexity(model, keys=bfp_entries(4, n), values=bfp_entries(4, n))
    return ", ".join(f"p = {p} {value:.2f}" for p, value in found.items()) + f"; values in BFP12 too {both:.2f}"


def bfp_entries(mantissa_bits: int, block: int) -> Entries:
    """Keys or values as a BFP cache shows them."""
    spec = bfp.BfpSpec(mantissa_bits=mantissa_bits, block=block)
    return lambda _layer, entries: bfp.encode(entries, spec).values()


def kivi_keys(_layer: int, keys: Floats) -> Floats:
    """Keys in KIVI-4: 32 tokens of a channel share a scale; tokens of a group that is not full stay as they are."""
    whole = len(keys) // kivi.GROUP * kivi.GROUP
    shown = keys.astype(np.float32).copy()
    if whole:
        groups = np.ascontiguousarray(np.moveaxis(shown[:whole], 0, -1))
        shown[:whole] = np.moveaxis(kivi.quantize(groups, 4).values(), -1, 0)
    return shown


def _bytes(model: DenseCheckpoint, scale: Scale) -> ClaimResult:
    keys = np.random.default_rng(0).standard_normal((100, model.config.num_key_value_heads, model.config.head_dim))
    worst = 1.0
    for bits, n in ((p, n) for p in (3, 4, 6, 8) for n in (16, 32, 64) if n <= model.config.head_dim):
        packed = bfp.encode(keys, bfp.BfpSpec(mantissa_bits=bits, block=n)).packed
        over = packed.nbytes / (keys.size * (bits + 8 / n) / 8)
        worst = over if abs(over - 1) > abs(worst - 1) else worst
    return BYTES.judge(worst, "packed arrays, mantissas of 3, 4, 6, 8 bits, n = 16, 32, 64; the worst", scale)


def _exact(rig: Rig, model: DenseCheckpoint, scale: Scale) -> ClaimResult:
    from ziggurat.quantization.dense import ReferenceDecoder

    ids = rig.prompts[0][:64]
    sorted_model = ksort_by(model, "norm").fold(model)
    first, second = (ReferenceDecoder(each).logits(ids) for each in (model, sorted_model))
    return EXACT.judge(
        float(np.abs(first - second).max() / np.abs(first).max()),
        f"fp32, before any rounding of keys; {_agreement(rig, model)}",
        scale,
    )


def ordinary_error(n: int) -> tuple[float, str]:
    """(unsorted over sorted squared error on the ordinary channels, note): 128 equal channels, 6 of them 8 to 16 times as large."""
    rng, spec = np.random.default_rng(3), bfp.BfpSpec(mantissa_bits=4, block=n)
    errors = np.zeros(2)
    for _ in range(50):
        size = np.ones(128)
        outliers = rng.choice(128, 6, replace=False)
        size[outliers] = rng.uniform(8, 16, 6)
        keys = rng.standard_normal((64, 128)) * size
        is_ordinary = np.isin(np.arange(128), outliers, invert=True)
        for i, order in enumerate((np.arange(128), np.argsort(-size, kind="stable"))):
            shown = np.empty_like(keys)
            shown[:, order] = bfp.encode(keys[:, order], spec).values()
            errors[i] += ((shown - keys)[:, is_ordinary] ** 2).sum()
    return float(errors[0] / errors[1]), "50 draws of 64 Gaussian keys with 128 channels, 6 outliers of 8 to 16"


def _agreement(rig: Rig, model: DenseCheckpoint) -> str:
    found = [agreement(norm_scores(each), calibrated_scores(each, rig.prompts), 0.06) for each in (rig.base, model)]
    return (
        f"norms of W_k's rows and mean |k| after rope agree on {found[0]:.0%} of the top 6 % of channels, {found[1]:.0%} with the "
        "injected outliers"
    )


def llama2_7b(scale: Scale) -> ClaimResult:
    """Bytes of the key cache of Llama-2-7B."""
    values = 4096 * 32 * 4096
    wide, narrow = (bfp.BfpSpec(mantissa_bits=p, block=64).num_bytes(values) for p in (8, 4))
    note = (
        f"4,096 tokens, n = 64: fp16 {2 * values / 2**30:.2f} GiB, BFP16 {wide / 2**30:.3f}, BFP12 {narrow / 2**30:.3f}"
    )
    return LLAMA.judge(wide / narrow, note, scale)


@EXPERIMENTS.register("bfp-ksort")
def build() -> BfpKsort:
    """The experiment on this machine."""
    return BfpKsort()
