# SPDX-License-Identifier: Apache-2.0
"""Plaintext memory: what agents write down, stored with its sources and found again."""
