# SPDX-License-Identifier: Apache-2.0
"""Where the log goes when the server is a program of its own. Libraries must not decide that, so only the command line calls it."""

from __future__ import annotations

import logging
import sys


def log_to_stderr() -> None:
    """Ziggurat's own log, from INFO on, to standard error with the time before each line. Twice is as good as once."""
    log = logging.getLogger("ziggurat")
    log.setLevel(logging.INFO)
    log.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers[:] = [handler]
