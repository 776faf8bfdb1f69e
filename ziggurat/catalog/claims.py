# SPDX-License-Identifier: Apache-2.0
"""Claims of a publication and what came out here, as plain data.

A `Claim` is fixed before anything runs: its name is frozen and its target is the acceptance line, never a value fitted to what came
out. A `ClaimResult` is one run's answer. `report` joins the two and refuses a run that leaves a claim out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from ziggurat.errors import InternalError

Kind = Literal["measured", "simulated", "derived"]
Scale = Literal["quick", "full"]
Verdict = Literal["holds", "misses", "inconclusive", "pending", "not_run"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SCALES: tuple[Scale, ...] = get_args(Scale)

Value = float | int | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One acceptance line of one system.

    Attributes:
        name: frozen id, unique within the system.
        paper: what the publication reports, in ``unit``; None where it gives no number.
        target: the line that decides, as people read it (``>= 1.4``).
        kind: how the value is had here.
    """

    name: str
    paper: Value
    unit: str
    kind: Kind
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimResult:
    """What one run found for the claim called ``name``.

    Attributes:
        ours: the value in the claim's unit, or None when nothing was run.
        note: how it was had; for ``pending`` the issue it waits for, for ``inconclusive`` and ``not_run`` why.
    """

    name: str
    ours: Value
    verdict: Verdict
    note: str = ""


class Experiment(Protocol):
    """The re-run of one system's claims."""

    claims: tuple[Claim, ...]

    def run(self, scale: Scale) -> Sequence[ClaimResult]:
        """Answer every claim once. ``quick`` ends within three minutes on two cores."""
        ...


def report(experiment: Experiment, scale: Scale) -> list[dict[str, Any]]:
    """Run an experiment and join its results with its claims, in the order of the claims.

    Raises:
        InternalError: the experiment broke the contract: a claim without a result, a result without a claim, a verdict that the
            scale does not allow, or a verdict that needs a reason and has none.
    """
    results = experiment.run(scale)
    by_name = {result.name: result for result in results}
    names = [claim.name for claim in experiment.claims]
    if len(set(names)) != len(names) or len(by_name) != len(results) or set(by_name) != set(names):
        raise InternalError(f"claims {sorted(names)} and results {sorted(r.name for r in results)} do not pair up")
    rows = []
    for claim in experiment.claims:
        result = by_name[claim.name]
        _check(result, scale)
        rows.append(
            {
                "name": claim.name,
                "paper": claim.paper,
                "ours": result.ours,
                "unit": claim.unit,
                "kind": claim.kind,
                "target": claim.target,
                "verdict": result.verdict,
                "note": result.note,
            }
        )
    return rows


def _check(result: ClaimResult, scale: Scale) -> None:
    if result.verdict not in VERDICTS:
        raise InternalError(f"claim {result.name!r}: verdict {result.verdict!r} is none of {', '.join(VERDICTS)}")
    if result.verdict == "inconclusive" and scale == "full":
        raise InternalError(f"claim {result.name!r}: only a quick run may be inconclusive")
    if result.verdict in ("pending", "not_run", "inconclusive") and not result.note:
        raise InternalError(f"claim {result.name!r}: verdict {result.verdict!r} needs a note that says why")
    if result.verdict in ("holds", "misses") and result.ours is None:
        raise InternalError(f"claim {result.name!r}: verdict {result.verdict!r} without a value")
