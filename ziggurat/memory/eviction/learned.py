# SPDX-License-Identifier: Apache-2.0
"""A predictor of discard bits that learns while it is used: logistic regression, labels from Belady's rule on what is past."""

from __future__ import annotations

import math
from collections import OrderedDict

from ziggurat.errors import ConfigError
from ziggurat.memory.eviction.bits import discard_bits
from ziggurat.memory.eviction.protocol import CacheShape, Entry

MIN_WINDOW = 1024
MAX_WINDOW = 1 << 17
"""A cache that is larger than an eighth of this learns from replays of a cache of that size."""
RATE = 0.1

_MAX_GAP = 40
_NEVER = _MAX_GAP + 1
_GAPS = _MAX_GAP + 2
_COUNTS = 8
_DEPTHS = 16
_KEYS = 4096
# Where the weights of each feature begin.
_BEFORE = _GAPS
_COUNT = _BEFORE + _GAPS * _GAPS
_USUAL = _COUNT + _GAPS * _COUNTS
_DEPTH = _USUAL + _GAPS * _COUNTS
_KEY = _DEPTH + _DEPTHS * 2
NUM_WEIGHTS = _KEY + _KEYS

Features = tuple[int, ...]
"""Places of the weights whose sum is the log odds."""


class BitLearner:
    """Says 1 where what is like this use was mostly evicted by Belady's rule before its next one.

    Features, gaps in steps of half a power of two: uses since the key was last asked for; that with the gap before; that with how often
    the key came; the key's usual gap with how often it came; how deep it stands and whether it is new; the key itself (hashed). Every
    ``2 k`` uses the last ``4 k`` are replayed by Belady's rule for a cache of k, and the middle half is learned (at the start of a
    replay the cache is empty, and at its end the future is missing). A bit is only ever said with what came before it. Remembers about
    ``4 k`` keys. O(log n) amortised.

    Args:
        threshold: probability above which the bit is 1; there is no bit without one.

    Attributes:
        num_trained: uses it has learned from; before the first it says 0.

    Raises:
        ConfigError: the threshold is no probability.
    """

    def __init__(self, shape: CacheShape, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(f"the threshold of a bit is a probability between 0 and 1, got {threshold}")
        self._capacity = min(shape.capacity_blocks, MAX_WINDOW // 8)
        self._window = min(MAX_WINDOW, max(MIN_WINDOW, 4 * self._capacity))
        self._min_odds = math.log(threshold / (1 - threshold))
        self._weights = [0.0] * NUM_WEIGHTS
        self._seen: OrderedDict[int, tuple[int, int, int, float]] = OrderedDict()
        self._past: list[tuple[int, Features]] = []
        self._now = 0
        self.num_trained = 0

    def bit(self, entry: Entry) -> int:
        """The prediction for this use; notes it as past."""
        features = self._features(entry)
        self._past.append((entry.key, features))
        if len(self._past) == self._window:
            self._learn()
        return int(self._odds(features) > self._min_odds) if self.num_trained else 0

    def _odds(self, features: Features) -> float:
        weights = self._weights
        return sum([weights[place] for place in features])

    def _features(self, entry: Entry) -> Features:
        """Of this use; what is remembered of the key goes on."""
        self._now += 1
        last, before, count, usual = self._seen.pop(entry.key, (0, _NEVER, 0, 0.0))
        gap = _NEVER
        if count:
            octaves = math.log2(self._now - last)
            gap = min(_MAX_GAP, int(2 * octaves))
            usual = octaves if count == 1 else 0.7 * usual + 0.3 * octaves
        self._seen[entry.key] = (self._now, gap, count + 1, usual)
        if len(self._seen) > self._window:
            self._seen.popitem(last=False)
        times = min(_COUNTS - 1, count.bit_length())
        return (
            gap,
            _BEFORE + gap * _GAPS + before,
            _COUNT + gap * _COUNTS + times,
            _USUAL + min(_MAX_GAP, int(2 * usual)) * _COUNTS + times,
            _DEPTH + 2 * min(_DEPTHS - 1, entry.depth.bit_length()) + (count > 0),
            _KEY + hash((entry.key, 7)) % _KEYS,
        )

    def _learn(self) -> None:
        labels = discard_bits([key for key, _ in self._past], self._capacity)
        quarter = self._window // 4
        for index in range(quarter, 3 * quarter):
            features = self._past[index][1]
            odds = min(30.0, max(-30.0, self._odds(features)))
            step = RATE * (labels[index] - 1.0 / (1.0 + math.exp(-odds)))
            for place in features:
                self._weights[place] += step
        self.num_trained += 2 * quarter
        del self._past[: 2 * quarter]
