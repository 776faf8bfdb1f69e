# SPDX-License-Identifier: Apache-2.0
"""A scenario: which model on which machines, who schedules, what comes in. A TOML file, checked as a whole before anything runs."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ziggurat.errors import ConfigError, UnsupportedFeature
from ziggurat.hardware.compiled import Layout
from ziggurat.hardware.models import find_model
from ziggurat.hardware.specs import find_device
from ziggurat.registry import nearest
from ziggurat.scheduling.dispatch import DISPATCHERS
from ziggurat.scheduling.order import ORDERS
from ziggurat.scheduling.planners import PLANNERS
from ziggurat.workload.arrivals import LENGTHS, Lengths, at_rate, make_arrivals, uniform
from ziggurat.workload.records import Arrival
from ziggurat.workload.traces.reading import read_trace

T = TypeVar("T")
MIXED = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Requests that are made up: lengths of a publication, or uniform ones, at a rate.

    Attributes:
        lengths: name of a length distribution, or ``random``.
        rate: requests per second, on average.
        burstiness: shape of gamma gaps; 1 is Poisson.
        input_tokens, output_tokens, spread: for ``random``.
    """

    lengths: str = "random"
    rate: float = 1.0
    num_requests: int = 100
    burstiness: float = 1.0
    scale: float = 1.0
    input_tokens: int = 512
    output_tokens: int = 128
    spread: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < math.inf:
            raise ConfigError(f"arrivals.rate must be above 0 requests/s, got {self.rate}")
        for name in ("num_requests", "input_tokens", "output_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"arrivals.{name} must be at least 1, got {getattr(self, name)}")
        if self.lengths != "random":
            LENGTHS.get(self.lengths)

    def distribution(self) -> Lengths:
        """How long prompts and outputs are."""
        if self.lengths != "random":
            return LENGTHS.get(self.lengths)(self.scale)
        return Lengths(
            prompt=uniform(self.input_tokens, spread=self.spread),
            output=uniform(self.output_tokens, spread=self.spread),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """What a serving framework adds to a step: published lines are in docs/hardware.md."""

    step_ms: float = 0.0
    sequence_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("step_ms", "sequence_ms"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"overhead.{name} must be at least 0 ms, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Limits that a good request meets, ms; None is no limit."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not value > 0:
                raise ConfigError(f"slo.{each.name} must be above 0 ms, got {value}: no request can meet it")

    @property
    def goodput(self) -> dict[str, float]:
        """By the names of `summarize`."""
        named = {each.name.removesuffix("_ms"): getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that a simulation depends on: equal scenarios, equal results.

    Attributes:
        model: name of a model shape; device: of a device (`ziggurat hardware list`).
        roles: what instances do; only ``mixed`` (prompts and texts on the same instance) is built.
        memory_share: of the devices' memory for weights and KV.
        trace: file of requests at their own times, instead of ``arrivals``; relative to the scenario's folder.
        links: between instances; nothing moves between mixed ones, so only the names are checked.
    """

    model: str
    device: str
    instances: int = 1
    layout: Layout = field(default_factory=Layout)
    roles: tuple[str, ...] = (MIXED,)
    dispatcher: str = "round_robin"
    planner: str = "sarathi"
    scheduling_policy: str = "fcfs"
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 256
    max_model_len: int = 16_384
    block_size: int = 16
    enable_prefix_caching: bool = True
    memory_share: float = 0.9
    arrivals: Arrivals | None = None
    trace: Path | None = None
    num_requests: int | None = None
    overhead: Overhead = field(default_factory=Overhead)
    slo: Slo = field(default_factory=Slo)
    links: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        shape = find_model(self.model)
        find_device(self.device)
        self.layout.check(shape)
        PLANNERS.get(self.planner)
        DISPATCHERS.get(self.dispatcher)
        ORDERS.get(self.scheduling_policy)
        for name in ("instances", "max_num_batched_tokens", "max_num_seqs", "max_model_len", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory_share must be above 0 and at most 1, got {self.memory_share}")
        if any(role != MIXED for role in self.roles):
            raise UnsupportedFeature(
                f"roles {', '.join(self.roles)}: only {MIXED!r} is built, prefill and decode apart are not",
                feature="roles",
            )
        if (self.arrivals is None) == (self.trace is None):
            raise ConfigError("a scenario needs either [arrivals] or a trace, and not both")

    def requests(self) -> list[Arrival]:
        """What comes in, in order of time.

        Raises:
            ConfigError: the trace cannot be read, or its times are out of order.
        """
        if self.trace is not None:
            return read_trace(self.trace, num_requests=self.num_requests)
        assert self.arrivals is not None
        made = make_arrivals(
            self.arrivals.num_requests,
            self.arrivals.distribution(),
            seed=self.seed,
            burstiness=self.arrivals.burstiness,
            max_model_len=self.max_model_len,
        )
        return at_rate(made, self.arrivals.rate)


_TABLES: Mapping[str, type] = {"layout": Layout, "arrivals": Arrivals, "overhead": Overhead, "slo": Slo}


def read_scenario(path: Path) -> Scenario:
    """A scenario from a TOML file.

    Raises:
        ConfigError: it cannot be read, a key is unknown (says the nearest) or a value is wrong.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    try:
        return scenario_of(found, path.parent)
    except (ConfigError, UnsupportedFeature) as error:
        raise type(error)(
            f"{path}: {error}", **({"feature": error.feature} if isinstance(error, UnsupportedFeature) else {})
        ) from None


def scenario_of(found: Mapping[str, Any], folder: Path) -> Scenario:
    """A scenario from plain data. Paths are relative to a folder.

    Raises:
        ConfigError: see `read_scenario`.
    """
    values = dict(found)
    for name, kind in _TABLES.items():
        if name in values:
            if not isinstance(values[name], Mapping):
                raise ConfigError(f"{name} must be a table of settings")
            values[name] = _build(kind, values[name], f"{name}.")
    if isinstance(values.get("trace"), str):
        values["trace"] = folder / values["trace"]
    if isinstance(values.get("roles"), list):
        values["roles"] = tuple(values["roles"])
    return _build(Scenario, values, "")


def _build(kind: type[T], values: Mapping[str, Any], prefix: str) -> T:
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            hint = nearest(name, list(known))
            raise ConfigError(f"unknown key {prefix}{name!r}{hint or '.'} Known: {', '.join(known)}")
        _check_type(f"{prefix}{name}", value, str(known[name].type))
    missing = [name for name in ("model", "device") if kind is Scenario and name not in values]
    if missing:
        raise ConfigError(f"the key {missing[0]!r} is required")
    return kind(**values)


def _check_type(name: str, value: Any, wanted: str) -> None:
    """Numbers where numbers are wanted, text where text is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    for kind, is_right in (
        ("int", isinstance(value, int) and not isinstance(value, bool)),
        ("float", is_number),
        ("bool", isinstance(value, bool)),
        ("str", isinstance(value, str)),
    ):
        if wanted.split(" |")[0] == kind and not is_right:
            raise ConfigError(f"{name} must be {'a number' if kind == 'float' else kind}, got {value!r}")
