# SPDX-License-Identifier: Apache-2.0
"""The batchllm experiment on a rig that computes nothing: every claim is answered, and bad outcomes miss."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ziggurat.catalog.batch_rig import JobOutcome, JobPrompt, JobShape, make_job
from ziggurat.catalog.claims import report
from ziggurat.catalog.experiments.batchllm import BatchLLM
from ziggurat.memory.prefix_plan import plan_prefixes


class FakeRig:
    """Saves a share of what one level can save; the stream takes ``slowdown`` times as long and holds twice as much."""

    pool_blocks = 100

    def __init__(self, share: float, slowdown: float) -> None:
        self._share, self._slowdown = share, slowdown

    def run_planned(self, prompts: Sequence[JobPrompt], *, max_num_seqs: int = 0) -> JobOutcome:
        return self._outcome(prompts, self._share, 1.0, 50)

    def run_stream(self, prompts: Sequence[JobPrompt], *, max_num_seqs: int) -> JobOutcome:
        return self._outcome(prompts, 0.5, self._slowdown, 100)

    def close(self) -> None:
        pass

    def _outcome(self, prompts: Sequence[JobPrompt], share: float, elapsed_s: float, peak: int) -> JobOutcome:
        total = sum(len(each.prompt_ids) for each in prompts)
        saved = plan_prefixes([each.prompt_ids for each in prompts], 16, is_exact=True).saved_tokens
        return JobOutcome(
            prompt_tokens=total,
            computed_prompt_tokens=total - int(share * saved),
            output_tokens=sum(each.output_tokens for each in prompts),
            elapsed_s=elapsed_s,
            planning_s=0.001,
            peak_held_blocks=peak,
            texts=dict.fromkeys(range(len(prompts)), (1, 2)),
        )


@pytest.mark.parametrize(("share", "slowdown", "verdict"), [(1.0, 2.0, "holds"), (0.6, 1.0, "misses")])
def test_verdicts_follow_the_outcomes(share: float, slowdown: float, verdict: str) -> None:
    rows = {row["name"]: row for row in report(BatchLLM(lambda pool: FakeRig(share, slowdown), 64), "quick")}
    decided = (
        "token-saving-vs-single-level-optimum",
        "token-saving-vs-lru",
        "throughput-degree-16",
        "throughput-degree-2",
    )
    assert {rows[name]["verdict"] for name in decided} == {verdict}
    assert rows["texts-identical"]["ours"] == 1.0 and rows["peak-kv"]["ours"] == 0.5
    assert rows["simulated-a100-7b"]["verdict"] == "pending"


def test_a_job_has_its_groups_in_mixed_order() -> None:
    prompts = make_job(JobShape(num_groups=3, degree=4, shared_tokens=(40, 60)), 50, seed=1)
    plan = plan_prefixes([each.prompt_ids for each in prompts], 16)
    assert sorted(len(group.members) for group in plan.groups) == [4, 4, 4]
    assert any(group.members != tuple(sorted(group.members)) or max(group.members) > 3 for group in plan.groups)
