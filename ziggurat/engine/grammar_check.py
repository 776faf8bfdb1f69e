# SPDX-License-Identifier: Apache-2.0
"""A program of its own: is this grammar one that llguidance can build, in bounded time and memory? Reads and writes one JSON object.

What a client sends may make the library take minutes or gigabytes (intersections of regular expressions), and a thread cannot be
stopped. So every new grammar is built here first, where the kernel can. It is started by its path, and imports nothing of the
package, so that it begins within some 60 ms.
"""

from __future__ import annotations

import json
import os
import resource
import sys

MAX_CPU_S = 3
MAX_ADDRESS_SPACE_BYTES = 1 << 30
# On a machine whose cores are all busy, whoever decodes comes first.
NICENESS = 10


def check(kind: str, text: str, options: dict[str, object], limits: dict[str, int]) -> dict[str, str]:
    """``{"grammar": for LLMatcher, "error": empty if it can be built}``.

    Args:
        kind: ``json_schema``, ``regex``, ``choice`` (a JSON list), ``lark``, or ``grammar`` (Lark or GBNF, found out by looking).
        options: of the JSON schema compiler.
    """
    from llguidance import LLMatcher, LLParserLimits, grammar_from

    try:
        if kind == "json_schema":
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
        else:
            grammar = grammar_from(kind, text)  # type: ignore[arg-type]
    except ValueError as error:
        return {"grammar": "", "error": str(error)}
    return {"grammar": grammar, "error": LLMatcher.validate_grammar(grammar, limits=LLParserLimits(**limits))}  # type: ignore[arg-type]


def main() -> None:
    """Standard input to standard output. Over the limits the process dies, which tells enough."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE_BYTES, MAX_ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.load(sys.stdin)
    json.dump(check(**request), sys.stdout)


if __name__ == "__main__":
    main()
