# SPDX-License-Identifier: Apache-2.0
"""Prompts and masks of chats from a real tokenizer and templates written like Qwen 3's, over an engine without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import ziggurat
from tests.unit.engine.engine_fakes import FakeEngine
from ziggurat.engine.chat_template import ChatTemplate
from ziggurat.engine.closing import first_tokens
from ziggurat.engine.grammar import GrammarMask, GrammarSpec
from ziggurat.engine.interface import ModelInfo
from ziggurat.engine.thinking import ThinkFirst
from ziggurat.engine.tokenizer import Tokenizer
from ziggurat.server.conversation import converse, template_options
from ziggurat.server.engine_service import EngineService
from ziggurat.server.schemas import ChatRequest

FOLDER = Path(ziggurat.__file__).parent / "assets" / "embedded"
PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
QWEN = (
    "{% if tools %}<|system|># Tools <tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools> use <tool_call>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.tool_calls %}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENING = PLAIN.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}{# </think> #}")
TOOLS = [{"type": "function", "function": {"name": "f", "strict": False, "description": "does"}}]


class Engine(FakeEngine):
    """With the embedded tokenizer, to which the marks of thoughts were added, and a template."""

    def __init__(self, template: str) -> None:
        super().__init__()
        backend = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        backend.add_tokens(["<think>", "</think>"])
        self.tokenizer: Any = Tokenizer(backend, {"eos_token": "<|turn|>"})
        self.chat_template: Any = ChatTemplate(template, {})
        names = ("path", "architecture", "num_parameters", "weight_format", "kv_format")
        facts: dict[str, Any] = {name: getattr(self.model, name) for name in names}
        self.model = ModelInfo(name="q", vocab_size=1026, max_model_len=400, eos_ids=(5,), **facts)


def with_service(template: str, work: Callable[[EngineService], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        service = EngineService(Engine(template))  # type: ignore[arg-type]
        try:
            return await work(service)
        finally:
            await service.close()

    return asyncio.run(run())


def prompt_of(template: str, **body: Any) -> str:
    async def work(service: EngineService) -> str:
        request = ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **body})
        messages = [turn.for_template() for turn in request.messages]
        ids = service.encode_chat(messages, template_options(request, service.family))
        return service.decode(ids, skip_special_tokens=False)

    return str(with_service(template, work))


def test_tools_in_the_prompt() -> None:
    shown = prompt_of(QWEN, tools=TOOLS)
    assert '"name": "f"' in shown and "strict" not in shown and shown.startswith("<|system|># Tools")
    assert "Tools" not in prompt_of(QWEN, tools=TOOLS, tool_choice="none")
    written = prompt_of(PLAIN, tools=TOOLS)
    assert written.startswith("<|system|>You may call functions.") and '{"name": "f", "description": "does"}' in written
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "42", "tool_call_id": "1"}]
    for template in (QWEN, PLAIN):
        text = prompt_of(template, messages=[{"role": "user", "content": "hi"}, *turns])
        assert '"arguments": {"a": 1}' in text and "42" in text


def test_thinking_is_switched_by_the_template_and_by_effort() -> None:
    assert prompt_of(QWEN).endswith("<|assistant|>")
    for body in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        assert prompt_of(QWEN, **body).endswith("<think>\n\n</think>\n\n")
    goes_on = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    assert prompt_of(QWEN, messages=goes_on, continue_final_message=True, add_generation_prompt=False).endswith("Well,")


@pytest.mark.parametrize(
    ("template", "body", "thoughts", "kind"),
    [
        (QWEN, {}, "expected", ThinkFirst),
        (QWEN, {"chat_template_kwargs": {"enable_thinking": False}}, "none", GrammarMask),
        (OPENING, {}, "opened", ThinkFirst),
        (PLAIN, {}, "none", GrammarMask),
    ],
)
def test_a_structured_answer_stands_behind_the_thoughts(template: str, body: Any, thoughts: str, kind: type) -> None:
    async def work(service: EngineService) -> None:
        fields = {"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_object"}, **body}
        request = ChatRequest.model_validate(fields)
        options = template_options(request, service.family)
        ids = service.encode_chat([turn.for_template() for turn in request.messages], options)
        conversation = await converse(service, request, ids)
        assert (conversation.thoughts, type(conversation.mask)) == (thoughts, kind)
        assert conversation.mask is not None
        open_id, close_id, brace_id = (
            service.encode(mark, add_special_tokens=False)[0] for mark in ("<think>", "</think>", "{")
        )
        state, mask = conversation.mask.start(ids), conversation.mask
        if thoughts == "expected":
            assert first_tokens(mask.mask(state), 9) == [open_id]
            state = mask.advance(state, open_id)
        if thoughts != "none":
            state = mask.advance(state, close_id)
        assert brace_id in first_tokens(mask.mask(state), 1026)
        assert service.encode("a", add_special_tokens=False)[0] not in first_tokens(mask.mask(state), 1026)

    with_service(template, work)


def test_compiled_once_for_all_requests() -> None:
    async def work(service: EngineService) -> None:
        spec = GrammarSpec("json_schema", json.dumps({"const": 1}))
        for _ in range(3):
            await service.compile_grammar(spec, 9, "none")
        assert service._grammars is not None and service._grammars.num_compiled == 1

    with_service(PLAIN, work)
