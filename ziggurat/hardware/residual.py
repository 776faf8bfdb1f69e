# SPDX-License-Identifier: Apache-2.0
"""What a calibrated formula leaves, learned: trees on ``log(measured / calibrated)``.

Trees alone cannot leave the range they saw (on a device that was not measured a bare forest is off by 170 %), so they only correct a
formula that can. The mean of extremely randomised trees and boosted trees: on shapes that were not seen one or the other is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ziggurat.hardware.families import F64, Calibrated, Columns, wave_factor

NUM_TREES = 100
TILES = ((64, 64), (128, 64), (128, 128), (128, 256), (256, 128))
# Below this many samples trees of twenty leaves a piece learn noise.
MIN_SAMPLES = 40


def features(columns: Columns) -> F64:
    """[rows, features] of GEMMs: sizes, intensity, and how full the last tile and the last wave are for the usual tiles."""
    m, n, k = columns.shape["m"], columns.shape["n"], columns.shape["k"]
    found = [
        *(np.log2(size) for size in (m, n, k, n * k, columns.flops, columns.num_bytes)),
        np.log2(columns.flops / columns.num_bytes),
        np.log2(n / k),
        *(m % 128, m % 64, n % 128, n % 256),
        np.log2(columns.peak_flop_s),
        np.log2(columns.bandwidth_b_s),
    ]
    for rows, width in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / width)
        found += [np.log2(tiles / columns.num_cores), 1 / wave_factor(columns, tiles)]
    return np.stack(found, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hybrid:
    """A calibrated formula times what trees learned of its errors."""

    base: Calibrated
    models: tuple[Any, ...]

    def predict(self, columns: Columns) -> F64:
        """Seconds of each row."""
        base_s = self.base.predict(columns)
        if not self.models:
            return base_s
        rows = features(columns)
        residual = np.mean([model.predict(rows) for model in self.models], axis=0)
        return np.asarray(base_s * np.exp(residual))


def fit_hybrid(base: Calibrated, columns: Columns, seed: int) -> Hybrid:
    """Learn the residual of ``base``; with few samples there is nothing to learn and the base is the answer."""
    if len(columns.time_s) < MIN_SAMPLES:
        return Hybrid(base=base, models=())
    from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

    residual = np.log(columns.time_s / base.predict(columns))
    models: tuple[Any, ...] = (
        ExtraTreesRegressor(NUM_TREES, min_samples_leaf=4, max_features=0.6, random_state=seed),
        HistGradientBoostingRegressor(
            loss="absolute_error", learning_rate=0.06, max_iter=200, l2_regularization=1.0, random_state=seed
        ),
    )
    rows = features(columns)
    for model in models:
        model.fit(rows, residual)
    return Hybrid(base=base, models=models)
