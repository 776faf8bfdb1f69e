# SPDX-License-Identifier: Apache-2.0
"""A tiny recipe that needs no tokenizer, and threads kept to one so that sums are taken in one order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from ziggurat.training.config import MixtureEntry, StageConfig, TrainingConfig, load_recipe


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny() -> TrainingConfig:
    """Two stages of dense copy and look-up on the tiny shape: twelve steps in all."""
    recipe = load_recipe("tiny")

    def stage(name: str, length: int, steps: int) -> StageConfig:
        mixture = (MixtureEntry(source="copy", share=0.5), MixtureEntry(source="lookup", share=0.5, weight=2.0))
        return StageConfig(
            name=name,
            lengths_tokens=(length,),
            tokens_per_step=128,
            max_tokens=128 * steps,
            learning_rate=3e-3,
            final_learning_rate=1e-3,
            mixture=mixture,
        )

    return dataclasses.replace(recipe, stages=(stage("one", 32, 5), stage("two", 64, 7)), log_every_steps=1)
