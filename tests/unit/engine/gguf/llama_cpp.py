# SPDX-License-Identifier: Apache-2.0
"""Teacher-forced logits of our engine and of llama.cpp, and how far they are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.unit.engine.rig import Rig
from ziggurat.catalog.peers.llama_session import Feed, LlamaSession
from ziggurat.kernels.ops import load_native
from ziggurat.programs.formats import FormatSpec
from ziggurat.programs.plan import Limits

Logits = npt.NDArray[np.float32]
_ROWS = 64


def our_logits(path: Path, token_ids: Sequence[int], *, weight: FormatSpec | None = None) -> Logits:
    """[tokens, vocabulary], weights in the engine's own choice of format unless one is given, KV in fp32."""
    size = -(-len(token_ids) // 16) * 16
    limits = Limits(max_model_len=size, max_num_seqs=_ROWS, max_num_batched_tokens=size, block_size=16)
    rig = Rig(path, backend="torch" if load_native() is None else "native", weight=weight, limits=limits)
    rig.logits(rig.item("only", token_ids, 0))
    starts = range(0, len(token_ids), _ROWS)
    parts = [range(start, min(start + _ROWS, len(token_ids))) for start in starts]
    return np.concatenate([rig.executor.rows(part, is_hidden=False).copy() for part in parts])


def llama_logits(path: Path, token_ids: Sequence[int], *, has_flash_attention: bool | None = None) -> Logits:
    """[tokens, vocabulary], KV in fp32, by the plain kernels."""
    with LlamaSession(
        path,
        threads=1,
        num_tokens=len(token_ids),
        num_sequences=1,
        kv="f32",
        has_flash_attention=has_flash_attention,
        is_repacked=False,
    ) as session:
        return session.feed([Feed(token, position, 0, True) for position, token in enumerate(token_ids)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Over all positions: share of equal best tokens, mean KL(reference, found) in nats, largest difference over largest logit."""

    top1: float
    mean_kl: float
    relative: float


def distance(reference: Logits, found: Logits) -> Distance:
    """How far ``found`` is from ``reference``."""
    p, q = _log_softmax(reference), _log_softmax(found)
    return Distance(
        top1=float((p.argmax(1) == q.argmax(1)).mean()),
        mean_kl=float((np.exp(p) * (p - q)).sum(1).mean()),
        relative=float(np.abs(reference - found).max() / np.abs(reference).max()),
    )


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
