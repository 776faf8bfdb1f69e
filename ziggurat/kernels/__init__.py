# SPDX-License-Identifier: Apache-2.0
"""Kernels: the arithmetic of a lowered Plan, natively or in plain torch. See README.md for layouts and the row-invariance contract.

``select(backend)`` returns the operations (`KernelOps`), ``describe()`` says what this machine would run. Importing this package
imports neither torch nor the native library.
"""

from __future__ import annotations

from ziggurat.kernels.ops import BACKENDS, PANEL_WIDTH, KernelOps, KVLayer, describe, select

__all__ = ["BACKENDS", "PANEL_WIDTH", "KVLayer", "KernelOps", "describe", "select"]
