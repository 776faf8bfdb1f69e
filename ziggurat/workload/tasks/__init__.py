# SPDX-License-Identifier: Apache-2.0
"""Retrieval tasks in the manner of SCBench, generated from a seed. No torch here."""
