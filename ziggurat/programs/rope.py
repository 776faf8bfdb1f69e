# SPDX-License-Identifier: Apache-2.0
"""Rotary embeddings as data: the inverse frequencies of a head, and the published ways to stretch them over longer contexts.

Scaling rules are those of Hugging Face transformers (``modeling_rope_utils``): ``linear`` (position interpolation), ``dynamic``
(NTK-aware, as the plain one up to the model's own context), ``llama3`` (Llama 3.1) and ``yarn`` (Peng et al. 2023, arXiv 2309.00071).
``factors`` is GGUF's: one divisor per frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ziggurat.errors import ModelError, UnsupportedFeature

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """A rotary embedding.

    Attributes:
        theta: the base.
        dim: rotated values per head (even).
        frequencies: radians per position, ``dim / 2`` of them, scaling included.
        attention_scaling: factor on cosines and sines (yarn's temperature; 1 otherwise).
        kind: the scaling rule's name.
    """

    theta: float
    dim: int
    frequencies: tuple[float, ...]
    attention_scaling: float = 1.0
    kind: str = "default"

    def inverse_frequencies(self) -> list[float]:
        """Radians per position, as a fresh list."""
        return list(self.frequencies)

    def table_bytes(self, max_position: int) -> int:
        """Bytes of the fp32 cosine and sine tables for that many positions."""
        return 2 * max_position * (self.dim // 2) * 4


def rope_spec(theta: float, dim: int, parameters: Parameters, max_position: int) -> RopeSpec:
    """The rotary embedding of a configuration.

    Args:
        theta, dim: base and rotated values per head.
        parameters: Hugging Face's ``rope_parameters`` or ``rope_scaling`` object; empty for the plain embedding.
        max_position: ``max_position_embeddings``, the original context where the parameters name none.

    Raises:
        UnsupportedFeature: a rule that is not built; named.
        ModelError: a parameter is absent or not a number above zero.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in _RULES:
        raise UnsupportedFeature(
            f"rope scaling {kind!r} is not supported. Known: {', '.join(_RULES)}", feature=f"rope_scaling:{kind}"
        )
    frequencies, scaling = _RULES[kind](plain_frequencies(theta, dim), theta, parameters, max_position)
    return RopeSpec(theta=theta, dim=dim, frequencies=tuple(frequencies), attention_scaling=scaling, kind=kind)


def plain_frequencies(theta: float, dim: int) -> list[float]:
    """The frequencies without scaling: radians per position, ``dim / 2`` of them."""
    return [theta ** (-(2 * i) / dim) for i in range(dim // 2)]


def _number(parameters: Parameters, key: str, default: float | None = None) -> float:
    value = parameters.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ModelError(f"config.json: rope scaling needs {key} as a number above zero, got {value!r}")
    return float(value)


_Rule = Callable[[list[float], float, Parameters, int], tuple[list[float], float]]


def _default(
    plain: list[float], _theta: float, _parameters: Parameters, _max_position: int
) -> tuple[list[float], float]:
    return plain, 1.0


def _linear(plain: list[float], _theta: float, parameters: Parameters, _max_position: int) -> tuple[list[float], float]:
    factor = _number(parameters, "factor")
    return [f / factor for f in plain], 1.0


def _factors(
    plain: list[float], _theta: float, parameters: Parameters, _max_position: int
) -> tuple[list[float], float]:
    factors = parameters.get("factors")
    if not isinstance(factors, list) or len(factors) != len(plain):
        raise ModelError(f"rope scaling needs factors as a list of {len(plain)} numbers, got {factors!r}")
    if not all(isinstance(each, float) and 0 < each < math.inf for each in factors):
        raise ModelError(f"rope scaling needs factors above zero, got {min(factors)!r} to {max(factors)!r}")
    return [f / factor for f, factor in zip(plain, factors, strict=True)], 1.0


def _llama3(plain: list[float], _theta: float, parameters: Parameters, max_position: int) -> tuple[list[float], float]:
    factor = _number(parameters, "factor")
    low, high = _number(parameters, "low_freq_factor", 1.0), _number(parameters, "high_freq_factor", 4.0)
    original = _number(parameters, "original_max_position_embeddings", max_position)
    if high <= low:
        raise ModelError(f"config.json: rope scaling needs high_freq_factor {high} above low_freq_factor {low}")
    result = []
    for f in plain:
        # 0 below the low frequency border (stretched), 1 above the high one (kept), linear in between.
        smooth = min(1.0, max(0.0, (original * f / (2 * math.pi) - low) / (high - low)))
        result.append((1 - smooth) * f / factor + smooth * f)
    return result, 1.0


def _yarn(plain: list[float], theta: float, parameters: Parameters, max_position: int) -> tuple[list[float], float]:
    factor = _number(parameters, "factor")
    original = _number(parameters, "original_max_position_embeddings", max_position)
    dim = 2 * len(plain)

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(_number(parameters, "beta_fast", 32)), correction(_number(parameters, "beta_slow", 1))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = (high - low) or 0.001
    result = []
    for i, f in enumerate(plain):
        ramp = min(1.0, max(0.0, (i - low) / span))
        result.append(f / factor * ramp + f * (1 - ramp))
    return result, _yarn_temperature(factor, parameters)


def _yarn_temperature(factor: float, parameters: Parameters) -> float:
    def temperature(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return _number(parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return temperature(_number(parameters, "mscale")) / temperature(_number(parameters, "mscale_all_dim"))
    return temperature(1.0)


# The dynamic rule changes the base only beyond the positions that the model was built for, and no sequence gets that long here.
_RULES: dict[str, _Rule] = {
    "default": _default,
    "dynamic": _default,
    "factors": _factors,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
