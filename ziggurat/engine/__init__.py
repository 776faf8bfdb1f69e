# SPDX-License-Identifier: Apache-2.0
"""Weights, executors of Plans, sampler, tokenizer, chat template, and the Python API `LLM`. Importing this package loads no torch."""

from __future__ import annotations

import os

# Before torch comes: idle OpenMP threads sleep instead of taking the cores from our own kernels.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
