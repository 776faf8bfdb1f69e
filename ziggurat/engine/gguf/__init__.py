# SPDX-License-Identifier: Apache-2.0
"""GGUF files beyond their headers: vocabulary and chat template, and writing a file from a folder. No torch."""
