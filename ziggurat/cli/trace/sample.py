# SPDX-License-Identifier: Apache-2.0
"""``ziggurat trace sample FILE --output FILE``: a part of a trace, thinned, faster, or drawn anew from what was fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ziggurat.cli.flags import Parser, add_flags, build, flags_of
from ziggurat.cli.output import add_output_flags
from ziggurat.cli.trace.convert import ConvertOptions, lines, output_of, report, write
from ziggurat.cli.trace.source import about, add_source, open_source
from ziggurat.engine.config import option

SCALINGS = ("rps", "modelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What is done, in this order: window (``--start-s``, ``--end-s``), thinning, first N, scaling."""

    thin: float = option(
        1.0, "keep each request with this probability; moves the CV of gaps towards 1", group="sampling"
    )
    num_requests: int | None = option(None, "only the first N that are left", group="sampling")
    rate_scale: float = option(1.0, "so many times the rate", group="sampling")
    scaling: str = option(
        "rps",
        "rps divides times and keeps the bursts; modelled fits every window and draws anew",
        choices=SCALINGS,
        group="sampling",
    )
    window_s: float = option(300.0, "windows of the modelled scaling, seconds", group="sampling")
    seed: int = option(0, "of everything that is drawn", group="sampling")


def parser() -> Parser:
    """Its flags."""
    parser = Parser("ziggurat trace sample", "Write a part of a trace, or one like it; --output FILE takes the trace.")
    add_source(parser)
    add_flags(parser, flags_of(SampleOptions))
    add_flags(parser, flags_of(ConvertOptions))
    add_output_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Sample, and print the books.

    Raises:
        ConfigError: a setting, or a file that is not a trace; says the row.
    """
    namespace = parser().parse(argv)
    from ziggurat.workload.traces.sampling import Sampling

    options = build(SampleOptions, namespace)
    sampling = Sampling(
        thin=options.thin,
        num_requests=options.num_requests,
        rate_scale=options.rate_scale,
        is_modelled=options.scaling == "modelled",
        window_s=options.window_s,
        seed=options.seed,
    )
    path = output_of(namespace, "sample")
    reader = open_source(namespace)
    # The same format again, unless it cannot be written or another one is asked for.
    keeps_format = not hasattr(namespace, "to") and reader.format_name != "sharegpt"
    target = build(ConvertOptions, namespace, **({"to": reader.format_name} if keeps_format else {}))
    written = write(path, sampling.apply(reader), target)
    data = {**about(reader), **written, "labels": sampling.labels}
    report(namespace, data, [reader.counts.as_text(), *lines(written), *sampling.labels])
    return 0
