# SPDX-License-Identifier: Apache-2.0
"""The picture of ``trace cache --plot``: hits over capacity, one line per policy. The only place of the verb that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ziggurat.errors import ConfigError

SUFFIXES = (".png", ".svg")


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw what `trace cache` found. The line on top is what a cache without limit would find.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'ziggurat[plots]'") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(
        xlabel=f"capacity, blocks of {data['block_size_tokens']} tokens", ylabel="hit tokens, % of all prompt tokens"
    )
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in data["caches"]:
        percent = 100 * row["token_hit_ratio"]
        if row["capacity_blocks"] is None:
            most = percent
        else:
            curves.setdefault(row["policy"], []).append((row["capacity_blocks"], percent))
    for policy, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=policy)
    axes.axhline(most, color="gray", linestyle=":", label="no limit")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title(Path(data["file"]).name)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"cannot write the picture {path}: {error.strerror}") from error
