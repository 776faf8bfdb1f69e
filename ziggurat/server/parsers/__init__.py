# SPDX-License-Identifier: Apache-2.0
"""Readers of what models write: tool calls by family, thoughts, and the message of one choice."""

from ziggurat.server.parsers.base import PARSERS, Call, Piece, ToolParser
from ziggurat.server.parsers.forced import NamedCall, RequiredCalls
from ziggurat.server.parsers.hermes import HermesParser
from ziggurat.server.parsers.llama3 import Llama3Parser
from ziggurat.server.parsers.message import MessageReader
from ziggurat.server.parsers.mistral import MistralParser
from ziggurat.server.parsers.thoughts import ThoughtReader

__all__ = [
    "PARSERS",
    "Call",
    "HermesParser",
    "Llama3Parser",
    "MessageReader",
    "MistralParser",
    "NamedCall",
    "Piece",
    "RequiredCalls",
    "ThoughtReader",
    "ToolParser",
]
