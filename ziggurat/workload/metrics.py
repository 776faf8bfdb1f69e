# SPDX-License-Identifier: Apache-2.0
"""From records to the figures people compare, under the key names of ``vllm bench serve``. The only place that does it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest
from ziggurat.workload.records import RequestRecord

Summary = dict[str, float | int | None]
GOODPUT_METRICS = ("ttft", "tpot", "e2el")


def percentile(values: Sequence[float], percent: float) -> float:
    """With linear interpolation between neighbours (numpy's default). ``values`` must not be empty."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarize(
    records: Sequence[RequestRecord],
    *,
    duration_s: float | None = None,
    goodput: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = (99,),
) -> Summary:
    """Throughput and latencies of a run.

    Latencies and token counts are those of requests that ended by themselves. Failed, aborted, refused and open requests have no
    latency, but stay in ``num_prompts``, ``failed`` and ``slo_attainment``, so that shedding load cannot look like speed. A figure
    without any sample is None, not 0.

    Args:
        duration_s: of the run; by default from the first arrival to the last ending.
        goodput: limits in ms per metric (``{"ttft": 200, "tpot": 50, "e2el": 2000}``); a request is good if it meets all of them.
            A limit on a metric that a request does not have (TPOT of a single token) is met.

    Raises:
        ConfigError: a goodput metric is unknown.
    """
    for name in goodput or {}:
        if name not in GOODPUT_METRICS:
            hint = nearest(name, list(GOODPUT_METRICS))
            raise ConfigError(f"unknown goodput metric {name!r}{hint or '.'} Known: {', '.join(GOODPUT_METRICS)}")
    done = [record for record in records if record.is_success]
    duration_s = _duration_s(records) if duration_s is None else duration_s
    num_input = sum(record.num_prompt_tokens for record in done)
    num_output = sum(record.num_output_tokens for record in done)
    num_good = sum(_is_good(record, goodput) for record in done) if goodput else None
    summary: Summary = {
        "num_prompts": len(records),
        "completed": len(done),
        "failed": len(records) - len(done),
        "duration": duration_s,
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "total_cached_tokens": sum(record.num_cached_tokens for record in done),
        "num_preemptions": sum(record.num_preemptions for record in records),
        "request_throughput": _rate(len(done), duration_s),
        "request_goodput": None if num_good is None else _rate(num_good, duration_s),
        "slo_attainment": None if num_good is None or not records else num_good / len(records),
        "output_throughput": _rate(num_output, duration_s),
        "total_token_throughput": _rate(num_input + num_output, duration_s),
        "max_output_tokens_per_s": _max_tokens_per_s(done),
        "max_concurrent_requests": _max_concurrent(records),
    }
    for name, values_s in _samples(done).items():
        summary |= _spread(name, values_s, percentiles)
    return summary


def _samples(records: Sequence[RequestRecord]) -> dict[str, list[float]]:
    return {
        "ttft": [value for record in records if (value := record.ttft_s) is not None],
        "tpot": [value for record in records if (value := record.tpot_s) is not None],
        "itl": [gap for record in records for gap in record.itl_s],
        "e2el": [value for record in records if (value := record.e2el_s) is not None],
        "queue": [value for record in records if (value := record.queue_s) is not None],
    }


def _spread(name: str, values_s: Sequence[float], percentiles: Iterable[float]) -> Summary:
    values_ms = [1000 * value for value in values_s]
    spread: Summary = {
        f"mean_{name}_ms": statistics.fmean(values_ms) if values_ms else None,
        f"median_{name}_ms": statistics.median(values_ms) if values_ms else None,
        f"std_{name}_ms": statistics.pstdev(values_ms) if values_ms else None,
    }
    for percent in percentiles:
        spread[f"p{percent:g}_{name}_ms"] = percentile(values_ms, percent) if values_ms else None
    return spread


def _rate(count: float, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None


def _duration_s(records: Sequence[RequestRecord]) -> float:
    if not records:
        return 0.0
    start_s = min(record.arrival_s for record in records)
    return max((record.finish_s for record in records if record.finish_s is not None), default=start_s) - start_s


def _is_good(record: RequestRecord, goodput: Mapping[str, float]) -> bool:
    values_s = {"ttft": record.ttft_s, "tpot": record.tpot_s, "e2el": record.e2el_s}
    return all((value := values_s[name]) is None or 1000 * value <= limit for name, limit in goodput.items())


def _max_tokens_per_s(records: Sequence[RequestRecord]) -> int:
    """The fullest of the seconds counted from the first arrival."""
    start_s = min((record.arrival_s for record in records), default=0.0)
    seconds = Counter(int(t_s - start_s) for record in records for row in record.token_times_s for t_s in row)
    return max(seconds.values(), default=0)


def _max_concurrent(records: Sequence[RequestRecord]) -> int:
    """The most requests that were open at one moment; one that ends when another arrives does not overlap it."""
    events = [(record.arrival_s, 1) for record in records]
    events += [(record.finish_s, -1) for record in records if record.finish_s is not None]
    peak = count = 0
    for _, change in sorted(events):
        count += change
        peak = max(peak, count)
    return peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Attainment:
    """Whether a run met its target, and by how much.

    Attributes:
        measured: what came out, by the names of `summarize`; None where there is no sample.
        limits: what was allowed, by the same names.
        num_failed: requests that did not end by themselves; with any, the target is not met.
    """

    measured: Mapping[str, float | None]
    limits: Mapping[str, float]
    num_failed: int = 0

    @property
    def is_met(self) -> bool:
        """Every limit is kept and nobody failed. A figure without a sample (one token has no gap) keeps any limit."""
        return self.num_failed == 0 and self.headroom >= 1

    @property
    def headroom(self) -> float:
        """The smallest of limit / measured; 1 is just met. Infinite without any sample."""
        ratios = [self.limits[name] / value for name, value in self.measured.items() if value is not None and value > 0]
        return min(ratios, default=inf)

    def explain(self) -> str:
        """``p99_itl_ms 312.4 (limit 100), 2 failed``."""
        parts = [
            f"{name} {'-' if value is None else format(value, '.4g')} (limit {self.limits[name]:.4g})"
            for name, value in self.measured.items()
        ]
        return ", ".join([*parts, *([f"{self.num_failed} failed"] if self.num_failed else [])])


def attainment(records: Sequence[RequestRecord], limits: Mapping[str, float]) -> Attainment:
    """A run against limits on figures of `summarize`: ``{"p99_itl_ms": 100, "median_queue_ms": 2000}``.

    Raises:
        ConfigError: no such figure, or a limit that is not above 0 (nobody could meet it).
    """
    percentiles = [float(name[1:].partition("_")[0]) for name in limits if _is_percentile(name)]
    summary = summarize(records, percentiles=percentiles)
    known = [name for name in summary if name.endswith("_ms")]
    for name, limit in limits.items():
        if name not in known:
            raise ConfigError(f"unknown target {name!r}{nearest(name, known) or '.'} Known: {', '.join(known)}")
        if not limit > 0:
            raise ConfigError(f"the target {name} must be above 0 ms, got {limit}: nobody could meet it")
    failed = summary["failed"]
    assert isinstance(failed, int)
    return Attainment(measured={name: summary[name] for name in limits}, limits=dict(limits), num_failed=failed)


def _is_percentile(name: str) -> bool:
    number = name[1:].partition("_")[0]
    return name.startswith("p") and number.replace(".", "", 1).isdigit() and 0 <= float(number) <= 100


def effective_throughput(
    records: Sequence[RequestRecord],
    *,
    duration_s: float | None = None,
    prompt_tokens_per_s: float = 512.0,
    generation_tokens_per_s: float = 4.0,
) -> float | None:
    """Requests per second that met DeepSpeed-FastGen's service level (arXiv 2401.08671); None without any time.

    A request is good if its first token came within ``prompt tokens / prompt_tokens_per_s`` and the exponential moving average of its
    generation rate never fell below ``generation_tokens_per_s``.
    """
    good = sum(
        record.is_success
        and record.ttft_s is not None
        and record.ttft_s <= record.num_prompt_tokens / prompt_tokens_per_s
        and slowest_rate(record) >= generation_tokens_per_s
        for record in records
    )
    return _rate(good, _duration_s(records) if duration_s is None else duration_s)


def slowest_rate(record: RequestRecord, *, weight: float = 0.1) -> float:
    """The lowest value, in tokens/s, of the moving average of a request's gaps; infinite without a gap.

    The average starts at the first gap and moves by ``weight`` of the difference with each further one.
    """
    slowest_gap_s = average_s = 0.0
    for index, gap_s in enumerate(record.itl_s):
        average_s = gap_s if index == 0 else average_s + weight * (gap_s - average_s)
        slowest_gap_s = max(slowest_gap_s, average_s)
    return 1 / slowest_gap_s if slowest_gap_s > 0 else inf
