# SPDX-License-Identifier: Apache-2.0
"""``ziggurat recall KIND``: long-term memory in plain text, one folder, no server."""

from __future__ import annotations

from ziggurat.cli.kinds import Kinds

KINDS = Kinds(
    verb="recall",
    description="Remember and find again.",
    summaries={
        "add": "remember texts",
        "search": "the memories that answer best, and why",
        "show": "one memory: every text it had, what it was made from and what was made from it",
        "update": "replace a text; the old one stays in the history",
        "delete": "forget, so that it can be restored, or with --hard without a trace",
        "restore": "go back to an earlier text",
        "export": "write all memories as JSON lines",
        "import": "remember a file: JSON lines, chats, Markdown, LoCoMo",
        "stats": "counts, bytes, and how far search by meaning has come",
        "mcp": "serve memories to agents over the Model Context Protocol",
        "reindex": "make the index again from the log",
    },
)
parser = KINDS.parser
run = KINDS.run
