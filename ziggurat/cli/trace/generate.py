# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace generate --output FILE``: a trace from published figures. One seed gives one trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags
from ziggurat.cli.trace.convert import ConvertOptions, lines, output_of, report, write
from ziggurat.engine.config import option
from ziggurat.errors import ConfigError
from ziggurat.workload.arrivals import ARRIVAL_MODELS, LENGTHS, at_rate, make_arrivals, unit_times
from ziggurat.workload.records import Arrival
from ziggurat.workload.sessions import SessionModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """What to make.

    Raises:
        ConfigError: a value is out of range.
    """

    lengths: str = option(
        "gpt4-conversation", "tokens of prompts and outputs", choices=tuple(LENGTHS.names()), group="workload"
    )
    length_scale: float = option(1.0, "this much of the publication's lengths", group="workload")
    arrivals: str = option("gamma", "law of the gaps", choices=tuple(ARRIVAL_MODELS.names()), group="workload")
    cv: float = option(
        1.0, "coefficient of variation of the gaps: 1 is Poisson, above comes in bursts", group="workload"
    )
    request_rate: float = option(1.0, "requests, or conversations, per second", group="workload")
    num_prompts: int = option(1000, "requests, or conversations", group="workload")
    mean_turns: float = option(
        1.0, "questions per conversation; above 1 the history grows from turn to turn", group="workload"
    )
    max_model_len: int | None = option(None, "tokens of prompt and output together, at most", group="workload")
    seed: int = option(0, "of everything that is drawn", group="workload")

    def __post_init__(self) -> None:
        if not self.length_scale > 0:
            raise ConfigError(f"length_scale must be above 0, got {self.length_scale}")
        if self.num_prompts < 1:
            raise ConfigError(f"num_prompts must be at least 1, got {self.num_prompts}")

    def make(self) -> list[Arrival]:
        """The requests, in order of time."""
        from ziggurat.workload.gamma import shape_of_cv

        lengths, burstiness = LENGTHS.get(self.lengths)(self.length_scale), shape_of_cv(self.cv)
        if self.mean_turns == 1:
            unit = make_arrivals(
                self.num_prompts,
                lengths,
                seed=self.seed,
                burstiness=burstiness,
                model=self.arrivals,
                max_model_len=self.max_model_len,
            )
            return at_rate(unit, self.request_rate)
        if not self.request_rate > 0:
            raise ConfigError(f"request_rate must be above 0, got {self.request_rate}")
        starts = unit_times(self.num_prompts, seed=self.seed, burstiness=burstiness, model=self.arrivals)
        model = SessionModel(lengths=lengths, mean_turns=self.mean_turns, max_model_len=self.max_model_len)
        return model.arrivals([start / self.request_rate for start in starts], seed=self.seed)


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat trace generate", "Write a trace made from published figures; --output FILE takes it.")
    add_flags(parser, flags_of(GenerateOptions))
    add_flags(parser, flags_of(ConvertOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Generate and write.

    Raises:
        ConfigError: a setting.
    """
    namespace = parser().parse(argv)
    path = output_of(namespace, "generate")
    options = build(GenerateOptions, namespace)
    written = write(path, options.make(), build(ConvertOptions, namespace))
    report(namespace, written, lines(written))
    return 0
