# SPDX-License-Identifier: Apache-2.0
"""Request fields that clients of the field send and that are not built here: refused by name, never ignored silently.

A field is harmless, and passes, when its value asks for nothing (null, or the default of the field's documentation).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ziggurat.server.errors import UnsupportedField

# field -> values that ask for nothing. None always passes.
_COMMON: Mapping[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "bad_words": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "guided_decoding_backend": ("auto",),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "use_beam_search": (False,),
    "length_penalty": (1.0, 1),
    "logits_processors": ([],),
}
CHAT_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **_COMMON,
    "add_special_tokens": (False,),
    "functions": ([],),
    "function_call": ("none",),
    "audio": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "echo": (False,),
    "best_of": (1,),
}
COMPLETION_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **_COMMON,
    "suffix": (),
    "prompt_embeds": (),
}


def refuse_unsupported(body: dict[str, Any], table: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The body without its harmless unsupported fields.

    Raises:
        UnsupportedField: a field asks for something that is not built; 501 with its name as ``code`` and ``param``.
    """
    for name, harmless in table.items():
        value = body.get(name)
        if value is not None and not any(type(value) is type(item) and value == item for item in harmless):
            raise UnsupportedField(
                f"{name} is not built in this version of Ziggurat; leave the field out", feature=name, param=name
            )
    return {name: value for name, value in body.items() if name not in table}
