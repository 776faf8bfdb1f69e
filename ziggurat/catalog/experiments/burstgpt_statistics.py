# SPDX-License-Identifier: Apache-2.0
"""The part of the BurstGPT experiment that needs no engine: fits of known laws, and generators against published figures.

Everything is generated; no trace is read but those written here. Published: quantiles of GPT-4 conversations as in Llumnix
(arXiv 2406.03243); Azure's hours of November 2023 (AzurePublicDataset).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ziggurat.catalog.serving import Judged, Limit
from ziggurat.workload import gamma
from ziggurat.workload.arrivals import Lengths, at_rate, make_arrivals
from ziggurat.workload.conditional import (
    AZURE_CODE_OUTPUT,
    AZURE_CODE_PROMPT,
    AZURE_CONVERSATION_OUTPUT,
    AZURE_CONVERSATION_PROMPT,
    GPT4_CONVERSATION_OUTPUT,
    GPT4_CONVERSATION_PROMPT,
    QuantileLengths,
)
from ziggurat.workload.traces.reading import TraceReader
from ziggurat.workload.traces.stats import TraceSummary
from ziggurat.workload.traces.writing import write_trace

Finding = tuple[float, str]

SHAPE = Judged(name="shape-recovery-20k", paper=None, unit="worst relative error of k", limit=Limit(high=0.05))
KS_TRUE = Judged(name="ks-true-law", paper=None, unit="seeds of 20 with p > 0.05", limit=Limit(low=17))
KS_FITTED = Judged(name="ks-fitted-bootstrap", paper=None, unit="seeds of 20 with p > 0.05", limit=Limit(low=17))
DEVIATION, TENTH = "worst relative deviation", Limit(high=0.1)
GPT4_PROMPT = Judged(name="gpt4-conversation-input-quantiles", paper=None, unit=DEVIATION, limit=TENTH, kind="derived")
GPT4_OUTPUT = Judged(name="gpt4-conversation-output-quantiles", paper=None, unit=DEVIATION, limit=TENTH, kind="derived")
AZURE_CONV = Judged(name="azure-conversation-figures", paper=None, unit=DEVIATION, limit=TENTH, kind="derived")
AZURE_CODE = Judged(name="azure-code-figures", paper=None, unit=DEVIATION, limit=TENTH, kind="derived")
AZURE_CV = Judged(
    name="azure-conversation-window-cv",
    paper="1.0 to 1.2",
    unit="median CV of gaps in 5 minutes",
    limit=Limit(low=1.0, high=1.2),
    kind="derived",
)
AZURE_CODE_CV = Judged(
    name="azure-code-whole-trace-cv", paper=13.2, unit="CV of gaps", limit=Limit(low=11.88, high=14.52), kind="derived"
)

NUM_SAMPLES = 20_000
LAWS = ((0.1, 5.0), (0.5, 2.0), (1.0, 1.0), (4.0, 0.25))
NUM_SEEDS = 20
NUM_FITTED, NUM_RESAMPLES = 500, 99
# The middle of what was published for windows of five minutes.
CONVERSATION_CV = 1.1


def shape_recovery() -> Finding:
    """Every law fitted by likelihood to 20,000 gaps."""
    errors = {}
    for seed, (shape, scale_s) in enumerate(LAWS):
        gaps = np.random.default_rng(seed).gamma(shape, scale_s, NUM_SAMPLES)
        errors[shape] = abs(gamma.fit_likelihood(gaps).shape / shape - 1)
    shown = ", ".join(f"k = {shape:g}: {error:.2%}" for shape, error in errors.items())
    return max(errors.values()), f"maximum likelihood on {NUM_SAMPLES:,} gaps each; {shown}"


def ks_true() -> Finding:
    """Samples against the law that they were drawn from, which was not fitted: Kolmogorov's distribution applies."""
    law = gamma.Gamma(shape=0.5, scale_s=2.0)
    samples = (np.random.default_rng(seed).gamma(law.shape, law.scale_s, NUM_SAMPLES) for seed in range(NUM_SEEDS))
    values = [gamma.ks_p_value(gamma.ks_distance(gaps, law), NUM_SAMPLES) for gaps in samples]
    note = f"k = 0.5, th = 2.0, {NUM_SAMPLES:,} gaps per seed; smallest p {min(values):.3f}"
    return float(sum(value > 0.05 for value in values)), note


def ks_fitted() -> Finding:
    """Samples against the law that was fitted to them: the distance is judged by bootstrap."""
    values = []
    for seed in range(NUM_SEEDS):
        rng = np.random.default_rng(seed)
        values.append(gamma.bootstrap_p_value(rng.gamma(0.5, 2.0, NUM_FITTED), rng, num_resamples=NUM_RESAMPLES)[1])
    note = f"k = 0.5, th = 2.0, {NUM_FITTED} gaps and {NUM_RESAMPLES} resamples per seed; smallest p {min(values):.3f}"
    return float(sum(value > 0.05 for value in values)), note


def quantiles(law: QuantileLengths, mean: float, published: Sequence[tuple[float, float]]) -> Finding:
    """20,000 drawn lengths against the published mean and quantiles."""
    rng = random.Random(0)
    drawn = [max(1, round(law.draw(rng))) for _ in range(NUM_SAMPLES)]
    found = [("mean", float(np.mean(drawn)), mean)]
    found += [(f"P{percent:g}", float(np.percentile(drawn, percent)), tokens) for percent, tokens in published]
    return worst(found)


def worst(found: Sequence[tuple[str, float, float]]) -> Finding:
    """The largest relative deviation of (name, ours, published), and all of them as a note."""
    shown = ", ".join(f"{name} {ours:.4g} ({theirs:.4g})" for name, ours, theirs in found)
    return max(abs(ours / theirs - 1) for _, ours, theirs in found), f"ours (published): {shown}"


def azure(
    lengths: Lengths, count: int, rate: float, cv: float, published: Sequence[tuple[str, str, float]]
) -> tuple[Finding, float, float]:
    """A generated hour, written in Azure's format, read back and summarised like any trace.

    Args:
        published: (key of `TraceSummary.as_dict`, figure of its spread, tokens).

    Returns:
        The deviations, the median CV of windows of five minutes, and the CV of all gaps.
    """
    arrivals = at_rate(make_arrivals(count, lengths, seed=1, burstiness=1 / cv**2, is_rate_exact=True), rate)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "azure.csv"
        write_trace(path, arrivals, "azure")
        summary = TraceSummary().add_all(TraceReader(path))
    found = summary.as_dict(window_s=300.0)
    rows = [("requests/s", float(found["request_rate_per_s"]), rate)]
    rows += [
        (f"{key.partition('_')[0]} {figure}", float(found[key][figure]), tokens) for key, figure, tokens in published
    ]
    deviation, note = worst(rows)
    window_cv = float(found["windows"]["gap_cv"]["p50"])
    return (deviation, f"generated, {count:,} requests; {note}"), window_cv, float(found["gap_cv"])


def _published(prompt: Sequence[float], output: Sequence[float]) -> list[tuple[str, str, float]]:
    """Mean, P50, P90, P99 of prompts and outputs."""
    figures = ("mean", "p50", "p90", "p99")
    return [
        (key, figure, tokens)
        for key, values in (("prompt_tokens", prompt), ("output_tokens", output))
        for figure, tokens in zip(figures, values, strict=True)
    ]


def azure_conversation() -> dict[Judged, Finding]:
    """The chat hour."""
    lengths = Lengths(prompt=AZURE_CONVERSATION_PROMPT.draw, output=AZURE_CONVERSATION_OUTPUT.draw)
    published = _published((1154.7, 1020, 2734, 4142), (211.1, 129, 424, 601))
    found, window_cv, _ = azure(lengths, 19_366, 5.53, CONVERSATION_CV, published)
    note = f"generated with a CV of {CONVERSATION_CV:g}, written, read back and measured window by window"
    return {AZURE_CONV: found, AZURE_CV: (window_cv, note)}


def azure_code() -> dict[Judged, Finding]:
    """The code hour. Its CV belongs to the whole trace, so it mixes the change of the rate with bursts."""
    lengths = Lengths(prompt=AZURE_CODE_PROMPT.draw, output=AZURE_CODE_OUTPUT.draw)
    published = _published((2047.8, 1469, 5186, 7436), (27.9, 13, 55, 249))
    found, _, whole_cv = azure(lengths, 8_819, 2.57, 13.2, published)
    # No likelihood here: at this CV most gaps are shorter than the microsecond to which dates are written.
    return {
        AZURE_CODE: found,
        AZURE_CODE_CV: (whole_cv, "generated with a CV of 13.2; moments of all gaps, as published"),
    }


SINGLE: dict[Judged, Callable[[], Finding]] = {
    SHAPE: shape_recovery,
    KS_TRUE: ks_true,
    KS_FITTED: ks_fitted,
    GPT4_PROMPT: lambda: quantiles(GPT4_CONVERSATION_PROMPT, 830, [(50, 582), (80, 1427), (95, 2345), (99, 3549)]),
    GPT4_OUTPUT: lambda: quantiles(GPT4_CONVERSATION_OUTPUT, 271, [(50, 243), (80, 434), (95, 669), (99, 964)]),
}
STATISTICS = (*SINGLE, AZURE_CONV, AZURE_CODE, AZURE_CV, AZURE_CODE_CV)


def statistics_findings() -> dict[Judged, Finding]:
    """Every clause that needs no engine."""
    return {**{judged: find() for judged, find in SINGLE.items()}, **azure_conversation(), **azure_code()}
