# SPDX-License-Identifier: Apache-2.0
"""Decisions: the engine core, sequence states, batch planners, the Executor protocol. Pure: no torch, clock, I/O or randomness."""
