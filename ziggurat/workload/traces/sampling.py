# SPDX-License-Identifier: Apache-2.0
"""Smaller, thinner and faster versions of a trace. Each says what it does to the burstiness.

=====================  ==========================================================================================================
window, first N        a part as it was
RPS scaling            all times divided by s: the rate times s, the shape of the bursts as it was
modelled scaling       the law of every window fitted, the rate times s, times drawn anew, lengths drawn from the trace
thinning               each request kept with probability p: the envelope stays, but gaps move towards Poisson (CV towards 1)
=====================  ==========================================================================================================
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from ziggurat.errors import ConfigError
from ziggurat.workload.arrival_windows import fit_series
from ziggurat.workload.conditional import ConditionalLengths
from ziggurat.workload.records import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is done to a trace, in this order: thinned, cut to the first N, scaled.

    Attributes:
        thin: probability of keeping a request.
        rate_scale: so many times the rate.
        is_modelled: draw times and lengths anew from what was fitted, instead of dividing times.
        window_s: of the fit.
        seed: of everything that is drawn.

    Raises:
        ConfigError: a value is out of range.
    """

    thin: float = 1.0
    num_requests: int | None = None
    rate_scale: float = 1.0
    is_modelled: bool = False
    window_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.thin <= 1:
            raise ConfigError(f"the share to keep must be above 0 and at most 1, got {self.thin}")
        if not 0 < self.rate_scale < math.inf:
            raise ConfigError(f"the rate scale must be above 0, got {self.rate_scale}")
        if self.num_requests is not None and self.num_requests < 1:
            raise ConfigError(f"at least one request must be kept, got {self.num_requests}")

    @property
    def labels(self) -> list[str]:
        """What a reader of the result has to know."""
        labels = []
        if self.thin < 1:
            labels.append(
                f"thinned: each request kept with probability {self.thin:g}, so the CV of the gaps moves towards 1"
            )
        if self.is_modelled:
            labels.append(
                f"modelled: times and lengths drawn from fits per {self.window_s:g} s at {self.rate_scale:g} times the rate"
            )
        elif self.rate_scale != 1:
            labels.append(f"RPS scaling: times divided by {self.rate_scale:g}, the shape of the bursts is the trace's")
        return labels

    def apply(self, arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
        """The new trace."""
        kept: Iterable[Arrival] = arrivals
        if self.thin < 1:
            rng = random.Random(f"thin/{self.seed}")
            kept = (arrival for arrival in kept if rng.random() < self.thin)
        if self.num_requests is not None:
            kept = islice(kept, self.num_requests)
        if self.is_modelled:
            return iter(remodel(list(kept), self))
        return (replace(arrival, t_s=arrival.t_s / self.rate_scale) for arrival in kept)


def remodel(arrivals: Sequence[Arrival], sampling: Sampling) -> list[Arrival]:
    """Every service (model and log type) drawn anew for itself, because services differ in shape: times from its fitted series, lengths
    from its conditional distribution.

    The span of time stays and the number of requests grows with the rate. What only the old requests had (sessions, hash ids) is gone.

    Raises:
        ConfigError: no requests.
    """
    if not arrivals:
        raise ConfigError("a trace without requests has nothing to be modelled on")
    members: dict[tuple[str, str], list[Arrival]] = {}
    for arrival in arrivals:
        members.setdefault((arrival.model, arrival.log_type), []).append(arrival)
    made = [new for service in sorted(members) for new in _remodel_service(members[service], sampling)]
    made.sort(key=lambda arrival: arrival.t_s)
    return [replace(arrival, id=f"model-{index}") for index, arrival in enumerate(made)]


def _remodel_service(arrivals: Sequence[Arrival], sampling: Sampling) -> Iterator[Arrival]:
    model, log_type = arrivals[0].model, arrivals[0].log_type
    series = fit_series([each.t_s for each in arrivals], sampling.window_s, seed=sampling.seed)
    lengths = ConditionalLengths.fit([(each.prompt_len, each.max_new) for each in arrivals])
    rng = random.Random(f"remodel/{sampling.seed}/{model}/{log_type}")
    for t_s in series.draw(seed=sampling.seed, rate_scale=sampling.rate_scale):
        prompt, output = lengths.draw(rng)
        yield Arrival(
            t_s=series.fits[0].start_s + t_s, id="", prompt_len=prompt, max_new=output, model=model, log_type=log_type
        )
