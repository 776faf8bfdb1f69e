# SPDX-License-Identifier: Apache-2.0
"""Where training sequences come from: generated tasks and text, each a pure function of a random generator.

The batch of step n depends on (seed, n) and the stage only, so a resumed run sees the same data as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest
from ziggurat.training.config import StageConfig

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Source = Callable[[np.random.Generator, int], tuple[Ids, Mask]]
"""(generator, length) -> ids [length] and which of them are predicted in the loss [length]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's data. S sequences of T tokens, R predicted positions.

    Attributes:
        ids: [S, T].
        rows: [R], flattened positions whose next token is predicted.
        targets: [R], that next token.
        weights: [R], float32 factors on the loss.
        names: [S], source of each sequence.
    """

    ids: Ids
    rows: Ids
    targets: Ids
    weights: npt.NDArray[np.float32]
    names: tuple[str, ...]


def make_batch(sources: Mapping[str, Source], stage: StageConfig, seed: int, step: int) -> Batch:
    """The batch of global step `step`.

    Raises:
        ConfigError: the stage names a source that does not exist.
    """
    rng = np.random.default_rng([seed, step])
    length = int(rng.choice(stage.lengths_tokens))
    shares = np.array([entry.share for entry in stage.mixture])
    chosen = rng.choice(len(shares), size=max(1, stage.tokens_per_step // length), p=shares / shares.sum())
    ids, masks, names, weights = [], [], [], []
    for index in chosen:
        entry = stage.mixture[index]
        if entry.source not in sources:
            known = sorted(sources)
            hint = nearest(entry.source, known) or "."
            raise ConfigError(f"stage {stage.name!r}: unknown source {entry.source!r}{hint} Known: {', '.join(known)}")
        sample, mask = sources[entry.source](rng, length)
        assert sample.shape == mask.shape == (length,), (entry.source, sample.shape, mask.shape)
        ids.append(sample)
        masks.append(mask)
        names.append(entry.source)
        weights.append(entry.weight)
    is_target = np.stack(masks)
    is_target[:, 0] = False
    sequence, position = np.nonzero(is_target)
    stacked = np.stack(ids)
    return Batch(
        ids=stacked,
        rows=sequence * length + position - 1,
        targets=stacked[sequence, position],
        weights=np.asarray(weights, dtype=np.float32)[sequence],
        names=tuple(names),
    )
