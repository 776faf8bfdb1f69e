# SPDX-License-Identifier: Apache-2.0
"""``generation_config.json``: which tokens end a text, and sampling settings for requests that leave them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ziggurat.engine.tokenizer import Tokenizer, read_json_object
from ziggurat.errors import ModelError, RequestError
from ziggurat.scheduling.sampling import SamplingParams

# The fields that vLLM takes from generation_config.json, by its names and ours.
_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What a checkpoint says about generating.

    Attributes:
        eos_ids: tokens that end a text, ascending.
        sampling: `SamplingParams` fields by name.
    """

    eos_ids: tuple[int, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer | None) -> GenerationDefaults:
        """Reads generation_config.json; end tokens also come from config.json and from the tokenizer.

        Raises:
            ModelError: damaged, or a value out of range.
        """
        path = folder / "generation_config.json"
        return cls.of(read_json_object(path), config, tokenizer, origin=path)

    @classmethod
    def of(
        cls, raw: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer | None, *, origin: Path
    ) -> GenerationDefaults:
        """The same from parsed fields.

        Args:
            raw: by the names of generation_config.json.
            config: by the names of config.json.
            origin: where ``raw`` stands, for messages.

        Raises:
            ModelError: a value is out of range.
        """
        eos = {*_token_ids(origin, raw), *_token_ids(origin.with_name("config.json"), config)}
        if tokenizer is not None and tokenizer.eos_id is not None:
            eos.add(tokenizer.eos_id)
        vocab_size = int(config["vocab_size"])
        sampling = {name: raw[name] for name in _SAMPLING_FIELDS if raw.get(name) is not None}
        if raw.get("do_sample") is False:
            sampling = {name: value for name, value in sampling.items() if name == "repetition_penalty"}
        try:
            SamplingParams(**sampling)
        except RequestError as error:
            raise ModelError(f"{origin}: {error}") from error
        return cls(eos_ids=tuple(sorted(each for each in eos if 0 <= each < vocab_size)), sampling=sampling)


def _token_ids(path: Path, raw: Mapping[str, Any]) -> list[int]:
    value = raw.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(each, bool) or not isinstance(each, int) for each in ids):
        raise ModelError(f"{path}: eos_token_id must be an integer or a list of integers, got {value!r}")
    return list(ids)
