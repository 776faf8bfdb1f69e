# SPDX-License-Identifier: Apache-2.0
"""Where real traces, profiles and texts lie that experiments may read. The project works without them: a claim that needs a file that is
not there says ``not_run`` and names it."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "ZIGGURAT_DATA"


def data_file(relative: str) -> Path | None:
    """The file below the folder that ``ZIGGURAT_DATA`` names; None when the variable is not set or the file is not there."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder, relative) if folder else None
    return path if path is not None and path.is_file() else None


def why_missing(relative: str) -> str:
    """The note of a claim that was not run for want of a file."""
    folder = os.environ.get(VARIABLE)
    return (
        f"{relative} is not below {VARIABLE}={folder}"
        if folder
        else f"{VARIABLE} is not set; it names the folder with {relative}"
    )
