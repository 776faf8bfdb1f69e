# SPDX-License-Identifier: Apache-2.0
"""Tools, thoughts and structured answers through the routes, with a service that says what it is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server_client import CHAT, COMPLETIONS, HELLO, error_of, events, post, talk
from ziggurat.engine.families import THINK_OPEN, Family
from ziggurat.scheduling.sampling import SamplingParams

CALL = ["Let me", " see.\n", "<tool_", 'call>{"name": "f", "argu', 'ments": {"a": 1}}', "</tool_call>"]
QWEN = Family(has_tools=True, is_thinking=True, thinking_switch="enable_thinking")


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def ask(script: list[str] | None = None, family: Family | None = None, **body: Any) -> Any:
    """(answer, service) of a chat with tools f and g."""

    async def work(client: Any, service: Any) -> Any:
        service.script, service.family = script, family or Family()
        tools = {"tools": [function("f", description="does"), function("g", parameters={"type": "object"})]}
        response = await client.post(CHAT, json={"messages": HELLO, **tools, **body})
        assert response.status_code == 200, response.text
        return events(response.text) if body.get("stream") else response.json(), service

    return talk(work)


def test_auto_calls_whole() -> None:
    answer, service = ask(CALL)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see."
    (call,) = choice["message"]["tool_calls"]
    assert call["id"].startswith("call_") and call["type"] == "function"
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert service.requests[0].params == SamplingParams(), "nothing is forced"
    assert [tool["function"]["name"] for tool in service.template_options[0].tools] == ["f", "g"]


def test_auto_calls_streamed() -> None:
    (chunks, _) = ask(CALL, stream=True, n=2, logprobs=True)
    assert chunks[-1] == "[DONE]"
    for index in (0, 1):
        choices = [each for chunk in chunks[:-1] for each in chunk["choices"] if each["index"] == index]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        deltas = [choice["delta"] for choice in choices[1:]]
        assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
        calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
        assert calls[0]["function"] == {"name": "f", "arguments": ""} and calls[0]["id"]
        assert calls[1] == {"index": 0, "function": {"arguments": '{"a": 1}'}}
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["tool_calls"]
        num_logprobs = sum(len(choice["logprobs"]["content"]) for choice in choices if choice["logprobs"])
        assert num_logprobs == len(CALL)


def test_none_and_no_tools_read_nothing() -> None:
    text = "".join(CALL)
    for body in ({"tool_choice": "none"}, {"tools": []}, {"tools": None}):
        answer, service = ask(CALL, **body)
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": text, "refusal": None}
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert service.template_options[0].tools == []


def test_required_and_named_calls_are_held_to_the_schemas() -> None:
    script = ['[{"name":"g","param', 'eters":{}}]']
    answer, service = ask(script, tool_choice="required", parallel_tool_calls=False, max_tokens=50)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "g", "arguments": "{}"}
    ((spec, max_tokens, thoughts),) = service.specs
    assert (spec.kind, spec.param, max_tokens, thoughts) == ("json_schema", "tools", 50, "none")
    schema = json.loads(spec.text)
    assert (schema["minItems"], schema["maxItems"]) == (1, 1)
    assert [branch["properties"]["name"]["const"] for branch in schema["items"]["anyOf"]] == ["f", "g"]
    answer, service = ask(['{"x"', ":1}"], tool_choice=named("g"))
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "g", "arguments": '{"x":1}'}
    assert json.loads(service.specs[0][0].text) == {"type": "object"}
    assert service.requests[0].params.logits_mask is not None


def test_allowed_tools() -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("g")]}}
    _, service = ask(['[{"name":"g","parameters":{}}]'], tool_choice=allowed)
    schema = json.loads(service.specs[0][0].text)
    assert [branch["properties"]["name"]["const"] for branch in schema["items"]["anyOf"]] == ["g"]
    allowed["allowed_tools"]["mode"] = "auto"  # type: ignore[index]
    _, service = ask(CALL, tool_choice=allowed)
    assert not service.specs and len(service.template_options[0].tools) == 1


def test_one_call_at_a_time() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 3
    answer, _ = ask([text], parallel_tool_calls=False)
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
    answer, _ = ask([text])
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 3


def test_strict_functions_and_a_schema_beside_tools() -> None:
    strict = [function("f", strict=True), function("g")]
    answer, service = ask(CALL, tools=strict)
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert (service.specs[0][0].kind, service.specs[0][0].param) == ("lark", "tools")
    _, service = ask(CALL, family=Family(tool_format="llama3_json"), tools=strict)
    assert not service.specs
    answer, service = ask(['{"a":', "1}"], response_format={"type": "json_object"})
    assert answer["choices"][0]["message"]["content"] == '{"a":1}'
    assert (service.specs[0][0].kind, service.specs[0][0].param) == ("lark", "response_format")
    body = {"messages": HELLO, "tools": strict, "response_format": {"type": "json_object"}}

    async def work(client: Any, service: Any) -> Any:
        service.family = Family(tool_format="mistral")
        return await client.post(CHAT, json=body)

    assert error_of(talk(work), 501)["param"] == "response_format"


def test_mistral_shows_its_marks_and_has_short_ids() -> None:
    family = Family(tool_format="mistral", has_tools=True)
    answer, service = ask(['[TOOL_CALLS][{"name": "f", "arguments": {}}]'], family)
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert len(call["id"]) == 9 and call["id"].isalnum()
    assert service.requests[0].params.skip_special_tokens is False
    _, service = ask(["x"], family, skip_special_tokens=True)
    assert service.requests[0].params.skip_special_tokens is True


def test_thoughts_whole_and_streamed() -> None:
    script = ["<think>\nhm", ", so\n</think>", "\n\nFour."]
    answer, _ = ask(script, QWEN)
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm, so", "Four.")
    chunks, _ = ask(script, QWEN, stream=True)
    deltas = [choice["delta"] for chunk in chunks[:-1] for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm, so"
    assert "".join(delta.get("content", "") for delta in deltas) == "Four."
    answer, _ = ask(script, QWEN, include_reasoning=False)
    assert "reasoning_content" not in answer["choices"][0]["message"]


def test_thoughts_that_the_prompt_opens_or_closes() -> None:
    for tail, expected in ((THINK_OPEN, "opened"), ("<think>\n\n</think>", "none"), ("", "expected")):
        messages = [*HELLO, {"role": "assistant", "content": tail}]
        body = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, "tools": None}
        answer, service = ask(["hm</think>Four."], QWEN, **body, response_format={"type": "json_object"})
        assert service.specs[0][2] == expected
        if tail == THINK_OPEN:
            assert answer["choices"][0]["message"]["reasoning_content"] == "hm"


def test_reasoning_effort() -> None:
    def variables(family: Family, **body: Any) -> Any:
        return ask(["x"], family, **body)[1].template_options[0].variables

    assert variables(QWEN, reasoning_effort="none") == {"enable_thinking": False}
    assert variables(QWEN, reasoning_effort="high") == {"enable_thinking": True}
    kwargs = {"enable_thinking": True, "x": [1]}
    assert variables(QWEN, reasoning_effort="none", chat_template_kwargs=kwargs) == kwargs
    assert variables(Family(has_effort=True), reasoning_effort="low") == {"reasoning_effort": "low"}
    assert variables(Family(), reasoning_effort="none") == {}
    error = error_of(post(CHAT, {"messages": HELLO, "reasoning_effort": "low"}), 501)
    assert error["param"] == "reasoning_effort"


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "kind", "text", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type":"object"}', "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            "json_schema",
            json.dumps(SCHEMA, separators=(",", ":")),
            "response_format",
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", json.dumps(SCHEMA, separators=(",", ":")), None),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, "json_schema", '{"type":"null"}', None),
        ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type":"object"}', None),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", None),
        ({"structured_outputs": {"choice": ["a", "é"]}}, "choice", '["a","é"]', None),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"', None),
        ({"guided_json": SCHEMA}, "json_schema", json.dumps(SCHEMA, separators=(",", ":")), "guided_json"),
        ({"guided_regex": "b"}, "regex", "b", "guided_regex"),
        ({"guided_choice": ["a"]}, "choice", '["a"]', "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"', "guided_grammar"),
    ],
)
def test_every_spelling_of_a_language(fields: dict[str, Any], kind: str, text: str, param: str | None) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "x"})):

        async def work(client: Any, service: Any, path: str = path, body: Any = body) -> Any:
            response = await client.post(path, json={**body, **fields, "max_tokens": 9})
            assert response.status_code == 200, response.text
            return service

        service = talk(work)
        ((spec, max_tokens, _),) = service.specs
        assert (spec.kind, spec.text, spec.param, max_tokens) == (kind, text, param or "structured_outputs", 9)
        assert service.requests[0].params.logits_mask is not None


def test_text_asks_for_nothing() -> None:
    async def work(client: Any, service: Any) -> Any:
        await client.post(CHAT, json={"messages": HELLO, "response_format": {"type": "text"}})
        return service

    service = talk(work)
    assert not service.specs and service.requests[0].params.logits_mask is None


NESTED = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"response_format": {"type": "json"}}, 400, "response_format"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, 400, None),
        ({"structured_outputs": {}}, 400, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, 400, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, 400, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, 501, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, 400, "structured_outputs"),
        ({"guided_json": NESTED}, 400, "guided_json"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, 400, "guided_regex"),
        ({"guided_regex": "a", "min_tokens": 3}, 400, "min_tokens"),
        ({"tool_choice": "required"}, 400, "tool_choice"),
        ({"tools": [function("f")], "tool_choice": named("g")}, 400, "tool_choice"),
        ({"tools": [function("f"), function("f")]}, 400, "tools"),
        ({"tools": [function("f")], "tool_choice": "required", "min_tokens": 2}, 400, "min_tokens"),
        ({"tools": [function("f")], "tool_choice": "required", "guided_json": {}}, 501, "guided_json"),
        ({"tools": [function("f")], "guided_regex": "a"}, 501, "guided_regex"),
        ({"tools": [function("f", strict=True)], "min_tokens": 2}, 400, "min_tokens"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, 501, "tools.0"),
        ({"tools": [function("a b")]}, 400, "tools.0.function.name"),
        ({"tools": [{"type": "function"}]}, 400, "tools.0.function"),
        ({"continue_final_message": True}, 400, "continue_final_message"),
        ({"chat_template_kwargs": {"tools": []}}, 400, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, 400, "chat_template_kwargs"),
        ({"reasoning_effort": "huge"}, 400, "reasoning_effort"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], status: int, param: str | None) -> None:
    error = error_of(post(CHAT, {"messages": HELLO, **fields}), status)
    assert param is None or error["param"] == param, error
