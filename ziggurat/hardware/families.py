# SPDX-License-Identifier: Apache-2.0
"""Calibrated cost models of classes of operators: one formula each, with a handful of parameters per device.

A family says what a class of operators waits for; `fit_family` finds its parameters by least squares on the logarithm of time with a
soft-L1 loss, so that relative errors count and a few odd measurements do not. The peak P and bandwidth W in the formulas are the
published ones, so parameters are shares and carry over to a device that was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ziggurat.errors import ConfigError
from ziggurat.hardware.samples import Sample
from ziggurat.hardware.specs import Spec, find_device

F64 = NDArray[np.float64]
TILE = 128
SOFT_L1_SCALE = 0.1
# Where a constant is not published the roof it stands for is taken to be out of reach.
_ABSENT = {"num_cores": 1.0, "l2_mb": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Samples as columns, with the roofs of the device each ran on.

    Attributes:
        shape: the sizes that the class has, by name.
        time_s: measured.
    """

    flops: F64
    num_bytes: F64
    shape: Mapping[str, F64]
    peak_flop_s: F64
    bandwidth_b_s: F64
    cache_bytes: F64
    num_cores: F64
    time_s: F64

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Columns:
        """From samples of one class."""
        specs = [find_device(sample.device) for sample in samples]

        def column(key: str, unit: float) -> F64:
            return np.asarray([_constant(spec, key) * unit for spec in specs])

        return cls(
            flops=np.asarray([sample.flops for sample in samples]),
            num_bytes=np.asarray([sample.num_bytes for sample in samples]),
            shape={name: np.asarray([sample.shape[name] for sample in samples]) for name in samples[0].shape},
            peak_flop_s=column("fp16_tflops", 1e12),
            bandwidth_b_s=column("bandwidth_gb_s", 1e9),
            cache_bytes=column("l2_mb", 1e6),
            num_cores=column("num_cores", 1.0),
            time_s=np.asarray([sample.time_s for sample in samples]),
        )

    @property
    def ideal_s(self) -> F64:
        """The published roofline, ``max(F / P, B / W)``."""
        return np.maximum(self.flops / self.peak_flop_s, self.num_bytes / self.bandwidth_b_s)


def _constant(spec: Spec, key: str) -> float:
    return spec.value(key) if key in spec.constants or key not in _ABSENT else _ABSENT[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One number to be found: searched between ``low`` and ``high``, on a logarithmic scale, from ``start``."""

    name: str
    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A formula for a class of operators.

    Attributes:
        seconds: (parameters in their order, columns) -> seconds of each row.
    """

    parameters: tuple[Parameter, ...]
    seconds: Callable[[Sequence[float], Columns], F64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A family with its parameters found."""

    family: Family
    values: tuple[float, ...]

    def predict(self, columns: Columns) -> F64:
        """Seconds of each row."""
        return self.family.seconds(self.values, columns)

    def as_dict(self) -> dict[str, float]:
        """Parameters by name."""
        return {parameter.name: value for parameter, value in zip(self.family.parameters, self.values, strict=True)}


def fit_family(family: Family, columns: Columns) -> Calibrated:
    """The parameters that fit best.

    Raises:
        ConfigError: fewer samples than parameters.
    """
    from scipy.optimize import least_squares

    count = len(columns.time_s)
    if count < len(family.parameters):
        raise ConfigError(f"{count} samples cannot fit {len(family.parameters)} parameters: give more of them")
    log_time = np.log(columns.time_s)
    found = least_squares(
        lambda x: np.log(np.maximum(family.seconds(np.exp(x), columns), 1e-12)) - log_time,
        np.log([parameter.start for parameter in family.parameters]),
        bounds=(
            np.log([parameter.low for parameter in family.parameters]),
            np.log([parameter.high for parameter in family.parameters]),
        ),
        loss="soft_l1",
        f_scale=SOFT_L1_SCALE,
        x_scale="jac",
    )
    return Calibrated(family=family, values=tuple(float(value) for value in np.exp(found.x)))


def wave_factor(columns: Columns, tiles: F64) -> F64:
    """Tiles rounded up to full waves over the device's cores, over the tiles: what the last wave wastes; at least 1."""
    return np.ceil(tiles / columns.num_cores) * columns.num_cores / tiles


def gemm_tiles(columns: Columns) -> F64:
    """Output tiles of 128 x 128; up to 64 rows take half a tile."""
    return np.maximum(np.ceil(columns.shape["m"] / TILE), 0.5) * np.ceil(columns.shape["n"] / TILE)


def _gemm(x: Sequence[float], columns: Columns) -> F64:
    compute_share, bandwidth_share, floor_s, corner, wave_exponent = x
    work = columns.flops * wave_factor(columns, gemm_tiles(columns)) ** wave_exponent
    compute = work / (compute_share * columns.peak_flop_s)
    memory = columns.num_bytes / (bandwidth_share * columns.bandwidth_b_s)
    larger = np.maximum(compute, memory)
    power = 1 + corner
    # Scaled by the larger one, so that no power overflows.
    return floor_s + larger * ((compute / larger) ** power + (memory / larger) ** power) ** (1 / power)


def _elementwise(x: Sequence[float], columns: Columns) -> F64:
    cached_share, bandwidth_share, floor_s, cache_reach, sharpness = x
    reach = np.maximum(cache_reach * columns.cache_bytes, 1.0)
    cached = 1 / (1 + (columns.num_bytes / reach) ** sharpness)
    return floor_s + columns.num_bytes / columns.bandwidth_b_s * (
        cached / cached_share + (1 - cached) / bandwidth_share
    )


def _decode(x: Sequence[float], columns: Columns) -> F64:
    bandwidth_share, floor_s = x
    return floor_s + columns.num_bytes / (bandwidth_share * columns.bandwidth_b_s)


def _prefill(x: Sequence[float], columns: Columns) -> F64:
    compute_share, floor_s, wave_exponent, wave_s, query_s = x
    tiles = np.ceil(columns.shape["queries"] / TILE) * columns.shape["heads"] * columns.shape["batch"]
    waves = np.ceil(tiles / columns.num_cores)
    work = columns.flops * wave_factor(columns, tiles) ** wave_exponent
    return (
        floor_s
        + work / (compute_share * columns.peak_flop_s)
        + wave_s * waves
        + query_s * columns.shape["queries"] * columns.shape["batch"]
    )


def _parameter(name: str, start: float, low: float, high: float) -> Parameter:
    return Parameter(name=name, start=start, low=low, high=high)


_FLOOR = _parameter("floor_s", 5e-6, 1e-9, 1e-2)

# GEMM: t0 + ((F w^a / (e_c P))^q + (B / (e_b W))^q)^(1/q), with w the waste of the last wave of tiles. Real kernels reach
# a share of the peak, have a floor, and round the corner between the two roofs. `corner` is q - 1.
GEMM = Family(
    parameters=(
        _parameter("compute_share", 0.75, 0.02, 1.2),
        _parameter("bandwidth_share", 0.8, 0.02, 4.0),
        _FLOOR,
        _parameter("corner", 0.5, 0.01, 20.0),
        _parameter("wave_exponent", 0.3, 1e-3, 1.0),
    ),
    seconds=_gemm,
)
# Element-wise: t0 + B / W * (s / e_1 + (1 - s) / e_2), s = 1 / (1 + (B / (c L2))^p): what fits the last-level cache moves faster.
ELEMENTWISE = Family(
    parameters=(
        _parameter("cached_share", 0.6, 0.02, 6.0),
        _parameter("bandwidth_share", 0.45, 0.02, 4.0),
        _parameter("floor_s", 3e-6, 1e-9, 1e-2),
        _parameter("cache_reach", 1.2, 0.22, 4.5),
        _parameter("sharpness", 3.0, 1.0, 12.0),
    ),
    seconds=_elementwise,
)
# Decode attention: t0 + B / (e W). Forests interpolate better and extrapolate worse.
DECODE = Family(
    parameters=(_parameter("bandwidth_share", 0.8, 0.02, 4.0), _parameter("floor_s", 1.5e-5, 1e-9, 1e-2)),
    seconds=_decode,
)
# Prefill attention: F counts the full rectangle of queries and keys; blocks of 128 queries run in waves, each with a cost of its own.
PREFILL = Family(
    parameters=(
        _parameter("compute_share", 0.5, 0.02, 1.2),
        _parameter("floor_s", 1e-5, 1e-9, 1e-2),
        _parameter("wave_exponent", 0.2, 1e-3, 1.0),
        _parameter("wave_s", 1e-5, 1e-9, 1e-2),
        _parameter("query_s", 1e-8, 1e-12, 1e-4),
    ),
    seconds=_prefill,
)
FAMILIES = {
    "gemm": GEMM,
    "layernorm": ELEMENTWISE,
    "rope": ELEMENTWISE,
    "activation": ELEMENTWISE,
    "add": ELEMENTWISE,
    "attention_decode": DECODE,
    "attention_prefill": PREFILL,
}
