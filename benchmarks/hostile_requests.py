# SPDX-License-Identifier: Apache-2.0
"""Five hundred requests that no well-behaved client sends: by hand, and from our own OpenAPI document by schemathesis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.attack import Attack

COUNT = 500
MIB = b"x" * (1 << 20)
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
JSON_TYPE = "Content-Type: application/json"


def head(path: str, *lines: str, method: str = "POST", version: str = "1.1") -> bytes:
    """The head of a request that asks the server to close afterwards."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", "Connection: close", *lines, "", ""]).encode()


def post(kind: str, path: str, raw: bytes, *lines: str, may_pass: bool = False) -> Attack:
    """A whole request with these bytes as its body."""
    lines = lines or (JSON_TYPE,)
    return Attack(kind=kind, parts=(head(path, *lines, f"Content-Length: {len(raw)}"), raw), may_pass=may_pass)


def body(kind: str, fields: dict[str, Any], *, may_pass: bool = False) -> Attack:
    """A completion with these fields."""
    raw = json.dumps({"prompt": "x", "max_tokens": 8, **fields}).encode("utf-8", "surrogatepass")
    return post(kind, COMPLETIONS, raw, may_pass=may_pass)


def giants() -> Iterator[Attack]:
    """Bodies of 50 MB, announced or in chunks, and lengths that lie."""
    chunk = b"100000\r\n" + MIB + b"\r\n"
    for path in (COMPLETIONS, CHAT, "/v1/embeddings", "/tokenize", "/detokenize"):
        announced = head(path, JSON_TYPE, "Content-Length: 50000000")
        yield Attack(kind="giant", parts=(announced, *[MIB] * 47, MIB[: 50_000_000 - 47 * len(MIB)]))
        yield Attack(kind="giant", parts=(head(path, JSON_TYPE, "Transfer-Encoding: chunked"), *[chunk] * 48))
    for length in ("1000000000000", "-1", "1e3", "99999999999999999999999", "0x10", "5, 6", ""):
        yield Attack(kind="length", parts=(head(COMPLETIONS, JSON_TYPE, f"Content-Length: {length}"), b"{}"))
    for size in (b"-1\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"zz\r\n", b"5;" + b"e" * 100_000 + b"\r\n", b"\r\n"):
        parts = (head(COMPLETIONS, JSON_TYPE, "Transfer-Encoding: chunked"), size, b"hello\r\n0\r\n\r\n")
        yield Attack(kind="length", parts=parts)
    both = head(COMPLETIONS, JSON_TYPE, "Content-Length: 4", "Transfer-Encoding: chunked")
    yield Attack(kind="length", parts=(both, b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"))
    for raw in (
        b"[" * (4 << 20),
        b'{"prompt": [' + b"1," * (1 << 20) + b"1]}",
        b'{"a":' * 300_000,
        b"{" + b" " * 4_000_000,
    ):
        yield post("giant", COMPLETIONS, raw)
    yield post("giant", COMPLETIONS, json.dumps({"prompt": "y " * 2_000_000}).encode())


def texts() -> Iterator[Attack]:
    """Bytes that are not UTF-8, or not text."""
    bad = (
        b"\xff\xfe",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\x80",
        b"\xe2\x82",
        b"\x00",
        b"\x1b[2J",
    )
    for piece in bad:
        yield post("utf-8", COMPLETIONS, b'{"prompt": "' + piece + b'"}')
        yield post("utf-8", COMPLETIONS, b'{"' + piece + b'": 1}')
        yield post("utf-8", CHAT, b'{"messages": [{"role": "user", "content": "' + piece + b'"}]}')
    for escape in (b"\\ud800", b"\\udfff\\ud800", b"\\x41", b"\\u12"):
        yield post("utf-8", COMPLETIONS, b'{"prompt": "' + escape + b'"}')
        yield post("utf-8", "/tokenize", b'{"prompt": "' + escape + b'"}')
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        yield post("utf-8", COMPLETIONS, '{"prompt": "é"}'.encode(encoding))
    yield post("utf-8", COMPLETIONS, b"")
    for raw in (b"null", b"[]", b'"x"', b"1", b"{", b"}", b"{}}", b"NaN", b'{"prompt": NaN}', b'{"prompt": "x",}'):
        yield post("not an object", COMPLETIONS, raw)


def deep() -> Iterator[Attack]:
    """Nesting, recursion and size in bodies and schemas."""
    for depth in (600, 5000, 100_000):
        yield post("deep", COMPLETIONS, b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}")
        yield post("deep", CHAT, b'{"messages": ' + b'[{"a":' * depth + b"1" + b"}]" * depth + b"}")
        raw = b'{"prompt": "x", "metadata": ' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)
        yield post("deep", COMPLETIONS, raw, may_pass=depth < 1000)
        schema = b'{"items":' * depth + b"{}" + b"}" * depth
        yield post("schema", COMPLETIONS, b'{"prompt": "x", "guided_json": ' + schema + b"}")
        yield post(
            "schema", COMPLETIONS, b'{"prompt": "x", "guided_json": ' + json.dumps(schema.decode()).encode() + b"}"
        )
    leaf = {"type": "string", "pattern": "a{900}"}
    schemas: list[Any] = [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"$ref": "#/$defs/missing"},
        {"allOf": [{"type": "string", "pattern": f"a{{{number}}}"} for number in range(60)]},
        {"type": "object", "properties": {f"p{number}": {} for number in range(5000)}},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"oneOf": [{"type": "object", "properties": {f"p{number}": leaf}} for number in range(400)]},
        {"type": "array", "minItems": 10**12, "items": {}},
        {"type": "string", "minLength": 10**9},
        {"type": "integer", "multipleOf": 1e-300},
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"enum": []},
        {"not": {}},
        {"type": "sandwich"},
        {"enum": [str(number) * 50 for number in range(50_000)]},
        {"type": "object", "patternProperties": {"(a+)+$": {"$ref": "#"}}},
        [],
        7,
    ]
    for schema in schemas:
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield body("schema", {"guided_json": schema}, may_pass=True)
        yield body("schema", {"response_format": wanted}, may_pass=True)


def regexes() -> Iterator[Attack]:
    """What blows up engines that backtrack, or that unfold counts."""
    patterns = [
        *("(a+)+$", "(a|a)*b", "(a*)*b", "(a|aa)+$", "(.*)*x", "([a-z]+)*[0-9]", "(x+x+)+y", "((a{1000}){1000}){1000}"),
        *(
            "a{1000000000}",
            "(a{0,30000}){30000}",
            "(?=a)(?!b)a",
            "(a)\\1",
            "(?<=x)y",
            "\\p{L}{5000}",
            "[\\x00-\\U0010ffff]{9999}",
        ),
        *(
            "(" * 5000 + "a" + ")" * 5000,
            "|".join("ab" * 30 + str(number) for number in range(20_000)),
            "(" * 100,
            "[z-a]",
        ),
        *(
            "*",
            "a**",
            "(?P<n>a)(?P<n>b)",
            "\\",
            "a{5,2}",
            "(?i)" * 5000 + "a",
            ".*" * 2000 + "b",
            "(.{1,99}x){1,99}",
            "\x00",
        ),
    ]
    for pattern in patterns:
        yield body("regex", {"guided_regex": pattern}, may_pass=True)
    for grammar in (
        "start: start",
        "start: a\na: b\nb: a",
        "start: /(a+)+$/",
        "start: " + '"a" ' * 50_000,
        "root ::= root root",
        "%%",
    ):
        yield body("regex", {"guided_grammar": grammar}, may_pass=True)


def numbers() -> Iterator[Attack]:
    """Counts, lists and maps out of all proportion."""
    for value in (10**9, -1, 0, 10**30, 1.5, True, "2", [], {}):
        yield body("n", {"n": value}, may_pass=value == "2" or value is True)
    fields: list[dict[str, Any]] = [
        {"best_of": 10**9},
        {"max_tokens": -5},
        {"max_tokens": 10**18},
        {"stop": ["x" * 10] * 100_000},
        {"stop": ["x" * 3_000_000]},
        {"stop": [""]},
        {"stop_token_ids": list(range(200_000))},
        {"stop_token_ids": [-1, 10**12]},
        {"logit_bias": {str(number): 1 for number in range(200_000)}},
        {"logit_bias": {"1": 1e308}},
        {"logit_bias": {"-1": 1, "x": 2}},
        {"logit_bias": {"9" * 5000: 1}},
        {"allowed_token_ids": [10**12]},
        {"seed": 2**70},
        {"temperature": 1e308},
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": -7},
        {"min_p": 2},
        {"logprobs": 10**6},
        {"prompt_logprobs": 10**6},
        {"priority": 2**80},
        {"prompt": [2**70]},
        {"prompt": [[1] * 10] * 20_000},
        {"prompt": [10**6, -3]},
        {"truncate_prompt_tokens": -1},
        {"guided_choice": []},
        {"guided_choice": ["x" * 100] * 20_000},
        {"repetition_penalty": 0},
        {"cache_salt": ""},
        {"request_id": "x" * 10_000},
        {"request_id": "a\r\nb: c"},
        {"x" * 100_000: 1},
    ]
    passing = ({"cache_salt": ""}, {"guided_choice": ["x" * 100] * 20_000})
    for each in fields:
        yield body("numbers", each, may_pass=each in passing)
    for raw in (
        b'{"prompt": "x", "temperature": Infinity}',
        b'{"prompt": "x", "n": 1e999}',
        b'{"prompt": "x", "seed": ' + b"9" * 9000 + b"}",
    ):
        yield post("numbers", COMPLETIONS, raw)


def sockets() -> Iterator[Attack]:
    """Slow, half-closed and reset connections."""
    raw = json.dumps({"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}).encode()
    whole = head(COMPLETIONS, JSON_TYPE, f"Content-Length: {len(raw)}")
    for path in (COMPLETIONS, CHAT, "/tokenize", "/health", "/v1/embeddings", "/metrics"):
        slow = head(path, JSON_TYPE, "X: " + "y" * 200)
        yield Attack(kind="slow head", pause_s=1.0, parts=tuple(slow[at : at + 1] for at in range(len(slow))))
    for path in (COMPLETIONS, CHAT, "/tokenize", "/detokenize", "/v1/embeddings"):
        announced = head(path, JSON_TYPE, "Content-Length: 300")
        yield Attack(kind="slow body", pause_s=1.0, parts=(announced, *[b"{"] * 200))
        yield Attack(
            kind="half-closed", parts=(head(path, JSON_TYPE, "Content-Length: 300"), b'{"prompt"'), end="half-close"
        )
        yield Attack(kind="reset", parts=(head(path, JSON_TYPE, "Content-Length: 300"), b'{"prompt"'), end="reset")
    for _ in range(5):
        yield Attack(kind="half-closed", parts=(whole, raw), end="half-close", may_pass=True)
        yield Attack(kind="half-closed", parts=(whole[:30],), end="half-close")
        yield Attack(kind="reset", parts=(whole, raw), end="reset", may_pass=True)
        yield Attack(kind="half-closed", parts=(b"",), end="half-close")


def wire() -> Iterator[Attack]:
    """Wrong content types, and bytes that are hardly HTTP."""
    for content_type in (
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "x" * 5000,
        "",
    ):
        yield post("content type", COMPLETIONS, b'{"prompt": "x"}', f"Content-Type: {content_type}")
    for encoding in ("gzip", "br", "deflate, gzip", "nonsense"):
        yield post("content type", COMPLETIONS, b'{"prompt": "x"}', JSON_TYPE, f"Content-Encoding: {encoding}")
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x00" * 9000,
        b"G E T\r\n\r\n",
        b"\xff" * 100 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        yield Attack(kind="garbage", parts=(garbage, b"\r\n\r\n"))
        yield Attack(kind="pipelined", parts=(health + garbage + b"\r\n\r\n",), may_pass=True)
        yield Attack(kind="pipelined", parts=(health * 50, garbage, b"\r\n\r\n"), may_pass=True)
    lines = (
        "X" * 200_000 + ": y",
        "X: " + "y" * 200_000,
        "X : y",
        ": y",
        "X\x00: y",
        "X: a\x00b",
        "Transfer-Encoding: gzip",
        "Host: y",
    )
    for line in lines:
        yield Attack(kind="head", parts=(head("/health", line, method="GET"),), may_pass=line == "Host: y")
    yield Attack(kind="head", parts=(head("/health", *[f"X-{number}: y" for number in range(20_000)], method="GET"),))
    for method in ("TRACE", "CONNECT", "PATCH", "DELETE", "BREW", "post"):
        yield Attack(kind="method", parts=(head(COMPLETIONS, method=method),))
    for path in (
        "/" + "a" * 50_000,
        "/%ff%fe",
        "/..%2f..%2fetc/passwd",
        "/%00",
        "http://other/x",
        "*",
        "/v1//completions",
        "/v1/models/%0d%0aX:y",
    ):
        yield Attack(kind="path", parts=(head(path, method="GET"),))
    for version in ("9.9", "0.9", "2.0", "1.x"):
        # The parser reads any two digits as 1.1.
        yield Attack(kind="head", parts=(head("/health", method="GET", version=version),), may_pass=True)
    yield Attack(
        kind="head", parts=(head("/health", "Upgrade: websocket", "Connection: Upgrade", method="GET"),), may_pass=True
    )


def generated(document: dict[str, Any], count: int) -> list[Attack]:
    """Bodies that break the document's schemas, the same ones every time; needs schemathesis.

    Args:
        document: what /openapi.json says.
    """
    import schemathesis

    schema = schemathesis.openapi.from_dict(document)
    paths = sorted(path for path, methods in document["paths"].items() if "requestBody" in methods.get("post", {}))
    attacks: list[Attack] = []
    for index, path in enumerate(paths):
        share = count // len(paths) + (index < count % len(paths))
        strategy = schema[path]["POST"].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        bodies = list(
            dict.fromkeys(each if isinstance(each, bytes) else _json(each) for each in _drawn(strategy, 2 * share))
        )
        bodies += [b"%d" % number for number in range(share)]  # for the case that it repeated itself too often
        # Some types are wider than the document says: a number may come as text.
        attacks += [post(f"generated {path}", path, raw, may_pass=True) for raw in bodies[:share]]
    return attacks


def _drawn(strategy: Any, count: int) -> list[Any]:
    """The bodies of ``count`` cases that a strategy makes."""
    import hypothesis

    found: list[Any] = []

    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(case: Any) -> None:
        found.append(case.body)

    collect()
    return found


def _json(value: Any) -> bytes:
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def hostile_requests(document: dict[str, Any]) -> list[Attack]:
    """`COUNT` attacks, kinds mixed, in an order that is always the same."""
    by_hand = [attack for make in (giants, texts, deep, regexes, numbers, sockets, wire) for attack in make()]
    attacks = by_hand + generated(document, COUNT - len(by_hand))
    # A stride that is coprime to the count visits each once.
    return [attacks[(index * 197) % COUNT] for index in range(COUNT)]
