# SPDX-License-Identifier: Apache-2.0
"""GGUF, the file format of llama.cpp: headers, and how its names and fields map to Hugging Face's. No torch, no arrays."""
