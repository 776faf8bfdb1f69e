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
from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def apply(
        self, arrivals: Iterable[Arrival], *, failed_s: Callable[[], Sequence[float]] = tuple
    ) -> Iterator[Arrival]:
        """The new trace.

        Args:
            failed_s: gives the times of failed requests; asked after ``arrivals`` has been read.
        """
        kept: Iterable[Arrival] = arrivals
        if self.thin < 1:
            rng = random.Random(f"thin/{self.seed}")
            kept = (arrival for arrival in kept if rng.random() < self.thin)
        if self.num_requests is not None:
            kept = islice(kept, self.num_requests)
        if not self.is_modelled:
            return (replace(arrival, t_s=arrival.t_s / self.rate_scale) for arrival in kept)
        read = list(kept)
        return iter(remodel(read, self, failed_s=failed_s()))


def remodel(arrivals: Sequence[Arrival], sampling: Sampling, *, failed_s: Sequence[float] = ()) -> list[Arrival]:
    """Times from the fitted series, lengths from the trace's conditional distribution, model and log type from the trace's shares.

    The span of time stays and the number of requests grows with the rate. What only the old requests had (sessions, hash ids) is gone.

    Raises:
        ConfigError: no requests.
    """
    series = fit_series([each.t_s for each in arrivals], sampling.window_s, failed_s=failed_s, seed=sampling.seed)
    rng = random.Random(f"remodel/{sampling.seed}")
    services = sorted({(each.model, each.log_type) for each in arrivals})
    members = {service: [each for each in arrivals if (each.model, each.log_type) == service] for service in services}
    # Services differ in shape, so each has lengths of its own.
    lengths = {
        service: ConditionalLengths.fit([(each.prompt_len, each.max_new) for each in found])
        for service, found in members.items()
    }
    made = []
    start_s = series.fits[0].start_s
    for index, t_s in enumerate(series.draw(seed=sampling.seed, rate_scale=sampling.rate_scale)):
        service = rng.choices(services, [len(members[each]) for each in services])[0]
        prompt, output = lengths[service].draw(rng)
        made.append(
            Arrival(
                t_s=start_s + t_s,
                id=f"model-{index}",
                prompt_len=prompt,
                max_new=output,
                model=service[0],
                log_type=service[1],
            )
        )
    return made
