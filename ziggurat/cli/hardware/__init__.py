# SPDX-License-Identifier: Apache-2.0
"""``ziggurat hardware KIND``: devices and links by name, and cost models fitted to measured files. Loads no torch."""

from __future__ import annotations

from ziggurat.cli.kinds import Kinds

KINDS = Kinds(
    verb="hardware",
    description="Look at devices and fit cost models.",
    summaries={
        "list": "devices, links and model shapes that are known by name",
        "show": "the constants of a device or link, each with its source",
        "fit": "fit cost models to measured files and judge them on others",
    },
)
parser = KINDS.parser
run = KINDS.run
