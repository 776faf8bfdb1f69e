# SPDX-License-Identifier: Apache-2.0
"""The log of a server that is a program of its own."""

from __future__ import annotations

import logging

import pytest

from ziggurat.server.console import log_to_stderr


def test_lines_go_to_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("ziggurat")
    before = (log.level, log.propagate, list(log.handlers))
    try:
        log_to_stderr()
        log_to_stderr()
        logging.getLogger("ziggurat.server").info("busy")
        logging.getLogger("ziggurat.server").debug("detail")
    finally:
        log.level, log.propagate, log.handlers[:] = before[0], before[1], before[2]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("busy") == 1
    assert err.endswith(" busy\n")
