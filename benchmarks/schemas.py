# SPDX-License-Identifier: Apache-2.0
"""JSON schemas of varied features, made from a seed: what ``structured_output.py`` and the slow tests ask a model to follow."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

WORDS = (
    "name",
    "city",
    "colour",
    "price",
    "tag",
    "owner",
    "kind",
    "note",
    "code",
    "size",
    "item",
    "level",
    "unit",
    "day",
)
FORMATS = ("date", "time", "date-time", "email", "ipv4", "uuid", "hostname")
PATTERNS = ("^[a-z]{2,8}$", "^[A-Z]{3}-[0-9]{4}$", "^(red|green|blue)$", "^\\+?[0-9 ]{5,12}$", "^v[0-9]+\\.[0-9]+$")


def make_schemas(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """``count`` schemas; the first uses of each feature come early, so that a short run sees all of them."""
    random_ = random.Random(seed)
    return [TOPS[index % len(TOPS)](random_) for index in range(count)]


def _string(random_: random.Random) -> dict[str, Any]:
    kind = random_.randrange(5)
    if kind == 0:
        return {"type": "string"}
    if kind == 1:
        low = random_.randrange(4)
        return {"type": "string", "minLength": low, "maxLength": low + random_.randrange(1, 30)}
    if kind == 2:
        return {"type": "string", "format": random_.choice(FORMATS)}
    if kind == 3:
        return {"type": "string", "pattern": random_.choice(PATTERNS)}
    return {"type": "string", "description": "a short text"}


def _number(random_: random.Random) -> dict[str, Any]:
    kind = random_.randrange(5)
    low = random_.randrange(-50, 50)
    if kind == 0:
        return {"type": "integer"}
    if kind == 1:
        return {"type": "integer", "minimum": low, "maximum": low + random_.randrange(1, 1000)}
    if kind == 2:
        return {"type": "number"}
    if kind == 3:
        return {"type": "number", "exclusiveMinimum": low, "maximum": low + random_.randrange(1, 1000)}
    return {"type": "integer", "multipleOf": random_.choice((2, 5, 10))}


def _choice(random_: random.Random) -> dict[str, Any]:
    kind = random_.randrange(4)
    if kind == 0:
        return {"enum": random_.sample(WORDS, random_.randrange(2, 6))}
    if kind == 1:
        return {"enum": [1, "one", None, True]}
    if kind == 2:
        return {"const": random_.choice(WORDS)}
    return {"type": "boolean"}


def _scalar(random_: random.Random) -> dict[str, Any]:
    return random_.choice((_string, _number, _choice))(random_)


def _object(random_: random.Random, depth: int = 1) -> dict[str, Any]:
    names = random_.sample(WORDS, random_.randrange(1, 5))
    make = _any if depth > 0 else lambda random_, _: _scalar(random_)
    schema: dict[str, Any] = {"type": "object", "properties": {name: make(random_, depth - 1) for name in names}}
    schema["required"] = [name for name in names if random_.random() < 0.7]
    if random_.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _array(random_: random.Random, depth: int = 1) -> dict[str, Any]:
    item = _object(random_, 0) if depth > 0 and random_.random() < 0.4 else _scalar(random_)
    schema: dict[str, Any] = {"type": "array", "items": item}
    if random_.random() < 0.7:
        schema["minItems"] = random_.randrange(3)
        schema["maxItems"] = schema["minItems"] + random_.randrange(1, 4)
    return schema


def _any(random_: random.Random, depth: int) -> dict[str, Any]:
    if depth <= 0:
        return _scalar(random_)
    return random_.choice((_object, _array, lambda r, _: _scalar(r)))(random_, depth)


def _nullable(random_: random.Random) -> dict[str, Any]:
    schema = _object(random_)
    schema["properties"] |= {
        "maybe": {"type": ["string", "null"], "maxLength": 12},
        "also": {"anyOf": [_number(random_), {"type": "null"}]},
    }
    schema["required"] = sorted(schema["properties"])
    return schema


def _referring(random_: random.Random) -> dict[str, Any]:
    properties = {
        "first": {"$ref": "#/$defs/part"},
        "rest": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
    }
    return {"type": "object", "properties": properties, "required": ["first"], "$defs": {"part": _object(random_, 0)}}


def _recursive(random_: random.Random) -> dict[str, Any]:
    node = {
        "type": "object",
        "properties": {
            "label": _string(random_),
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        },
        "required": ["label"],
        "additionalProperties": False,
    }
    return {"$ref": "#/$defs/node", "$defs": {"node": node}}


def _tagged(random_: random.Random) -> dict[str, Any]:
    branches = [
        {"type": "object", "properties": {"kind": {"const": word}, word: _scalar(random_)}, "required": ["kind", word]}
        for word in random_.sample(WORDS, 3)
    ]
    return {random_.choice(("anyOf", "oneOf")): [{**branch, "additionalProperties": False} for branch in branches]}


def _merged(random_: random.Random) -> dict[str, Any]:
    parts = [
        {"type": "object", "properties": {name: _scalar(random_)}, "required": [name]} for name in ("left", "right")
    ]
    return {"allOf": parts}


def _tuple(random_: random.Random) -> dict[str, Any]:
    items = [_scalar(random_) for _ in range(random_.randrange(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _mapping(random_: random.Random) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": _number(random_), "maxProperties": 3}


def _patterned(random_: random.Random) -> dict[str, Any]:
    return {"type": "object", "patternProperties": {"^x-[a-z]{1,5}$": _scalar(random_)}, "additionalProperties": False}


TOPS: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    _object,
    _array,
    _nullable,
    _referring,
    _recursive,
    _tagged,
    _merged,
    _tuple,
    _mapping,
    _patterned,
    lambda random_: _object(random_, 2),
    _scalar,
)
