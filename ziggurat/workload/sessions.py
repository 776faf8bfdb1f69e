# SPDX-License-Identifier: Apache-2.0
"""Conversations that grow: every question brings the whole history along, so that a cache of prefixes has something to find.

One description, two ways to play it: `SessionModel.arrivals` fixes all times beforehand (open loop: a question comes a thinking time after
the answer would have been there at a given speed), `SessionModel.conversations` lets each question wait for the real answer (closed loop,
`ziggurat.workload.sources.ClosedLoop`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import Draw, Lengths, lognormal
from ziggurat.workload.records import Arrival
from ziggurat.workload.sources import Conversation

MEAN_TURNS = 5.5
"""Of multi-turn ShareGPT conversations as FastSwitch used them (arXiv 2411.18424)."""
THINK_MEDIAN_S, THINK_P90_S = 30.0, 180.0
"""Not published; a default to be replaced by what a trace with sessions says (`ziggurat trace stats` prints the gaps)."""

_THINK_S = lognormal(THINK_MEDIAN_S, THINK_P90_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionModel:
    """How conversations go.

    Attributes:
        lengths: new tokens of a question and tokens of its answer.
        mean_turns: of a geometric distribution, so at least one.
        think_s: seconds between an answer and the next question.
        output_tokens_per_s: how fast answers come, for the open loop only.
        max_model_len: a conversation ends before a turn that would not fit.

    Raises:
        ConfigError: a value is out of range.
    """

    lengths: Lengths
    mean_turns: float = MEAN_TURNS
    think_s: Draw = _THINK_S
    output_tokens_per_s: float = 20.0
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.mean_turns < math.inf:
            raise ConfigError(f"a conversation has at least one turn, got a mean of {self.mean_turns}")
        if not self.output_tokens_per_s > 0:
            raise ConfigError(f"answers must come at more than 0 tokens/s, got {self.output_tokens_per_s}")

    def turns(self, name: str) -> list[tuple[int, int, float]]:
        """(new tokens, answer tokens, thinking time before it) of a conversation; the name is the seed. At least one turn."""
        rng = random.Random(f"session/{name}")
        found: list[tuple[int, int, float]] = []
        num_history = 0
        while not found or rng.random() >= 1 / self.mean_turns:
            new, answer = (max(1, round(length)) for length in self.lengths.draw(rng))
            think_s = max(0.0, self.think_s(rng)) if found else 0.0
            if self.max_model_len is not None and num_history + new + answer > self.max_model_len:
                if found:
                    break
                answer = min(answer, self.max_model_len - 1)
                new = min(new, self.max_model_len - answer)
            found.append((new, answer, think_s))
            num_history += new + answer
        return found

    def arrivals(self, starts_s: Sequence[float], *, seed: int = 0) -> list[Arrival]:
        """One conversation per start, all requests in order of time. Deterministic."""
        made = []
        for index, start_s in enumerate(starts_s):
            name = f"c{seed}-{index}"
            now_s, num_history = start_s, 0
            for turn, (new, answer, think_s) in enumerate(self.turns(name)):
                now_s += think_s
                num_history += new
                made.append(
                    Arrival(t_s=now_s, id=f"{name}.{turn}", prompt_len=num_history, max_new=answer, session=name)
                )
                num_history += answer
                now_s += answer / self.output_tokens_per_s
        return sorted(made, key=lambda arrival: arrival.t_s)

    def conversations(self, count: int, *, seed: int = 0) -> list[Conversation]:
        """The same conversations for a closed loop; it knows one thinking time per conversation, so that is their mean."""
        made = []
        for index in range(count):
            turns = self.turns(f"c{seed}-{index}")
            pauses_s = [think_s for _, _, think_s in turns[1:]]
            think_s = sum(pauses_s) / len(pauses_s) if pauses_s else 0.0
            pairs = tuple((new, answer) for new, answer, _ in turns)
            made.append(Conversation(id=f"c{seed}-{index}", turns=pairs, think_s=think_s))
        return made
