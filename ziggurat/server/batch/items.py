# SPDX-License-Identifier: Apache-2.0
"""From the body of one line to engine requests, and from their outputs to the answer. The same schemas and writers as over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ziggurat.engine.types import GenerateOutput, GenerateRequest
from ziggurat.errors import ContextLengthExceeded
from ziggurat.scheduling.sequence import derive_seed
from ziggurat.server.body import decode_body
from ziggurat.server.chat import ChatWriter
from ziggurat.server.completions import CompletionWriter, encode_prompts
from ziggurat.server.conversation import converse, shows_special, template_options
from ziggurat.server.errors import UnsupportedField
from ziggurat.server.fields import CHAT_UNSUPPORTED, COMPLETION_UNSUPPORTED
from ziggurat.server.generation import Outputs, Usage, raise_if_failed
from ziggurat.server.params import generate_requests, sampling_params
from ziggurat.server.schemas import ChatRequest, CompletionRequest
from ziggurat.server.service import ModelText
from ziggurat.server.serving import adapter_of, check_model
from ziggurat.server.structured import allowed_tokens, language_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
URLS = (CHAT, COMPLETIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What an answer is named. All of it follows from the job, so that a job that was stopped ends with the same file.

    Attributes:
        seed: for requests that bring none.
    """

    request_id: str
    created_unix_s: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSize:
    """What a plan knows of one prompt of an item."""

    prompt_ids: Sequence[int]
    max_tokens: int | None
    num_sequences: int
    cache_salt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line, ready to run: a request per prompt, and who writes the answer."""

    requests: Sequence[GenerateRequest]
    collect: Callable[[Outputs], Any]


class Recorded:
    """The outputs of an item that has ended, as `Outputs`."""

    def __init__(self, requests: Sequence[GenerateRequest], outputs: Sequence[tuple[int, GenerateOutput]]) -> None:
        self.usage = Usage()
        self._requests, self._outputs = requests, outputs

    async def outputs(self) -> AsyncIterator[tuple[int, GenerateOutput]]:
        """All of them at once."""
        for index, output in self._outputs:
            # How much was found cached depends on when the job was stopped and started; the answer does not.
            self.usage.add(index, replace(output, num_cached_tokens=0))
            raise_if_failed(self._requests[index], output)
            yield index, output


def decode_item(text: ModelText, url: str, raw: bytes) -> ChatRequest | CompletionRequest:
    """The body of a line.

    Raises:
        RequestError, UnsupportedFeature: it is not valid, or asks for what a batch has not.
    """
    body: ChatRequest | CompletionRequest
    if url == CHAT:
        body = decode_body(raw, ChatRequest, CHAT_UNSUPPORTED, max_model_len=text.max_model_len)
    elif url == COMPLETIONS:
        body = decode_body(raw, CompletionRequest, COMPLETION_UNSUPPORTED, max_model_len=text.max_model_len)
    else:
        raise UnsupportedField(
            f"url {url[:100]!r} is not run in a batch; possible are {', '.join(URLS)}", feature="batch_url", param="url"
        )
    if body.stream:
        raise UnsupportedField("a batch does not stream; leave 'stream' out", feature="stream", param="stream")
    if isinstance(body, ChatRequest) and body.memory is not None:
        raise UnsupportedField("a batch recalls no memories; leave 'memory' out", feature="memory", param="memory")
    check_model(text, body.model)
    return body


def prompts_of(text: ModelText, body: ChatRequest | CompletionRequest) -> list[list[int]]:
    """Token ids of every prompt.

    Raises:
        RequestError: the template refuses it, or it is hopelessly long.
    """
    if isinstance(body, CompletionRequest):
        return encode_prompts(text, body)[0]
    messages = [message.for_template() for message in body.messages]
    return [body.kept(text.encode_chat(messages, template_options(body, text.family)))]


def sizes_of(text: ModelText, body: ChatRequest | CompletionRequest) -> list[PromptSize]:
    """What the plan of the job needs.

    Raises:
        RequestError, UnsupportedFeature: it cannot be run.
    """
    params = sampling_params(body, text.default_sampling)
    sizes = []
    for prompt_ids in prompts_of(text, body):
        num_output = 1 if body.output_limit is None else body.output_limit
        if len(prompt_ids) + num_output > text.max_model_len:
            raise ContextLengthExceeded(
                max_model_len=text.max_model_len,
                num_prompt_tokens=len(prompt_ids),
                num_output_tokens=num_output,
                param="messages" if isinstance(body, ChatRequest) else "prompt",
            )
        sizes.append(
            PromptSize(
                prompt_ids=prompt_ids,
                max_tokens=body.output_limit,
                num_sequences=params.num_sequences,
                cache_salt=body.cache_salt or "",
            )
        )
    return sizes


async def make_item(
    text: ModelText,
    body: ChatRequest | CompletionRequest,
    prompts: Sequence[Sequence[int]],
    head: Head,
    expected_tokens: int | None,
) -> Item:
    """The requests of a line and the writer of its answer. Grammars are compiled here.

    Raises:
        RequestError, UnsupportedFeature: it cannot be run.
    """
    if isinstance(body, ChatRequest):
        conversation = await converse(text, body, prompts[0])
        params = sampling_params(
            body, text.default_sampling, conversation.mask, shows_special=shows_special(body, text.family)
        )
        named = {"id": f"chatcmpl-{head.request_id}", "created": head.created_unix_s}
        writer: Any = ChatWriter(
            text, body, {**named, "model": check_model(text, body.model)}, conversation, call_ids=head.request_id
        )
    else:
        spec, mask = language_of(body), allowed_tokens(body, text.vocab_size)
        grammar = None if spec is None else await text.compile_grammar(spec, body.output_limit, "none")
        params = sampling_params(body, text.default_sampling, grammar or mask)
        named = {"id": f"cmpl-{head.request_id}", "object": "text_completion", "created": head.created_unix_s}
        echoes = encode_prompts(text, body)[1]
        writer = CompletionWriter(
            text, body, {**named, "model": check_model(text, body.model)}, prompts, echoes, grammar or mask
        )
    requests = [
        replace(
            request,
            params=params if params.seed is not None else replace(params, seed=derive_seed(head.seed, index)),
            expected_tokens=expected_tokens,
            priority=0,
        )
        for index, request in enumerate(
            generate_requests(
                body, head.request_id, prompts, params, adapter=adapter_of(text, check_model(text, body.model))
            )
        )
    ]
    return Item(requests=requests, collect=writer.collect)
