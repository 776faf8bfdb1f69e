# SPDX-License-Identifier: Apache-2.0
"""Devices and links by name, with a source and a confidence for every constant."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError
from ziggurat.registry import nearest

_FOLDER = Path(__file__).with_name("data")
_UNITS = {
    "tflops": "1e12 FLOP/s",
    "tops": "1e12 op/s",
    "gb_s": "GB/s",
    "gb": "GB",
    "mb": "MB",
    "w": "W",
    "us": "us",
    "cores": "SMs, CUs or cores",
}
_ABOUT = ("name", "title", "aliases", "source", "confidence", "unconfirmed", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One number of a data sheet.

    Attributes:
        confidence: ``published``, or ``unconfirmed`` where sources disagree or give a range.
    """

    value: float
    unit: str
    source: str
    confidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A device or a link.

    Attributes:
        constants: by the keys of the TOML files, which end in their unit. A constant that no source gives is missing.
    """

    kind: str
    name: str
    title: str
    aliases: tuple[str, ...]
    constants: Mapping[str, Constant]
    note: str

    def value(self, key: str) -> float:
        """The number of a constant.

        Raises:
            ConfigError: nobody gives it; names those that are there.
        """
        if key not in self.constants:
            raise ConfigError(
                f"{self.kind} {self.name} has no {key}{nearest(key, list(self.constants)) or '.'} Known: {', '.join(self.constants)}"
            )
        return self.constants[key].value

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``hardware show``."""
        constants = {
            key: {"value": c.value, "unit": c.unit, "source": c.source, "confidence": c.confidence}
            for key, c in self.constants.items()
        }
        about = {"kind": self.kind, "name": self.name, "title": self.title, "aliases": list(self.aliases)}
        return {**about, "constants": constants, "note": self.note}


def devices() -> tuple[Spec, ...]:
    """All devices, in the order of the file."""
    return _read("device")


def links() -> tuple[Spec, ...]:
    """All links and storage tiers, in the order of the file."""
    return _read("link")


def find_device(name: str) -> Spec:
    """The device of that name or alias, in any case and with ``_`` or a blank for ``-``.

    Raises:
        ConfigError: there is none; says the nearest.
    """
    return _find(name, devices(), "device")


def find_link(name: str) -> Spec:
    """The link or storage tier of that name.

    Raises:
        ConfigError: there is none; says the nearest.
    """
    return _find(name, links(), "link")


def find_spec(name: str) -> Spec:
    """A device or a link.

    Raises:
        ConfigError: there is none; says the nearest.
    """
    return _find(name, (*devices(), *links()), "device or link")


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(" ", "-")


def _find(name: str, specs: tuple[Spec, ...], kind: str) -> Spec:
    by_name = {_plain(each): spec for spec in specs for each in (spec.name, *spec.aliases)}
    if _plain(name) not in by_name:
        hint = nearest(_plain(name), list(by_name))
        raise ConfigError(f"unknown {kind} {name!r}{hint or '.'} See `ziggurat hardware list`")
    return by_name[_plain(name)]


@cache
def _read(kind: str) -> tuple[Spec, ...]:
    path = _FOLDER / f"{kind}s.toml"
    return tuple(_spec(kind, row) for row in tomllib.loads(path.read_text(encoding="utf-8"))[kind])


def _spec(kind: str, row: Mapping[str, Any]) -> Spec:
    unconfirmed = row.get("unconfirmed", ())
    constants = {
        key: Constant(
            value=float(value),
            unit=next(unit for end, unit in _UNITS.items() if key.endswith(f"_{end}")),
            source=row["source"],
            confidence="unconfirmed" if key in unconfirmed else row["confidence"],
        )
        for key, value in row.items()
        if key not in _ABOUT
    }
    return Spec(
        kind=kind,
        name=row["name"],
        title=row.get("title", row["name"]),
        aliases=tuple(row.get("aliases", ())),
        constants=constants,
        note=row.get("note", ""),
    )
