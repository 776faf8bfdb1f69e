# SPDX-License-Identifier: Apache-2.0
"""docs/http-api.md says what the server does: routes, metrics, fields and error codes are compared with the code."""

from __future__ import annotations

import re
from pathlib import Path

from tests.server_client import get
from ziggurat.server.config import ServerConfig
from ziggurat.server.errors import TABLE
from ziggurat.server.schemas import ChatRequest, CompletionRequest

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "http-api.md").read_text(encoding="utf-8")
NAMES = set(re.findall(r"`([^`]+)`", TEXT))


def test_every_route_is_described() -> None:
    described = {name.split()[-1] for name in NAMES if re.match(r"(GET|POST|PUT|DELETE) /", name)}
    assert described - {"/", "/openapi.json"} == set(get("/openapi.json").json()["paths"])


def test_every_field_is_described() -> None:
    assert set(ChatRequest.model_fields) | set(CompletionRequest.model_fields) <= NAMES


def test_every_status_type_and_code_is_described() -> None:
    rows = {
        tuple(re.findall(r"^\| (\d+) \| `(\w+)`", line)[0]) for line in TEXT.splitlines() if re.match(r"\| \d", line)
    }
    assert {(str(answer.status), answer.type) for answer in TABLE.values()} <= rows
    codes = {
        code
        for path in (ROOT / "ziggurat" / "server").glob("*.py")
        for code in re.findall(r'code="(\w+)"', path.read_text())
    }
    ours_alone = {"does_not_fit", "unavailable"}  # of errors that no route of ours raises
    assert codes - ours_alone <= NAMES


def test_every_flag_that_is_named_exists() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in ServerConfig.__dataclass_fields__}
    assert {word for name in NAMES for word in re.findall(r"^--[a-z-]+", name)} <= flags
