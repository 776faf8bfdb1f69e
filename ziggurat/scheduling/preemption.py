# SPDX-License-Identifier: Apache-2.0
"""Whether a sequence that gives up its blocks keeps a copy or computes them again: vLLM's ``--preemption-mode``. Pure.

A swap costs two copies, out and back; recomputing costs a prefill of everything that is not found in the prefix cache. What counts are this
machine's rates, which whoever runs the engine measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ziggurat.registry import Registry


@dataclass(slots=True, kw_only=True)
class PreemptionCosts:
    """Measured seconds per token; 0 is not measured yet.

    Attributes:
        copy_s: of copying a token's KV once.
        compute_s: of computing a token of a prompt.
    """

    copy_s: float = 0.0
    compute_s: float = 0.0


PreemptionMode: TypeAlias = Callable[[int, int, PreemptionCosts], bool]
"""(tokens that would be copied out, tokens that would be copied back or computed, costs) -> whether to swap."""
PREEMPTION_MODES: Registry[PreemptionMode] = Registry("preemption mode")


@PREEMPTION_MODES.register("recompute")
def recompute(num_out_tokens: int, num_tokens: int, costs: PreemptionCosts) -> bool:
    """Never copy."""
    return False


@PREEMPTION_MODES.register("swap")
def swap(num_out_tokens: int, num_tokens: int, costs: PreemptionCosts) -> bool:
    """Copy whenever there is room."""
    return True


@PREEMPTION_MODES.register("auto")
def auto(num_out_tokens: int, num_tokens: int, costs: PreemptionCosts) -> bool:
    """Copy where it is cheaper; before anything is measured too, because on every known machine it is."""
    if not costs.compute_s:
        return True
    return costs.copy_s * (num_out_tokens + num_tokens) < costs.compute_s * num_tokens
