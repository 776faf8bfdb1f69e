# SPDX-License-Identifier: Apache-2.0
"""Chat templates: the conventions of transformers, and what a template from a checkpoint may not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.checkpoints import CHAT_TEMPLATE, make_tokenizer
from ziggurat.engine.chat_template import ChatTemplate, missing_template
from ziggurat.errors import ModelError, RequestError

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "你好"},
]
LLAMA3_LIKE = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
WITH_BLOCKS = """{% for message in messages %}
    {% if loop.index0 == 2 %}
{% continue %}
    {% endif %}
{{ message.role }}: {% generation %}{{ message.content | tojson }}{% endgeneration %}

{% endfor %}
{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{{ strftime_now('%Y') | length }}"""


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, LLAMA3_LIKE, WITH_BLOCKS])
@pytest.mark.parametrize("prompted", [True, False])
def test_the_same_text_as_transformers(source: str, prompted: bool) -> None:
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), bos_token="<s>", eos_token="</s>", chat_template=source
    )
    tools = [{"type": "function", "function": {"name": "look", "description": "é", "parameters": {}}}]
    expected = reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=prompted, tools=tools)
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(MESSAGES, add_generation_prompt=prompted, tools=tools) == expected


def write(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_where_templates_come_from(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    template = ChatTemplate.load(write(tmp_path, chat_template="{{ eos_token }}x", eos_token={"content": "</s>"}))
    assert template is not None and template.render(MESSAGES) == "</s>x"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    template = ChatTemplate.load(write(tmp_path, chat_template=named))
    assert template is not None and template.render(MESSAGES) == "d"
    (tmp_path / "chat_template.jinja").write_text("file")
    template = ChatTemplate.load(tmp_path)
    assert template is not None and template.render(MESSAGES) == "file"


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ("{% for %}", "is not a valid chat template"),
        ([{"name": "rag", "template": "x"}], "no template named 'default', only rag"),
        (7, "must be text or a list of named templates, not int"),
    ],
)
def test_damaged_templates_are_named(tmp_path: Path, raw: object, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        ChatTemplate.load(write(tmp_path, chat_template=raw))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for a in range(1000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 100000000 }}",
        "{{ [0] * 100000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for a in range(100) %}{% for b in range(9000) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}{% endfor %}",
    ],
)
def test_what_templates_may_not_do(source: str) -> None:
    with pytest.raises(ModelError, match="does what chat templates may not do"):
        ChatTemplate(source, {}).render(MESSAGES)


def test_refusals_are_the_requests_fault() -> None:
    refusing = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate") as caught:
        refusing.render(MESSAGES)
    assert caught.value.param == "messages"
    with pytest.raises(RequestError, match="cannot render these messages"):
        ChatTemplate("{{ messages[9].content.strip() }}", {}).render(MESSAGES)


def test_content_parts_become_text() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == "a\nb"
    with pytest.raises(RequestError, match="part of type 'image_url'; this model reads text only"):
        template.render([{"role": "user", "content": [{"type": "image_url"}]}])
    with pytest.raises(RequestError, match=r"messages\[0\] must be an object with a 'role'"):
        template.render([{"content": "x"}])
    with pytest.raises(RequestError, match=r"messages\[0\].content must be text"):
        template.render([{"role": "user", "content": 5}])


def test_an_answer_can_be_continued() -> None:
    template = ChatTemplate(LLAMA3_LIKE, {"bos_token": "<s>", "eos_token": "</s>"})
    text = template.render([*MESSAGES, {"role": "assistant", "content": "Once upon"}], continue_final_message=True)
    assert text.endswith("assistant<|end|>\n\nOnce upon")


def test_no_template_is_said_clearly() -> None:
    assert "model 'm' has no chat template" in str(missing_template("m"))
