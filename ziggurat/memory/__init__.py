# SPDX-License-Identifier: Apache-2.0
"""Bytes and where they are: ledger, arenas, KV spaces, prefix forest. No torch; buffers cross as (address, bytes, owner)."""
