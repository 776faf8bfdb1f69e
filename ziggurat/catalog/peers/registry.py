# SPDX-License-Identifier: Apache-2.0
"""What a peer is, and the list of them. Nothing here or in a peer's file loads an engine when imported."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ziggurat.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every peer is given: the same for all.

    Attributes:
        folder: a Hugging Face folder without a tokenizer.
        threads: compute threads.
        max_num_seqs: the largest batch.
        max_model_len: the longest prompt with its output, tokens.
        max_kv_tokens: KV that a peer with a fixed pool should plan for, tokens of all sequences together.
    """

    folder: Path
    threads: int
    max_num_seqs: int
    max_model_len: int
    max_kv_tokens: int


class Peer(ABC):
    """An engine in one storage format. Created without arguments and without loading anything; `open` loads."""

    engine: ClassVar[str]
    format: ClassVar[str]

    @classmethod
    @abstractmethod
    def absent(cls) -> str | None:
        """Why it cannot run here; None if it can. Loads nothing."""

    @abstractmethod
    def open(self, job: Job) -> None:
        """Load the model."""

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """Continue all prompts, as long as one another, together: greedy, exactly ``num_tokens`` each, ends of sequence ignored."""


PEERS: Registry[type[Peer]] = Registry("peer")
"""``engine:format`` -> class; a row of the table each."""


def not_installed(*packages: str) -> str | None:
    """Says which of the packages is not installed; None if all are. Imports none."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def all_peers() -> list[type[Peer]]:
    """Every peer, ours first, then by name."""
    from ziggurat.catalog.peers import (  # noqa: F401  (they register themselves)
        llama_cpp_peer,
        openvino_peer,
        transformers_peer,
        vllm_peer,
        ziggurat_peer,
    )

    peers = [PEERS.get(name) for name in PEERS]
    return sorted(peers, key=lambda peer: (peer.engine != "ziggurat", peer.engine, peer.format != "fp32"))
