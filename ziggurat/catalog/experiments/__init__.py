# SPDX-License-Identifier: Apache-2.0
"""Experiments by slug. The one of ``lasp-2`` is the file ``lasp_2.py`` in this folder and registers itself::

@EXPERIMENTS.register("lasp-2")
def build() -> Experiment: ...
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from ziggurat.catalog.claims import Experiment
from ziggurat.registry import Registry

EXPERIMENTS: Registry[Callable[[], Experiment]] = Registry("experiment")


def find_experiment(slug: str) -> Experiment | None:
    """The experiment of a system, or None while it is not built. Imports that system's file only."""
    module = slug.replace("-", "_")
    if slug not in EXPERIMENTS and Path(__file__).with_name(f"{module}.py").is_file():
        importlib.import_module(f"{__name__}.{module}")
    return EXPERIMENTS.get(slug)() if slug in EXPERIMENTS else None
