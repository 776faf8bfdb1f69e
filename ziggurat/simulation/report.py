# SPDX-License-Identifier: Apache-2.0
"""From a finished simulation to the keys of ``bench serve``, and what only a simulation knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ziggurat.hardware.compiled import NS_PER_S
from ziggurat.simulation.cluster import Cluster, StepSpan
from ziggurat.simulation.scenario import Scenario
from ziggurat.workload.metrics import summarize
from ziggurat.workload.records import RequestRecord


def simulation_result(scenario: Scenario, cluster: Cluster, records: Sequence[RequestRecord]) -> dict[str, Any]:
    """The summary of all requests, then what the instances did. Every figure is simulated."""
    summary = summarize(records, goodput=scenario.slo.goodput or None)
    duration_s = summary["duration"] or 0.0
    instances = [
        {
            "instance": each.number,
            "num_requests": each.num_requests,
            "num_steps": each.num_steps,
            "busy_s": each.busy_ns / NS_PER_S,
            "utilization": each.busy_ns / NS_PER_S / duration_s if duration_s else 0.0,
            "num_preemptions": each.core.counters.preemptions,
            "prefix_hit_tokens": each.core.counters.prefix_hit_tokens,
        }
        for each in cluster.instances
    ]
    return {
        "kind": "simulated",
        "backend": "ziggurat-simulated",
        "model_id": scenario.model,
        "device": scenario.device,
        "tensor_parallel": scenario.layout.tensor_parallel,
        "num_instances": scenario.instances,
        "planner": scenario.planner,
        "dispatcher": scenario.dispatcher,
        "kv_blocks_per_instance": cluster.num_blocks,
        "seed": scenario.seed,
        **summary,
        "num_steps": sum(each.num_steps for each in cluster.instances),
        "instances": instances,
        "records_digest": records_digest(records),
    }


def record_line(record: RequestRecord) -> str:
    """One record as JSON: times in seconds."""
    return json.dumps(
        {
            "id": record.id,
            "arrival_s": record.arrival_s,
            "num_prompt_tokens": record.num_prompt_tokens,
            "num_cached_tokens": record.num_cached_tokens,
            "num_output_tokens": record.num_output_tokens,
            "first_scheduled_s": record.first_scheduled_s,
            "ttft_s": record.ttft_s,
            "tpot_s": record.tpot_s,
            "finish_s": record.finish_s,
            "reason": record.reason,
            "num_preemptions": record.num_preemptions,
            "error": record.error,
        },
        separators=(",", ":"),
    )


def records_digest(records: Sequence[RequestRecord]) -> str:
    """A fingerprint of every record: equal digests, equal runs."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(record_line(record).encode() + b"\n")
    return digest.hexdigest()


def timeline_event(span: StepSpan) -> dict[str, Any]:
    """A step as an event of Chrome's trace format (chrome://tracing, Perfetto). Times are microseconds."""
    return {
        "name": f"{span.num_tokens} tokens",
        "ph": "X",
        "pid": 0,
        "tid": span.instance,
        "ts": span.start_ns / 1e3,
        "dur": (span.end_ns - span.start_ns) / 1e3,
        "args": {"tokens": span.num_tokens, "sequences": span.num_seqs},
    }
