# SPDX-License-Identifier: Apache-2.0
"""A JSON schema for generating: narrower than the original where that costs nobody anything, and never wider.

- Objects have the properties that are listed and no others, unless the schema says otherwise. JSON Schema lets an object have any
  further members; a model that writes would use that to go on for ever, and nobody who lists properties means it (OpenAI's strict
  mode demands ``additionalProperties: false``, vLLM's default backend assumes it).
- Dates and times are in the calendar (the library's own patterns have a 31st of February and fractions without end), between the
  years 1000 and 2999.
- Integers without bounds stay within plus and minus 2^53 - 1, which is what JSON readers agree on (RFC 7493).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Where members of several schemas meet in one object, closing one of them would shut out the others' members.
_COMPOSING = ("allOf", "if", "dependentSchemas", "unevaluatedProperties")
_BESIDE_PROPERTIES = ("anyOf", "oneOf", "$ref", "$dynamicRef")
# Keywords whose value is data or names, not a schema.
_DATA = ("const", "enum", "default", "examples", "required")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
# Keywords whose languages the library intersects, which may take it for ever.
_COSTLY = ("pattern", "patternProperties", "allOf", "multipleOf", "propertyNames")
_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
MAX_SAFE_INTEGER = 2**53 - 1
_DATE = "[12][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_FORMATS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}


def narrowed(schema: Any) -> Any:
    """The narrower schema. The original is not changed."""
    is_closing = not any(_is_composed(each) for each in _schemas(schema))
    return _narrowed(schema, is_closing)


def is_costly(schema: Any) -> bool:
    """Whether compiling it may take long: it has regular expressions or intersections."""
    return any(word in each for each in _schemas(schema) for word in _COSTLY)


def _is_composed(schema: dict[str, Any]) -> bool:
    has_properties = "properties" in schema
    return any(word in schema for word in _COMPOSING) or (
        has_properties and any(word in schema for word in _BESIDE_PROPERTIES)
    )


def _schemas(node: Any) -> Iterator[dict[str, Any]]:
    """The schema and all schemas within it."""
    if isinstance(node, list):
        for each in node:
            yield from _schemas(each)
    elif isinstance(node, dict):
        yield node
        for key, value in node.items():
            if key in _NAMED_SCHEMAS and isinstance(value, dict):
                yield from _schemas(list(value.values()))
            elif key not in _DATA:
                yield from _schemas(value)


def _narrowed(node: Any, is_closing: bool) -> Any:
    if isinstance(node, list):
        return [_narrowed(each, is_closing) for each in node]
    if not isinstance(node, dict):
        return node
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key in _NAMED_SCHEMAS and isinstance(value, dict):
            result[key] = {name: _narrowed(each, is_closing) for name, each in value.items()}
        else:
            result[key] = value if key in _DATA else _narrowed(value, is_closing)
    if is_closing and _may_close(node):
        result["additionalProperties"] = False
    if node.get("format") in _FORMATS and "pattern" not in node:
        result["pattern"] = _FORMATS[result.pop("format")]
    if node.get("type") == "integer" and not any(word in node for word in _NUMERIC):
        result |= {"minimum": -MAX_SAFE_INTEGER, "maximum": MAX_SAFE_INTEGER}
    return result


def _may_close(node: dict[str, Any]) -> bool:
    properties, required = node.get("properties"), node.get("required", [])
    if not isinstance(properties, dict) or "additionalProperties" in node or "minProperties" in node:
        return False
    # A required member that is not listed needs the object to be open.
    return isinstance(required, list) and all(name in properties for name in required)
