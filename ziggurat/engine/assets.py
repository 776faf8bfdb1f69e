# SPDX-License-Identifier: Apache-2.0
"""What a model brings beside its weights: tokenizer, chat template, generation settings; from a folder or from a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass

from ziggurat.engine.chat_template import ChatTemplate
from ziggurat.engine.generation import GenerationDefaults
from ziggurat.engine.gguf.vocabulary import generation_fields, template_from_gguf, tokenizer_from_gguf
from ziggurat.engine.sizing import ModelSource
from ziggurat.engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """Text in and text out of one model.

    Attributes:
        tokenizer: None for a model without one, which takes token ids only.
        template: None for a model without a chat template.
        defaults: end tokens, and sampling settings for requests that leave them out.
    """

    tokenizer: Tokenizer | None
    template: ChatTemplate | None
    defaults: GenerationDefaults


def load_assets(source: ModelSource) -> Assets:
    """Reads them.

    Raises:
        ModelError: damaged.
        UnsupportedFeature: a tokenizer that is not read from GGUF.
    """
    folder, header = source.folder, source.gguf
    if header is not None:
        tokenizer = tokenizer_from_gguf(header)
        fields = generation_fields(header, tokenizer)
        return Assets(
            tokenizer=tokenizer,
            template=template_from_gguf(header, tokenizer),
            defaults=GenerationDefaults.of(fields, source.raw, tokenizer, origin=header.path),
        )
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    return Assets(
        tokenizer=tokenizer,
        template=ChatTemplate.load(folder),
        defaults=GenerationDefaults.load(folder, source.raw, tokenizer),
    )
