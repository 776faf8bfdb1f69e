# SPDX-License-Identifier: Apache-2.0
"""Rows of a checkpoint's tensors, read by position: as they are stored, or decoded to fp32 where they are quantized."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ziggurat.errors import ModelError
from ziggurat.memory.arena import Arena
from ziggurat.programs.checkpoint import TensorEntry
from ziggurat.programs.gguf.names import paired_row
from ziggurat.quantization import ggml


class CheckpointFiles:
    """Open files of a checkpoint. Use it as a context manager."""

    def __init__(self) -> None:
        self._exit = ExitStack()
        self._descriptors: dict[Path, int] = {}
        self._packed: Arena | None = None

    def __enter__(self) -> CheckpointFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._packed is not None:
            self._packed.close()
        self._exit.close()

    def read(self, name: str, entry: TensorEntry, first_row: int, rows: Tensor) -> None:
        """Fill ``rows`` [n, columns] with those of a tensor from ``first_row`` on, in Hugging Face's order.

        Args:
            rows: contiguous, in the stored type; fp32 for a quantized one.

        Raises:
            ModelError: the file is truncated or cannot be read.
        """
        if not entry.format.is_quantized:
            self._fill(name, entry, first_row, rows.view(torch.uint8).numpy().reshape(len(rows), -1))
            return
        row_bytes = entry.format.num_bytes(rows.shape[1:])
        packed = self._space(len(rows) * row_bytes).reshape(len(rows), row_bytes)
        self._fill(name, entry, first_row, packed)
        ggml.decode(entry.format, packed, rows.numpy())

    def read_blocks(self, name: str, entry: TensorEntry, first_row: int, blocks: Tensor) -> None:
        """Fill ``blocks`` [n, bytes of a row] with quantized rows as they are stored; otherwise like `read`."""
        self._fill(name, entry, first_row, blocks.numpy())

    def _fill(self, name: str, entry: TensorEntry, first_row: int, target: NDArray[np.uint8]) -> None:
        row_bytes = target.shape[1]
        if not entry.paired_heads:
            self._pread(name, entry, entry.offset + first_row * row_bytes, target.reshape(-1))
            return
        head_rows = entry.shape[0] // entry.paired_heads
        for index, row in enumerate(target):
            self._pread(name, entry, entry.offset + paired_row(first_row + index, head_rows) * row_bytes, row)

    def _pread(self, name: str, entry: TensorEntry, offset: int, target: NDArray[np.uint8]) -> None:
        view, done = target.data, 0
        try:
            descriptor = self._open(entry.path)
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], offset + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            raise ModelError(f"{entry.path} cannot be read at tensor {name!r}: {error}") from error
        if done < len(view):
            raise ModelError(
                f"{entry.path} is truncated: tensor {name!r} needs {len(view)} bytes at {offset}, only {done} are there; the "
                f"file changed since its header was read"
            )

    def _space(self, num_bytes: int) -> NDArray[np.uint8]:
        """Bytes of an arena, so that nothing large comes from malloc; valid until the next call."""
        if self._packed is None or self._packed.num_bytes < num_bytes:
            if self._packed is not None:
                self._packed.close()
            self._packed = Arena(num_bytes, "packed staging")
        return np.frombuffer(self._packed.buffer, np.uint8, num_bytes)

    def _open(self, path: Path) -> int:
        if path not in self._descriptors:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._exit.callback(os.close, descriptor)
            self._descriptors[path] = descriptor
        return self._descriptors[path]
