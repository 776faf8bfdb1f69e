# SPDX-License-Identifier: Apache-2.0
"""Whether two folders hold the same model, without reading gigabytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

# A file up to this many windows is read whole. Training changes every part of a weight file, so windows find it.
_WINDOW_BYTES = 64 * 1024
_NUM_WINDOWS = 256


def fingerprint(path: Path) -> str:
    """A digest of a model's folder or GGUF file: names, sizes, and what is in evenly spaced windows of every file."""
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    for file in files:
        num_bytes = file.stat().st_size
        digest.update(f"{file.name} {num_bytes}\n".encode())
        num_windows = min(_NUM_WINDOWS, -(-num_bytes // _WINDOW_BYTES))
        with file.open("rb") as opened:
            for number in range(num_windows):
                last = max(num_windows - 1, 1)
                opened.seek(number * max(num_bytes - _WINDOW_BYTES, 0) // last)
                digest.update(opened.read(_WINDOW_BYTES))
    return digest.hexdigest()
