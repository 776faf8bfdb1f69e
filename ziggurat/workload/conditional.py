# SPDX-License-Identifier: Apache-2.0
"""Lengths of prompts and answers together: an answer's length depends on its prompt's, and on the service.

`ConditionalLengths` is fitted to a trace. Without a trace there are published quantiles (`QuantileLengths`), and the
truncated Zipf law that BurstGPT's reference generator draws prompts from.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from ziggurat.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionalLengths:
    """Prompts as they were, and for each an answer that was given to a prompt of about the same length.

    Attributes:
        edges: upper ends of the bins of prompt lengths, the last one the longest prompt.
        bins: (prompts, answers) that were seen in each bin.
    """

    edges: tuple[int, ...]
    bins: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    _weights: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_weights", tuple(accumulate(len(prompts) for prompts, _ in self.bins)))

    @classmethod
    def fit(cls, pairs: Sequence[tuple[int, int]], *, num_bins: int = 20) -> ConditionalLengths:
        """Bins of about equally many prompts; prompts of one length are never split between two.

        Args:
            pairs: (prompt, answer) tokens.

        Raises:
            ConfigError: no pairs or no bins.
        """
        if not pairs or num_bins < 1:
            raise ConfigError(
                f"lengths are fitted to at least one pair in at least one bin, got {len(pairs)} in {num_bins}"
            )
        ordered = sorted(pairs)
        edges = sorted(
            {ordered[min(len(ordered), -(-len(ordered) * n // num_bins)) - 1][0] for n in range(1, num_bins + 1)}
        )
        found: list[tuple[list[int], list[int]]] = [([], []) for _ in edges]
        for prompt, answer in ordered:
            prompts, answers = found[bisect.bisect_left(edges, prompt)]
            prompts.append(prompt)
            answers.append(answer)
        bins = tuple((tuple(prompts), tuple(answers)) for prompts, answers in found)
        return cls(edges=tuple(edges), bins=bins)

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """A prompt of the trace, and an answer from its bin (bootstrap)."""
        place = bisect.bisect_right(self._weights, rng.randrange(self._weights[-1]))
        prompts, answers = self.bins[place]
        return rng.choice(prompts), rng.choice(answers)

    def answer_to(self, prompt_tokens: int, rng: random.Random) -> int:
        """An answer to a prompt that came from somewhere else; longer ones than any seen belong to the last bin."""
        place = min(bisect.bisect_left(self.edges, prompt_tokens), len(self.edges) - 1)
        return rng.choice(self.bins[place][1])


class NearestTexts:
    """Real texts for lengths that were drawn: of a list of (prompt, answer) tokens, the one nearest to a wanted pair.

    Near is what is least apart in ratio, so that 10 tokens too many weigh more on a short text than on a long one; of equals the first.

    Args:
        pairs: lengths of the texts that there are.

    Raises:
        ConfigError: there are none, or a length is below one.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs or min(min(pair) for pair in pairs) < 1:
            raise ConfigError(f"texts of at least one token are needed on both sides, got {len(pairs)} pairs")
        self._logs = [(math.log(prompt), math.log(answer)) for prompt, answer in pairs]

    def index(self, prompt_tokens: int, answer_tokens: int) -> int:
        """The number of the nearest text. O(texts)."""
        prompt, answer = math.log(max(1, prompt_tokens)), math.log(max(1, answer_tokens))
        apart = [(own_prompt - prompt) ** 2 + (own_answer - answer) ** 2 for own_prompt, own_answer in self._logs]
        return apart.index(min(apart))


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncatedZipf:
    """P(n) in proportion to ``n ** -exponent`` for n in ``[1, longest]``; the defaults are those of BurstGPT's reference generator.

    Raises:
        ConfigError: a bound below one or an exponent that is not finite.
    """

    exponent: float = 1.1
    longest: int = 1024
    _weights: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.longest < 1 or not math.isfinite(self.exponent):
            raise ConfigError(
                f"Zipf lengths need a longest of at least 1 and a finite exponent, got {self.longest}, {self.exponent}"
            )
        weights = accumulate(n**-self.exponent for n in range(1, self.longest + 1))
        object.__setattr__(self, "_weights", tuple(weights))

    def draw(self, rng: random.Random) -> float:
        """A length. O(log longest)."""
        return float(min(self.longest, 1 + bisect.bisect_right(self._weights, rng.random() * self._weights[-1])))


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileLengths:
    """A length distribution through published quantiles, with the published mean.

    Between two quantiles values are spread evenly, or their logarithms. Below the first one, of which publications say nothing, values
    follow a power of the rank, whose exponent makes the mean right.

    Attributes:
        is_geometric: spread the logarithms: for quantiles far apart, whose mean would otherwise leave too little for the lowest.
        points: (share, tokens), ascending in both.
        longest: tokens at share 1.

    Raises:
        ConfigError: points that do not ascend, or a mean that no exponent gives.
    """

    mean: float
    points: tuple[tuple[float, float], ...]
    longest: float
    shortest: float = 1.0
    is_geometric: bool = False
    exponent: float = field(init=False)

    def __post_init__(self) -> None:
        knots = [(0.0, self.shortest), *self.points, (1.0, self.longest)]
        if any(a >= c or b > d for (a, b), (c, d) in pairwise(knots)):
            raise ConfigError(f"quantiles must ascend from 0 to 1, got {knots}")
        share, first = self.points[0]
        above = sum((c - a) * self._mean_between(b, d) for (a, b), (c, d) in pairwise(knots[1:]))
        # Mean of shortest + (first - shortest) * u ** p over u in [0, 1] is shortest + (first - shortest) / (p + 1).
        inside = (self.mean - above) / share - self.shortest
        if not 0 < inside < first - self.shortest:
            raise ConfigError(f"no distribution through {self.points} has the mean {self.mean}")
        object.__setattr__(self, "exponent", (first - self.shortest) / inside - 1)

    def _mean_between(self, low: float, high: float) -> float:
        return (high - low) / math.log(high / low) if self.is_geometric and high > low else (low + high) / 2

    def at(self, share: float) -> float:
        """The quantile."""
        knots = [*self.points, (1.0, self.longest)]
        first_share, first = knots[0]
        if share <= first_share:
            return self.shortest + (first - self.shortest) * math.pow(share / first_share, self.exponent)
        place = bisect.bisect_left(knots, (share, -math.inf))
        (a, b), (c, d) = knots[place - 1], knots[min(place, len(knots) - 1)]
        place_between = (share - a) / (c - a)
        return b * math.pow(d / b, place_between) if self.is_geometric else b + (d - b) * place_between

    def draw(self, rng: random.Random) -> float:
        """A length."""
        return self.at(rng.random())


# GPT-4 conversations of BurstGPT as the Llumnix paper reports them (arXiv 2406.03243, table of traces). Longest: 8,192 tokens of context.
GPT4_CONVERSATION_PROMPT = QuantileLengths(
    mean=830, points=((0.5, 582), (0.8, 1427), (0.95, 2345), (0.99, 3549)), longest=4096
)
GPT4_CONVERSATION_OUTPUT = QuantileLengths(
    mean=271, points=((0.5, 243), (0.8, 434), (0.95, 669), (0.99, 964)), longest=1500
)
# Azure's chat hour of November 2023 (AzurePublicDataset, AzureLLMInferenceTrace_conv.csv): mean, P50, P90, P99.
AZURE_CONVERSATION_PROMPT = QuantileLengths(
    mean=1154.7, points=((0.5, 1020), (0.9, 2734), (0.99, 4142)), longest=5000, is_geometric=True
)
AZURE_CONVERSATION_OUTPUT = QuantileLengths(mean=211.1, points=((0.5, 129), (0.9, 424), (0.99, 601)), longest=700)
# Azure's code hour of the same month (AzureLLMInferenceTrace_code.csv): mean, P50, P90, P99.
AZURE_CODE_PROMPT = QuantileLengths(
    mean=2047.8, points=((0.5, 1469), (0.9, 5186), (0.99, 7436)), longest=7500, is_geometric=True
)
AZURE_CODE_OUTPUT = QuantileLengths(
    mean=27.9, points=((0.5, 13), (0.9, 55), (0.99, 249)), longest=300, is_geometric=True
)
