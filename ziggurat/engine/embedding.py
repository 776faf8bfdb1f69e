# SPDX-License-Identifier: Apache-2.0
"""The last step of an embedding, and what `LLM.embed` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ziggurat.scheduling.protocol import Pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingOutput:
    """A vector of ``hidden_size`` numbers."""

    embedding: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequestOutput:
    """A text and its embedding.

    Attributes:
        prompt: None when the text was given as token ids.
        num_cached_tokens: tokens whose keys and values were there already.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: EmbeddingOutput
    num_cached_tokens: int = 0


def finish_embedding(pooled: Sequence[float], num_tokens: int, pooling: Pooling, *, normalize: bool) -> Sequence[float]:
    """fp32 [hidden] from what the executor pooled: divided by the tokens (``mean``), scaled to length 1 (``normalize``)."""
    vector = np.asarray(pooled, np.float64) / (num_tokens if pooling == "mean" else 1)
    length = float(np.linalg.norm(vector))
    if normalize and length > 0:
        vector /= length
    embedding: Sequence[float] = vector.astype(np.float32).tolist()
    return embedding
