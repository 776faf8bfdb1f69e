# SPDX-License-Identifier: Apache-2.0
"""Weights, executors of Plans, sampler, tokenizer, chat template, and the Python API `LLM`. Importing this package loads no torch."""
