# SPDX-License-Identifier: Apache-2.0
"""Devices, links, and what an operation costs on them. No torch."""
