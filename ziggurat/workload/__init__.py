# SPDX-License-Identifier: Apache-2.0
"""Traces, generators, task suites, request records and metrics. No torch in this room."""
