# SPDX-License-Identifier: Apache-2.0
"""Bytes and seconds: parsing what people type, printing what people read."""

from __future__ import annotations

import re

from ziggurat.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_FACTORS = {
    "": 1,
    "B": 1,
    "K": KIB,
    "KB": 1000,
    "KIB": KIB,
    "M": MIB,
    "MB": 1000**2,
    "MIB": MIB,
    "G": GIB,
    "GB": 1000**3,
    "GIB": GIB,
    "T": TIB,
    "TB": 1000**4,
    "TIB": TIB,
}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$")


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``1GiB``, ``512M`` (binary), ``2GB`` (decimal) or a plain number of bytes.

    Raises:
        ConfigError: not a size, or not above zero.
    """
    if isinstance(text, int):
        num_bytes = text
    else:
        match = _SIZE.match(text)
        factor = _FACTORS.get(match.group(2).upper()) if match else None
        if match is None or factor is None:
            raise ConfigError(f"{text!r} is not a size: write a number and a unit, for example 512MiB, 1GiB or 2GB")
        num_bytes = int(float(match.group(1)) * factor)
    if num_bytes <= 0:
        raise ConfigError(f"a size must be above zero, got {text!r}")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """A size as people read it: binary units, three significant digits (``1.50 GiB``)."""
    sign = "-" if num_bytes < 0 else ""
    value = abs(float(num_bytes))
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if value >= factor:
            scaled = value / factor
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{sign}{scaled:.{digits}f} {unit}"
    return f"{sign}{value:.0f} B"


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def ceil_div(value: int, divisor: int) -> int:
    """Integer division, rounded up."""
    return -(-value // divisor)
