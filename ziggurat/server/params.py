# SPDX-License-Identifier: Apache-2.0
"""From a request body to `SamplingParams`, and from bodies to the requests that the engine gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ziggurat.engine.types import GenerateRequest
from ziggurat.errors import RequestError
from ziggurat.scheduling.masks import LogitsMask
from ziggurat.scheduling.sampling import SamplingParams
from ziggurat.server.schemas import ChatRequest, CompletionRequest

# Fields whose name and meaning are the same in the body and in SamplingParams.
SAME = (
    *("n", "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *(
        "seed",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "include_stop_str_in_output",
        "ignore_eos",
        "skip_special_tokens",
    ),
)
# What a model's generation_config may set; the rest of it is not about sampling.
MODEL_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_params(
    body: ChatRequest | CompletionRequest,
    defaults: Mapping[str, Any],
    mask: LogitsMask | None = None,
    *,
    shows_special: bool = False,
) -> SamplingParams:
    """The request's sampling settings: its own, then the model's, then OpenAI's defaults.

    Args:
        mask: keeps the answer within a language.
        shows_special: leave special tokens in the text unless the request says otherwise.

    Raises:
        RequestError: a value is out of range; ``param`` is the field as the request names it.
    """
    settings = {name: defaults[name] for name in MODEL_DEFAULTS if defaults.get(name) is not None}
    settings |= {name: getattr(body, name) for name in SAME if getattr(body, name) is not None}
    settings.setdefault("skip_special_tokens", not shows_special)
    if isinstance(body, CompletionRequest) and body.best_of is not None:
        settings["best_of"] = body.best_of
    if body.logit_bias:
        settings["logit_bias"] = {int(key): float(value) for key, value in body.logit_bias.items()}
    try:
        return SamplingParams(
            max_tokens=body.output_limit,
            logprobs=body.num_logprobs,
            prompt_logprobs=body.num_prompt_logprobs,
            logits_mask=mask,
            **settings,
        )
    except RequestError as error:
        raise _renamed(error, body) from None


def _renamed(error: RequestError, body: ChatRequest | CompletionRequest) -> RequestError:
    """The same error by the name that the client used."""
    param = error.param
    if isinstance(body, ChatRequest):
        if param == "max_tokens" and body.max_completion_tokens is not None:
            param = "max_completion_tokens"
        elif param == "logprobs":
            param = "top_logprobs"
    if param == error.param or param is None or error.param is None:
        return error
    return RequestError(str(error).replace(error.param, param, 1), param=param, code=error.code)


def generate_requests(
    body: ChatRequest | CompletionRequest,
    request_id: str,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    client: str = "",
    adapter: str = "",
) -> list[GenerateRequest]:
    """One engine request per prompt; the first has the answer's own id.

    Args:
        client: whose they are.
        adapter: the LoRA adapter that they are for; "" is the base model.
    """
    return [
        GenerateRequest(
            request_id=request_id if index == 0 else f"{request_id}/{index}",
            prompt_ids=prompt_ids,
            params=params,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            client=client,
            adapter=adapter,
            session_id=(body.session_id or "") if index == 0 else "",
            keep_s=(body.keep_s or 0.0) if index == 0 else 0.0,
            deadline_s=body.deadline_s,
        )
        for index, prompt_ids in enumerate(prompts)
    ]
