# SPDX-License-Identifier: Apache-2.0
"""Request fields: honoured, refused by name, or unknown; none is ignored silently."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from tests.server_client import CHAT, COMPLETIONS, HELLO, error_of, post, talk
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.server.fields import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED
from ziggurat.server.schemas import ChatRequest, CompletionRequest


def params_of(path: str, body: dict[str, Any], **settings: Any) -> SamplingParams:
    """What the engine gets for a body."""

    async def work(client: Any, service: Any) -> SamplingParams:
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        return service.requests[0].params

    return talk(work, **settings)


def test_every_field_of_the_official_client_is_known() -> None:
    chat = set(chat_params.CompletionCreateParamsBase.__annotations__)
    completion = set(completion_params.CompletionCreateParamsBase.__annotations__)
    assert chat <= {*ChatRequest.model_fields, *CHAT_UNSUPPORTED, "stream"}
    assert completion <= {*CompletionRequest.model_fields, *COMPLETION_UNSUPPORTED, "stream"}


# A value that asks for something, for every field that the official client can send and that is not built.
ASKED = {
    "audio": {"voice": "alloy", "format": "wav"},
    "function_call": "auto",
    "functions": [{"name": "f", "parameters": {}}],
    "modalities": ["text", "audio"],
    "moderation": {"model": "m"},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {"mode": "explicit"},
    "service_tier": "priority",
    "verbosity": "high",
    "web_search_options": {},
}


def test_what_the_official_client_can_send_is_honoured_or_refused_by_name() -> None:
    """A new field of the client, or one that is taken off a table, fails here until somebody says what it does."""
    client = set(chat_params.CompletionCreateParamsBase.__annotations__)
    assert client - set(ChatRequest.model_fields) == set(ASKED)
    for name, value in ASKED.items():
        error = error_of(post(CHAT, {"messages": HELLO, name: value}), 501)
        assert (error["code"], error["param"]) == (name, name)
    client = set(completion_params.CompletionCreateParamsBase.__annotations__)
    assert client - set(CompletionRequest.model_fields) == {"suffix"}


@pytest.mark.parametrize(
    "field",
    [
        "top_k",
        "min_p",
        "repetition_penalty",
        "stop_token_ids",
        "include_stop_str_in_output",
        "ignore_eos",
        "min_tokens",
        "skip_special_tokens",
        "truncate_prompt_tokens",
        "prompt_logprobs",
        "allowed_token_ids",
        "bad_words",
        "echo",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template_kwargs",
        "structured_outputs",
        "priority",
        "request_id",
        "session_id",
        "return_token_ids",
        "cache_salt",
        "kv_transfer_params",
    ],
)
def test_every_extra_of_vllm_is_known(field: str) -> None:
    assert field in ChatRequest.model_fields or field in CHAT_UNSUPPORTED


def test_sampling_fields_reach_the_engine() -> None:
    body = {
        "messages": HELLO,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"257": -3, "258": 4.5},
        "logprobs": True,
        "top_logprobs": 4,
        "max_completion_tokens": 7,
        "min_tokens": 2,
        "n": 2,
        "seed": 11,
        "stop": "zz",
        "stop_token_ids": [999],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 9,
        "min_p": 0.01,
    }
    assert params_of(CHAT, body) == SamplingParams(
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={257: -3.0, 258: 4.5},
        logprobs=4,
        max_tokens=7,
        min_tokens=2,
        n=2,
        seed=11,
        stop=("zz",),
        stop_token_ids=(999,),
        include_stop_str_in_output=True,
        ignore_eos=True,
        skip_special_tokens=False,
        temperature=0.25,
        top_p=0.5,
        top_k=9,
        min_p=0.01,
    )


def test_null_means_not_given() -> None:
    names = set(ChatRequest.model_fields) - {"messages"} | set(CHAT_UNSUPPORTED)
    assert params_of(CHAT, {"messages": HELLO, **dict.fromkeys(names)}) == SamplingParams()


def test_defaults_are_the_request_then_the_model_then_openai() -> None:
    defaults = {"temperature": 0.6, "top_k": 20, "max_new_tokens": 5}
    assert params_of(CHAT, {"messages": HELLO}, default_sampling=defaults) == SamplingParams(temperature=0.6, top_k=20)
    body = {"messages": HELLO, "temperature": 0}
    assert params_of(CHAT, body, default_sampling=defaults) == SamplingParams(temperature=0, top_k=20)
    assert params_of(COMPLETIONS, {"prompt": "x"}).max_tokens == 16


def test_priority_salt_and_id_reach_the_engine() -> None:
    async def work(client: Any, service: Any) -> Any:
        body = {"prompt": "x", "priority": -3, "cache_salt": "tenant", "request_id": "mine"}
        return await client.post(COMPLETIONS, json=body), service.requests[0]

    response, request = talk(work)
    assert response.json()["id"] == "cmpl-mine"
    assert (request.request_id, request.priority, request.cache_salt) == ("cmpl-mine", -3, "tenant")


def test_the_end_of_a_prompt_and_special_tokens() -> None:
    async def work(client: Any, service: Any) -> Any:
        service.has_bos = True
        for body in ({}, {"add_special_tokens": False}, {"truncate_prompt_tokens": 2, "echo": True}):
            answer = await client.post(COMPLETIONS, json={"prompt": "abc", "max_tokens": 1, **body})
        await client.post(CHAT, json={"messages": HELLO, "truncate_prompt_tokens": 11, "add_special_tokens": False})
        return [service.decode(each.prompt_ids) for each in service.requests], answer.json()["choices"][0]["text"]

    prompts, text = talk(work)
    assert prompts == ["abc", "abc", "bc", "<assistant>"] and text.startswith("bc")


def test_allowed_tokens_become_a_mask() -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (COMPLETIONS, {"prompt": "x"})):
        params = params_of(path, {**body, "allowed_token_ids": [3, 9]})
        assert params.logits_mask is not None
        bits = params.logits_mask.mask(params.logits_mask.start([]))
        assert [index for index in range(8 * len(bits)) if bits[index >> 3] >> (index & 7) & 1] == [3, 9]
        for wrong in ([-1], [10**6], []):
            error = error_of(post(path, {**body, "allowed_token_ids": wrong}), 400)
            assert error["param"] == "allowed_token_ids"
        error = error_of(post(path, {**body, "allowed_token_ids": [3], "guided_regex": "a"}), 400)
        assert error["param"] == "allowed_token_ids"


@pytest.mark.parametrize("name", ["user", "store", "metadata", "safety_identifier", "prompt_cache_key"])
def test_bookkeeping_is_accepted(name: str) -> None:
    value = {"store": True, "metadata": {"a": "b"}}.get(name, "x")
    assert post(CHAT, {"messages": HELLO, name: value}).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reasoning_effort", "high"),
        ("kv_transfer_params", {"a": 1}),
        ("guided_whitespace_pattern", "x"),
        ("functions", [{"name": "f"}]),
        ("echo", True),
        ("bad_words", ["x"]),
        ("modalities", ["text", "audio"]),
    ],
)
def test_known_but_not_built_is_501_by_name(name: str, value: Any) -> None:
    error = error_of(post(CHAT, {"messages": HELLO, name: value}), 501)
    assert (error["type"], error["code"], error["param"]) == ("not_implemented_error", name, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
        ("parallel_tool_calls", True),
        ("skip_special_tokens", True),
        ("modalities", ["text"]),
    ],
)
def test_a_field_that_asks_for_nothing_passes(name: str, value: Any) -> None:
    assert post(CHAT, {"messages": HELLO, name: value}).status_code == 200


def test_completions_refuse_suffix_and_chat_refuses_best_of() -> None:
    assert error_of(post(COMPLETIONS, {"prompt": "x", "suffix": "end"}), 501)["code"] == "suffix"
    assert error_of(post(CHAT, {"messages": HELLO, "best_of": 2}), 501)["code"] == "best_of"


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (COMPLETIONS, {"best_of": 1, "n": 2}, "best_of must be at least 2 and at most 128, got 1"),
        (COMPLETIONS, {"best_of": 129}, "best_of must be at least 1 and at most 128, got 129"),
        (COMPLETIONS, {"best_of": 3, "n": 2, "stream": True}, "best_of 3 with n 2 cannot be streamed"),
        (COMPLETIONS, {"prompt": ["a", "b"], "best_of": 65}, "prompts times n or best_of), got 130"),
        (COMPLETIONS, {"prompt_logprobs": 21}, "prompt_logprobs must be at least 0 and at most 20, got 21"),
        (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs is not available when stream is true"),
        (CHAT, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs is not available when stream is true"),
        (CHAT, {"prompt_logprobs": -1}, "prompt_logprobs must be at least 0"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens must be at least 1"),
        (CHAT, {"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_what_cannot_be_scored_or_ranked(path: str, fields: dict[str, Any], message: str) -> None:
    body = {"prompt": "x"} if path == COMPLETIONS else {"messages": HELLO}
    assert message in error_of(post(path, {**body, **fields}), 400)["message"]


@pytest.mark.parametrize(
    ("path", "body", "hint"),
    [
        (CHAT, {"messages": HELLO, "temprature": 1}, "temperature"),
        (CHAT, {"messages": HELLO, "max_new_tokens": 1}, "max_tokens"),
        (COMPLETIONS, {"prompt": "x", "messages": HELLO}, None),
        (COMPLETIONS, {"prompt": "x", "tool": []}, None),
    ],
)
def test_unknown_fields_name_the_nearest(path: str, body: dict[str, Any], hint: str | None) -> None:
    error = error_of(post(path, body), 400)
    unknown = list(body)[-1]
    assert (error["code"], error["param"]) == ("unknown_field", unknown)
    assert hint is None or repr(hint) in error["message"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x", "y" * 4097]}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"7": 101}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(4097)}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"seed": "7"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "content": "refused by the template"}]}, "messages"),
        ({"request_id": "with space"}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
    ],
)
def test_wrong_values_name_the_field(changes: dict[str, Any], param: str) -> None:
    error = error_of(post(CHAT, {"messages": HELLO, **changes}), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error


@pytest.mark.parametrize(
    "prompt", ["", [], [""], ["a", ""], [[]], [1, "a"], ["a", [1]], {"a": 1}, 7, None, [-1], [True]]
)
def test_wrong_prompts_are_refused(prompt: Any) -> None:
    assert error_of(post(COMPLETIONS, {"prompt": prompt}), 400)["param"].split(".")[0] == "prompt"


def test_missing_required_fields_are_named() -> None:
    assert error_of(post(CHAT, {}), 400)["param"] == "messages"
    assert error_of(post(COMPLETIONS, {}), 400)["param"] == "prompt"


def test_too_many_continuations_of_many_prompts() -> None:
    assert "129" in error_of(post(COMPLETIONS, {"prompt": ["a"] * 43, "n": 3}), 400)["message"]


def turns_of(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return [turn.for_template() for turn in ChatRequest(messages=list(messages)).messages]  # type: ignore[arg-type]


def test_tool_turns_reach_the_template_with_arguments_as_objects() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    asked, answered = turns_of(
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    )
    function = {"name": "add", "arguments": {"a": 1}}
    assert asked["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]
    assert (asked["content"], asked["reasoning_content"]) == (None, "hm")
    assert answered == {"role": "tool", "content": "42", "tool_call_id": "c1"}


@pytest.mark.parametrize(
    ("turn", "status", "text"),
    [
        ({"role": "function", "name": "f", "content": "x"}, 501, "use tools"),
        ({"role": "tool", "content": "42"}, 400, "tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, 400, "role"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}, 400, "object"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, 400, "JSON text"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, 400, "function"),
    ],
)
def test_wrong_tool_turns(turn: dict[str, Any], status: int, text: str) -> None:
    error = error_of(post(CHAT, {"messages": [*HELLO, turn]}), status)
    assert text in error["message"] and error["param"].startswith("messages.1")


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answer = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    assert post(CHAT, {"messages": [*HELLO, answer, *HELLO]}).status_code == 200


def test_content_parts_are_joined_and_developer_means_system() -> None:
    async def work(client: Any, service: Any) -> str:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
        await client.post(CHAT, json={"messages": messages})
        return service.decode(service.requests[0].prompt_ids)

    assert talk(work) == "<system>be brief<user>ab<assistant>"
