# SPDX-License-Identifier: Apache-2.0
"""The registry of batch planners; apart from the package's ``__init__``, so that planners can import it while they are found."""

from __future__ import annotations

from ziggurat.registry import Registry
from ziggurat.scheduling.protocol import BatchPlanner

PLANNERS: Registry[type[BatchPlanner]] = Registry("batch planner")
