# SPDX-License-Identifier: Apache-2.0
"""The table of architectures: functions from a configuration to a Program, by Hugging Face's class name."""

from __future__ import annotations

from collections.abc import Callable

from ziggurat.programs.config import RawConfig
from ziggurat.programs.program import Mode, Program
from ziggurat.registry import Registry

Architecture = Callable[[RawConfig, Mode], Program]
ARCHITECTURES: Registry[Architecture] = Registry("architecture")
