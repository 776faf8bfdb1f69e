# SPDX-License-Identifier: Apache-2.0
"""The torch twins: every native kernel in plain torch, on the same memory layouts, row-invariant too, slower."""

from __future__ import annotations

from ziggurat.kernels.twins.torch_ops import TorchOps

__all__ = ["TorchOps"]
