# SPDX-License-Identifier: Apache-2.0
"""Tiers by folder: tests/null, tests/unit, tests/integration, tests/slow give their tests the marker of the same name."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hypothesis import HealthCheck, settings

TIERS = ("null", "unit", "integration", "slow")
ROOT = Path(__file__).parent

# Settings of whoever runs the tests are not the tests'; the folder of real data is what tests marked `data` ask for.
for name in [name for name in os.environ if name.startswith("ZIGGURAT_") and name != "ZIGGURAT_DATA"]:
    del os.environ[name]

# The machines that run this are shared: no test may fail because it was slow, and the same examples come back every time.
settings.register_profile(
    "ziggurat",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ziggurat")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(ROOT).parts[0]
        assert tier in TIERS, f"{item.path}: tests live in one of {', '.join(f'tests/{name}' for name in TIERS)}"
        item.add_marker(getattr(pytest.mark, tier))


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Executable of the Chromium that playwright drives; the test is skipped, with the reason, where there is none."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install -e '.[browser]' && playwright install chromium")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        installed = shutil.which(name)
        if installed is not None:
            return installed
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = driver.chromium.executable_path
    if not Path(path).exists():
        pytest.skip(f"no Chromium on the PATH and none at {path}: run `playwright install chromium`")
    return path
