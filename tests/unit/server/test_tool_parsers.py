# SPDX-License-Identifier: Apache-2.0
"""Parsers of calls and thoughts: the families' own examples, and no result depends on where the text was cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziggurat.engine.families import ToolFormat, family_of, with_tools
from ziggurat.server.parsers import PARSERS, MessageReader, NamedCall, RequiredCalls, ThoughtReader, ToolParser

# (family, what the model writes, content, [(name, arguments)])
EXAMPLES: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", "Just an answer < than 3.", "Just an answer < than 3.", []),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [("f", {"a": 1})]),
    (
        "hermes",
        'Let me look.\n<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'
        '<tool_call>{"arguments": {"t": "</x>"}, "name": "g"}</tool_call>',
        "Let me look.",
        [("f", {}), ("g", {"t": "</x>"})],
    ),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": [1, {}]}}', "", [("f", {"a": [1, {}]})]),
    ("hermes", "<tool_call>not json</tool_call> after", "<tool_call>not json</tool_call> after", []),
    ("hermes", '<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
    ("hermes", "ends with <tool_ca", "ends with <tool_ca", []),
    ("hermes", "blank at the end \n", "blank at the end \n", []),
    ("llama3_json", "Hello {world}", "Hello {world}", []),
    ("llama3_json", '{"name": "f", "parameters": {"a": "}\\""}}', "", [("f", {"a": '}"'})]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"b": 2}}',
        "",
        [("f", {}), ("g", {"b": 2})],
    ),
    ("llama3_json", '{"answer": 42}', '{"answer": 42}', []),
    ("llama3_json", '{"name": "f", "param', '{"name": "f", "param', []),
    ("mistral", "Nothing to call [TOOL", "Nothing to call [TOOL", []),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        "",
        [("f", {"a": 1}), ("g", {})],
    ),
    (
        "mistral",
        'Well.[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g{"b": "]"}',
        "Well.",
        [("f", {"a": 1}), ("g", {"b": "]"})],
    ),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}]', "", [("f", {})]),
    ("mistral", '[TOOL_CALLS][{"x": 1}]', '[TOOL_CALLS][{"x": 1}]', []),
    ("mistral", "[TOOL_CALLS]f", "[TOOL_CALLS]f", []),
]


def cuts_of(text: str) -> st.SearchStrategy[list[str]]:
    places = st.lists(st.integers(0, len(text)), max_size=12).map(sorted)
    return places.map(lambda ends: [text[a:b] for a, b in itertools.pairwise([0, *ends, len(text)])])


def read(
    parser: ToolParser | None, pieces: Sequence[str], thoughts: ThoughtReader | None = None, **options: Any
) -> Any:
    """The message, after checking that a client that adds up the deltas has the same."""
    numbers = itertools.count(1)
    reader = MessageReader(thoughts, parser, make_id=lambda: f"id{next(numbers)}", **options)
    deltas = [delta for piece in pieces for delta in reader.feed(piece)] + reader.finish()
    message = reader.message()
    assert "".join(delta.get("content") or "" for delta in deltas) == (message["content"] or "")
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.get("reasoning_content", "")
    calls: list[dict[str, Any]] = []
    for entry in (entry for delta in deltas for entry in delta.get("tool_calls", ())):
        if "id" in entry:
            assert entry["index"] == len(calls)
            calls.append({"id": entry["id"], "type": entry["type"], "function": dict(entry["function"])})
        else:
            calls[entry["index"]]["function"]["arguments"] += entry["function"]["arguments"]
    assert calls == message.get("tool_calls", [])
    return message


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    calls = [each["function"] for each in message.get("tool_calls", ())]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


@pytest.mark.parametrize(("family", "text", "content", "calls"), EXAMPLES)
def test_examples_however_they_are_cut(family: str, text: str, content: str, calls: list[tuple[str, Any]]) -> None:
    @given(cuts_of(text))
    def check(pieces: list[str]) -> None:
        message = read(PARSERS.get(family)(), pieces)
        assert (message["content"] or "", calls_of(message)) == (content, calls)

    check()
    message = read(PARSERS.get(family)(), list(text))
    assert (message["content"] or "", calls_of(message)) == (content, calls)
    assert (message["content"] is None) == (bool(calls) and not content)


@pytest.mark.parametrize("family", PARSERS.names())
@given(data=st.data())
def test_any_text_is_read_alike_however_it_is_cut_and_none_is_lost(family: str, data: st.DataObject) -> None:
    words = (
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        '{"name": "f"',
        ', "arguments": {}',
        "}",
    )
    text = "".join(data.draw(st.lists(st.sampled_from((*words, "[", "]", "f", " ", "\n", "é", ";", '"')), max_size=12)))
    whole = read(PARSERS.get(family)(), [text])
    assert read(PARSERS.get(family)(), data.draw(cuts_of(text))) == whole
    if "tool_calls" not in whole:
        assert whole["content"] == text


@given(data=st.data())
def test_forced_calls(data: st.DataObject) -> None:
    text = '[{"name":"f","parameters":{"a":"}]{"}},{"name":"g","parameters":{}}]'
    message = read(RequiredCalls(), data.draw(cuts_of(text)))
    assert calls_of(message) == [("f", {"a": "}]{"}), ("g", {})]
    assert [call["id"] for call in message["tool_calls"]] == ["id1", "id2"]
    assert calls_of(read(RequiredCalls(), data.draw(cuts_of(text)), max_calls=1)) == [("f", {"a": "}]{"})]
    arguments = '{"city":"Ur"}'
    message = read(NamedCall("look"), data.draw(cuts_of(arguments)))
    assert calls_of(message) == [("look", {"city": "Ur"})]


def test_a_call_cut_by_the_limit_is_shown_as_text() -> None:
    message = read(RequiredCalls(), ['[{"name":"f","parameters":{}},{"na'])
    assert calls_of(message) == [("f", {})] and message["content"] == '{"na'


@pytest.mark.parametrize(
    ("is_open", "text", "thoughts", "answer"),
    [
        (False, "<think>\nhm, 3 < 4\n</think>\n\nFour.\n", "hm, 3 < 4", "Four.\n"),
        (True, "hm\n\n  so\n</think>\n\nFour.", "hm\n\n  so", "Four."),
        (False, "Four.", "", "Four."),
        (False, " <b>", "", " <b>"),
        (False, "<think>\n\n</think>\n\nFour.", "", "Four."),
        (True, "cut in the middle </thi", "cut in the middle </thi", ""),
        (False, "<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
    ],
)
def test_thoughts(is_open: bool, text: str, thoughts: str, answer: str) -> None:
    @given(cuts_of(text))
    def check(pieces: list[str]) -> None:
        message = read(None, pieces, ThoughtReader(is_open=is_open))
        assert (message.get("reasoning_content", ""), message["content"]) == (thoughts, answer)

    check()
    hidden = read(None, [text], ThoughtReader(is_open=is_open), shows_thoughts=False)
    assert "reasoning_content" not in hidden and hidden["content"] == answer


def test_thoughts_before_calls() -> None:
    text = '<think>\nI need f.\n</think>\n\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    message = read(PARSERS.get("hermes")(), list(text), ThoughtReader(is_open=False))
    assert (message["reasoning_content"], message["content"], calls_of(message)) == ("I need f.", None, [("f", {})])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", ("hermes", False, False)),
        (
            "{% if tools %}<tool_call>{% endif %}{% if enable_thinking %}<think></think>{% endif %}",
            ("hermes", True, True),
        ),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", ("mistral", True, False)),
        ("{% if tools %}<|python_tag|>{% endif %}", ("llama3_json", True, False)),
    ],
)
def test_families(template: str, expected: tuple[ToolFormat, bool, bool]) -> None:
    family = family_of(template)
    assert (family.tool_format, family.has_tools, family.is_thinking) == expected
    assert set(PARSERS) >= {family.tool_format}


def test_tools_for_a_template_that_knows_none_can_be_read_back() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "é"}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    system, user, asked, answered = with_tools(messages, [tool])
    assert system["role"] == "system" and '{"name": "f", "description": "é"}' in system["content"]
    assert user == messages[0]
    assert calls_of(read(PARSERS.get("hermes")(), [asked["content"]])) == [("f", {"a": 1})]
    assert answered == {"role": "user", "content": "<tool_response>\n42\n</tool_response>"}
    (merged, *_) = with_tools([{"role": "system", "content": "Be brief."}], [tool])
    assert merged["content"].startswith("Be brief.\n\n") and with_tools(messages[:1], []) == messages[:1]
