# SPDX-License-Identifier: Apache-2.0
"""Serving without hardware: the production scheduler under a virtual clock. No torch in this room."""
