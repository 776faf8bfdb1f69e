# SPDX-License-Identifier: Apache-2.0
"""Models as data: configurations, Programs, Plans and checkpoint headers. No torch in this room."""
