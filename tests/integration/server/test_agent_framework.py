# SPDX-License-Identifier: Apache-2.0
"""An agent framework's OpenAI class, LangChain's `ChatOpenAI`, against the real engine: nothing but its address is ours."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pydantic
import pytest

from tests.server_process import ServerProcess, engine_server

if importlib.util.find_spec("langchain_openai") is None:
    pytest.skip("langchain-openai is not installed: pip install -e '.[test]'", allow_module_level=True)
if TYPE_CHECKING:
    from langchain_openai import ChatOpenAI

QUESTION = "Write something about a town."


class Weather(pydantic.BaseModel):
    """The weather of a town."""

    town: str = pydantic.Field(max_length=20)
    degrees: int = pydantic.Field(ge=-50, le=50)


def look_up(town: str, days: int) -> str:
    """Looks up the weather of a town.

    Args:
        town: its name.
        days: how many of them.
    """
    return f"{town}: rain for {days} days"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with engine_server("embedded", memory="256MiB", max_num_seqs=8, threads=1) as process:
        yield process


@pytest.fixture
def model(server: ServerProcess) -> ChatOpenAI:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its imports
        from langchain_openai import ChatOpenAI

    settings: dict[str, Any] = {"max_tokens": 120, "temperature": 0.7, "seed": 3, "max_retries": 0, "timeout": 120}
    return ChatOpenAI(model="embedded", base_url=f"{server.url}/v1", api_key="unused", stream_usage=True, **settings)


def test_chat_and_a_conversation(model: ChatOpenAI) -> None:
    first = model.invoke([("system", "Be short."), ("human", QUESTION)])
    assert first.content and first.response_metadata["finish_reason"] in ("stop", "length")
    assert first.usage_metadata is not None
    assert first.usage_metadata["output_tokens"] > 0
    second = model.invoke([("human", QUESTION), first, ("human", "And then?")])
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["output_tokens"]


def test_a_stream_says_what_the_whole_answer_says(model: ChatOpenAI) -> None:
    whole = model.invoke(QUESTION)
    chunks = list(model.stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    assert len(chunks) > 5
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [whole.usage_metadata]


def test_a_tool_call_and_its_result(model: ChatOpenAI) -> None:
    for choice in ("look_up", "required", "any"):
        asked = model.bind_tools([look_up], tool_choice=choice).invoke(QUESTION)
        call = asked.tool_calls[0]
        assert call["name"] == "look_up" and not asked.invalid_tool_calls
        assert isinstance(call["args"]["town"], str) and isinstance(call["args"]["days"], int)
    result = {"role": "tool", "tool_call_id": call["id"], "content": look_up(**call["args"])}
    answered = model.bind_tools([look_up], tool_choice="none").invoke([("human", QUESTION), asked, result])
    assert answered.content and not answered.tool_calls


def test_tool_calls_in_a_stream(model: ChatOpenAI) -> None:
    chunks = list(model.bind_tools([look_up], tool_choice="look_up").stream(QUESTION))
    total: Any = chunks[0]
    for chunk in chunks[1:]:
        total = total + chunk
    assert total.tool_calls[0]["name"] == "look_up" and set(total.tool_calls[0]["args"]) == {"town", "days"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: ChatOpenAI, method: Any) -> None:
    answer = model.with_structured_output(Weather, method=method).invoke(QUESTION)
    assert isinstance(answer, Weather)
    assert -50 <= answer.degrees <= 50


def test_json_mode(model: ChatOpenAI) -> None:
    assert isinstance(model.with_structured_output(None, method="json_mode").invoke("Answer in JSON."), dict)


def test_errors_come_through(model: ChatOpenAI) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as caught:
        model.invoke("the river " * 3000)
    assert caught.value.code == "context_length_exceeded"
