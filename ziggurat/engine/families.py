# SPDX-License-Identifier: Apache-2.0
"""How a family of models writes tool calls and thoughts, found out from its chat template; and tools for templates that know none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ToolFormat = Literal["hermes", "llama3_json", "mistral"]
Thoughts = Literal["none", "possible", "expected", "opened"]
"""Thoughts behind a prompt: not there; perhaps; the model opens them; the prompt has opened them."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_INSTRUCTION = """You may call functions. Their signatures:
<tools>
{tools}
</tools>
For each call write a JSON object with the function's name and arguments within <tool_call></tool_call>:
<tool_call>
{{"name": "<name>", "arguments": {{<arguments>}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a chat template says about its model.

    Attributes:
        tool_format: how calls are written.
        has_tools: the template shows tools; else `with_tools` writes them.
        is_thinking: the model may write ``<think> .. </think>`` before its answer.
        thinking_switch: the template's variable that turns thinking off, or None.
        has_effort: the template reads ``reasoning_effort``.
    """

    tool_format: ToolFormat = "hermes"
    has_tools: bool = False
    is_thinking: bool = False
    thinking_switch: str | None = None
    has_effort: bool = False


def family_of(template: str) -> Family:
    """The family of a template's source, by the markers it writes."""
    tool_format: ToolFormat = "hermes"
    if "[TOOL_CALLS]" in template:
        tool_format = "mistral"
    elif "<|python_tag|>" in template or ('"parameters":' in template and "ipython" in template):
        tool_format = "llama3_json"
    return Family(
        tool_format=tool_format,
        has_tools=re.search(r"\btools\b", template) is not None,
        is_thinking=THINK_CLOSE in template,
        thinking_switch="enable_thinking" if "enable_thinking" in template else None,
        has_effort="reasoning_effort" in template,
    )


def with_tools(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for a template that knows no tools: signatures in the system turn, calls and results as text (Hermes' form)."""
    turns = [_plain(turn) for turn in messages]
    if not tools:
        return turns
    text = _INSTRUCTION.format(tools="\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools))
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{text}"}, *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    if turn["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}
    calls = turn.get("tool_calls")
    if not calls:
        return dict(turn)
    texts = [turn["content"]] if turn.get("content") else []
    texts += [f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>" for call in calls]
    return {"role": turn["role"], "content": "\n".join(texts)}
