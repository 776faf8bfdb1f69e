# SPDX-License-Identifier: Apache-2.0
"""Ziggurat: a memory operating system for large language models.

The public Python API is what ``__all__`` lists; everything is imported lazily so that ``import ziggurat`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["LLM", "SamplingParams", "__version__"]

if TYPE_CHECKING:
    from ziggurat.engine.llm import LLM
    from ziggurat.scheduling.sampling import SamplingParams


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from ziggurat.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from ziggurat.scheduling.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'ziggurat' has no attribute {name!r}")
