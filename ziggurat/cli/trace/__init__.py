# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace KIND FILE``: files of requests that were really made, of any documented format. Loads no torch."""

from __future__ import annotations

from ziggurat.cli.kinds import Kinds

KINDS = Kinds(
    verb="trace",
    description="Look at traces and change them.",
    summaries={
        "convert": "write a trace in another format",
        "stats": "rates, burstiness, lengths, sessions, shared beginnings",
        "sample": "a part of a trace, thinned, faster or drawn anew",
        "cache": "what a prefix cache of a given size would have found",
        "generate": "a trace from published figures, without any data",
    },
)
parser = KINDS.parser
run = KINDS.run
