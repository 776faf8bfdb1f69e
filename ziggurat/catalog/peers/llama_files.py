# SPDX-License-Identifier: Apache-2.0
"""GGUF files of a job's folder, made once and kept in it. Run as a process, so that making them is not in a peer's peak of memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

from ziggurat.catalog.peers.llama_session import library
from ziggurat.catalog.peers.process import child_environment
from ziggurat.errors import EngineError

# llama_ftype of llama.h.
_QUANTIZED_BY_LLAMA_CPP = {"q4_0": 2}


def gguf_file(folder: Path, format_name: str, threads: int) -> Path:
    """The folder's model in that format (``f16``, ``q8_0``, ``q4_0``); made if it is not there.

    Raises:
        EngineError: it could not be made; says what the process wrote last.
    """
    path = folder / f"{format_name}.gguf"
    if path.is_file():
        return path
    command = [sys.executable, "-m", "ziggurat.catalog.peers.llama_files", str(folder), format_name, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(threads), check=False)
    if done.returncode:
        raise EngineError(f"making {path.name} failed with code {done.returncode}: {done.stderr.strip()[-300:]}")
    return path


def make(folder: Path, format_name: str, threads: int) -> None:
    """Write one file: by our own export, or from that in F16 by llama.cpp's quantizer.

    Raises:
        EngineError: llama.cpp's quantizer failed.
    """
    path = folder / f"{format_name}.gguf"
    if format_name in _QUANTIZED_BY_LLAMA_CPP:
        quantize(gguf_file(folder, "f16", threads), path, _QUANTIZED_BY_LLAMA_CPP[format_name], threads)
        return
    from ziggurat.engine.config import EngineConfig
    from ziggurat.engine.gguf.export import EXPORT_FORMATS, export_gguf
    from ziggurat.engine.sizing import open_model

    export_gguf(open_model(EngineConfig(model=str(folder))), path, EXPORT_FORMATS[format_name])


def quantize(source: Path, path: Path, file_type: int, threads: int) -> None:
    """Write a file anew in another type (``llama_ftype`` of llama.h), by llama.cpp's quantizer.

    Raises:
        EngineError: llama.cpp refuses; what it says is on standard error.
    """
    lib = library()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = file_type, threads, True
    part = path.with_name(path.name + ".part")
    code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(params))
    if code:
        part.unlink(missing_ok=True)
        raise EngineError(f"llama_model_quantize failed with code {code}")
    os.replace(part, path)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
