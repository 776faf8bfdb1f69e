# SPDX-License-Identifier: Apache-2.0
"""MoS (arXiv 2410.00938): low-rank adapters whose matrices are made of shards of a pool that all layers share.

Adapters of the embedded model learn four styles and formats that it has never seen (`ziggurat.catalog.mos_rig`), all at one learning
rate. The base has six layers where the paper's have 32: the pool of equivalent rank 2 holds twelve rows, of which a layer with a row of
its own can draw at most six. So the mixture has rank 6 here and not 8 to 16, and less to choose from.

Quality misses, and so do the ablations: these tasks are far from what the base knows, loss falls with the true rank (LoRA 2, 6, 16: 3.00,
2.59, 2.22), and the mixture lies between rank 2 and rank 6 at 2.86. With twelve rows to draw from, drawing five differs little from taking
all, which the variant that takes all twelve shows (2.82): on six layers diversity has nothing to restore. The differences between variants
are within the spread of three seeds. In memory, 84 mixtures stand against 15 adapters of rank 16: blocks of KV that are not filled take the
rest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ziggurat.catalog.claims import Claim, ClaimResult, Scale
from ziggurat.catalog.experiments import EXPERIMENTS
from ziggurat.catalog.mos_rig import MosRig, Trained, mos_config, variants
from ziggurat.catalog.serving import Judged, Limit
from ziggurat.programs.mos import MosShape, num_parameters

QUALITY = Judged(name="loss-over-lora-16", paper=None, unit="x, eight times fewer parameters", limit=Limit(high=1.02))
GAP = Judged(
    name="gap-to-lora-2-closed", paper=None, unit="share of the gap between LoRA 2 and LoRA 16", limit=Limit(low=0.3)
)
ABLATIONS = {
    "without-subsets": "subset selection",
    "without-dissociation": "pair dissociation",
    "without-sharding": "vector sharding",
    "without-private-rows": "shard privatisation",
}
HURTS = {
    name: Judged(name=name, paper=None, unit=f"x the loss of MoS, no {what}", limit=Limit(low=1.0))
    for name, what in ABLATIONS.items()
}
SHARING = Judged(name="pure-sharing-over-mos", paper=None, unit="x the loss", limit=Limit(low=1.0))
SCALING = Judged(name="random-scaling-over-mos", paper=None, unit="x the loss", limit=Limit(low=1.0))
STEP = Judged(name="step-over-lora-of-equal-rank", paper=None, unit="x", limit=Limit(high=1.15))
RESIDENT = Judged(name="adapters-in-the-same-memory", paper=8, unit="x LoRA 16", limit=Limit(low=7))
ASSEMBLE = Judged(name="assemble-one-adapter", paper=None, unit="ms at hidden 512, 12 layers", limit=Limit(high=2))
BYTES = Judged(
    name="llama2-7b-1000-users",
    paper=8,
    unit="x, LoRA 64 over MoS 8, fp16",
    limit=Limit(low=7.6, high=8.4),
    kind="derived",
)
JUDGED = (QUALITY, GAP, *HURTS.values(), SHARING, SCALING, STEP, RESIDENT, ASSEMBLE, BYTES)
TRAINED = (QUALITY, GAP, *HURTS.values(), SHARING, SCALING, STEP)
RATE = 5e-3
LLAMA2_7B = dict.fromkeys(("q", "k", "v", "o"), (4096, 4096)) | {
    "gate": (4096, 11008),
    "up": (4096, 11008),
    "down": (11008, 4096),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much a scale runs. Without seeds nothing is trained."""

    seeds: tuple[int, ...]
    num_steps: int
    num_adapters: int
    num_requests: int


SIZES: dict[Scale, Size] = {
    "quick": Size(seeds=(), num_steps=0, num_adapters=60, num_requests=60),
    "full": Size(seeds=(1, 2, 3), num_steps=200, num_adapters=1000, num_requests=400),
}
NewRig = Callable[[], MosRig]


class Mos:
    """The experiment.

    Args:
        new_rig: trains and serves; tests bring one without a model.
    """

    claims: tuple[Claim, ...] = tuple(judged.claim for judged in JUDGED)

    def __init__(self, new_rig: NewRig = MosRig) -> None:
        self._new_rig = new_rig

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """See `Experiment.run`."""
        size, rig = SIZES[scale], self._new_rig()
        results = self._training(rig, size, scale) if size.seeds else self._not_trained(scale)
        return [*results, *self._serving(rig, size, scale), seven_billion(scale)]

    def _not_trained(self, scale: Scale) -> list[ClaimResult]:
        return [judged.judge(None, "trained at full scale only: half an hour", scale) for judged in TRAINED]

    def _training(self, rig: MosRig, size: Size, scale: Scale) -> list[ClaimResult]:
        num_layers = int(rig.model_config()["num_hidden_layers"])
        found: dict[str, list[Trained]] = {name: [] for name in variants(num_layers)}
        for seed in size.seeds:  # seed by seed, so that all see the same machine
            for name, config in variants(num_layers).items():
                found[name].append(rig.train(config, seed, size.num_steps, 1024, RATE))
        loss = {name: statistics.fmean(run.loss for run in runs) for name, runs in found.items()}
        spread = {name: max(run.loss for run in runs) - min(run.loss for run in runs) for name, runs in found.items()}
        note = f"{size.num_steps} steps of 1,024 tokens, {len(size.seeds)} seeds, mean loss (spread): " + ", ".join(
            f"{name} {value:.3f} ({spread[name]:.3f})" for name, value in loss.items()
        )
        step = [mos.step_s / lora.step_s for mos, lora in zip(found["mos"], found["lora-6"], strict=True)]
        closed = (loss["lora-2"] - loss["mos"]) / (loss["lora-2"] - loss["lora-16"])
        return [
            QUALITY.judge(loss["mos"] / loss["lora-16"], note, scale),
            GAP.judge(closed, note, scale),
            *(judged.judge(loss[name] / loss["mos"], note, scale) for name, judged in HURTS.items()),
            SHARING.judge(loss["pure-sharing"] / loss["mos"], note, scale),
            SCALING.judge(loss["random-scaling"] / loss["mos"], note, scale),
            STEP.judge(statistics.median(step), "gathering the rows, forward and backward", scale),
        ]

    def _serving(self, rig: MosRig, size: Size, scale: Scale) -> list[ClaimResult]:
        lora = variants(int(rig.model_config()["num_hidden_layers"]))["lora-16"]
        counts = [rig.resident(config, size.num_adapters) for config in (mos_config(), lora)]
        hits, median_s = rig.paging(mos_config(), size.num_adapters, size.num_requests)
        lora_hits, lora_s = rig.paging(lora, size.num_adapters, size.num_requests)
        note = (
            f"{counts[0]} mixtures against {counts[1]} adapters of rank 16 in the same pool; {size.num_requests} requests for "
            f"{size.num_adapters} by Zipf's law: {hits:.0%} found theirs, {1e3 * median_s:.1f} ms (LoRA {lora_hits:.0%}, "
            f"{1e3 * lora_s:.1f} ms); a pool in blocks of KV loses what does not fill its last block"
        )
        assemble = "not needed to serve: the kernel reads the shards where they are, with the same bits"
        return [
            RESIDENT.judge(counts[0] / counts[1], note, scale),
            ASSEMBLE.judge(1e3 * rig.assemble_s(512, 12), assemble, scale),
        ]


def seven_billion(scale: Scale) -> ClaimResult:
    """Bytes of a thousand users' adapters for Llama-2-7B."""
    mos = 2 * num_parameters(MosShape(num_layers=32, rank=32, equivalent_rank=8), LLAMA2_7B)
    lora = 2 * num_parameters(MosShape(num_layers=32, rank=64, equivalent_rank=64), LLAMA2_7B)
    note = f"1,000 users: {lora / 1e6:.0f} GB of LoRA 64, {mos / 1e6:.0f} GB of MoS with equivalent rank 8"
    return BYTES.judge(lora / mos, note, scale)


@EXPERIMENTS.register("mos")
def build() -> Mos:
    """The experiment on this machine."""
    return Mos()
