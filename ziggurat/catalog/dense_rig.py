# SPDX-License-Identifier: Apache-2.0
"""The embedded model as arrays, with outliers it does not have by nature, scored on held-out prose under any number format."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from ziggurat.catalog.claims import Scale
from ziggurat.quantization.dense import DenseCheckpoint, Entries, Ints, Linear, ReferenceDecoder, load_dense
from ziggurat.workload import prose

WINDOW_TOKENS = 256
NUM_WINDOWS: dict[Scale, int] = {"quick": 1, "full": 8}
TEXT_SEED, CALIBRATION_SEED = 900_031, 17


class Rig(Protocol):
    """A model to score; `DenseRig` is the real one, tests bring a tiny one."""

    @property
    def base(self) -> DenseCheckpoint:
        """The model."""
        ...

    @property
    def prompts(self) -> Sequence[Ints]:
        """For calibration."""
        ...

    def perplexity(
        self,
        checkpoint: DenseCheckpoint,
        *,
        linear: Linear | None = None,
        keys: Entries | None = None,
        values: Entries | None = None,
    ) -> float:
        """With linears, keys and values as these compute or show them."""
        ...


def new_rig(scale: Scale) -> Rig:
    """The embedded model, scored on few windows or on more."""
    return DenseRig(NUM_WINDOWS[scale])


class DenseRig:
    """Accuracy only: NumPy, no clock.

    Args:
        num_windows: of 256 tokens, that are scored.
    """

    def __init__(self, num_windows: int) -> None:
        self._num_windows = num_windows

    @cached_property
    def base(self) -> DenseCheckpoint:
        """The model."""
        from ziggurat.engine.resolve import EMBEDDED_FOLDER

        return load_dense(EMBEDDED_FOLDER)

    @cached_property
    def prompts(self) -> Sequence[Ints]:
        """For calibration: of the training split, two windows."""
        return self._windows(2, CALIBRATION_SEED, "train")

    @cached_property
    def _text(self) -> Sequence[Ints]:
        return self._windows(self._num_windows, TEXT_SEED, "held_out")

    def perplexity(
        self,
        checkpoint: DenseCheckpoint,
        *,
        linear: Linear | None = None,
        keys: Entries | None = None,
        values: Entries | None = None,
    ) -> float:
        """Of held-out prose; every token of a window but the first is scored once."""
        model = ReferenceDecoder(checkpoint)
        model.linear, model.keys, model.values = linear or model.linear, keys or model.keys, values or model.values
        return float(np.exp(np.concatenate([model.loss(window) for window in self._text]).mean()))

    def _windows(self, count: int, seed: int, split: prose.Split) -> list[Ints]:
        import tokenizers

        from ziggurat.engine.resolve import EMBEDDED_FOLDER

        encoder = tokenizers.Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
        begin, rng = int(self.base.raw["bos_token_id"]), np.random.default_rng(seed)
        ids: list[int] = []
        step = WINDOW_TOKENS - 1
        while len(ids) < count * step:
            ids += encoder.encode(" " + prose.document(rng, split)).ids
        return [np.array([begin, *ids[i * step : (i + 1) * step]], dtype=np.int64) for i in range(count)]
