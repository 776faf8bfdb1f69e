# SPDX-License-Identifier: Apache-2.0
"""``ziggurat bench KIND``: measurements by vLLM's names, of an engine in this process or of a server over HTTP."""

from __future__ import annotations

from ziggurat.cli.kinds import Kinds

KINDS = Kinds(
    verb="bench",
    description="Measure.",
    summaries={
        "latency": "seconds of one batch, repeated",
        "throughput": "all requests at once: requests and tokens per second",
        "serve": "requests at a rate, or from clients that wait: TTFT, TPOT, ITL, E2EL",
        "sweep": "the highest request rate that meets a target",
        "quality": "what number formats cost: perplexity, agreement, right answers",
        "recall": "how well evidence is found in long conversations",
        "peers": "the same work on other engines, in the same run",
    },
)
parser = KINDS.parser
run = KINDS.run
