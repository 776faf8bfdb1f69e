# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a line on a terminal, a JSONL file, and a loss curve."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any, TextIO


class Progress:
    """Appends records to `log.jsonl` and, on a terminal, keeps one status line on stderr."""

    def __init__(self, folder: Path, stream: TextIO | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()

    def record(self, **values: Any) -> None:
        """Writes one JSON line at once, so that a killed run keeps its log."""
        self._file.write(json.dumps(values, sort_keys=True) + "\n")
        self._file.flush()

    def show(self, fraction: float, text: str) -> None:
        """Redraws the bar (terminal only). `fraction` is of the current stage, 0 to 1."""
        if self._is_terminal:
            filled = int(20 * min(1.0, max(0.0, fraction)))
            self._stream.write(f"\r[{'#' * filled}{'.' * (20 - filled)}] {text[:100]:<100}")
            self._stream.flush()

    def close(self) -> None:
        """Ends the status line and closes the file."""
        if self._is_terminal:
            self._stream.write("\n")
        self._file.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All records of `log.jsonl`; after a resume, a step that was run twice keeps its last record."""
    by_step: dict[int, dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("event") == "step":
            by_step[record["step"]] = record
        else:
            others.append(record)
    return others + [by_step[step] for step in sorted(by_step)]


def write_loss_curve(folder: Path) -> Path:
    """`loss.svg` where matplotlib is installed, else `loss.csv`: loss per source over tokens seen."""
    records = [record for record in read_log(folder) if record.get("event") == "step"]
    try:
        import matplotlib
    except ImportError:
        return _write_csv(folder / "loss.csv", records)
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in sorted({name for record in records for name in record["loss"]}):
        points = [(record["tokens"], record["loss"][name]) for record in records if name in record["loss"]]
        axes.plot([x / 1e6 for x, _ in points], [y for _, y in points], label=name, linewidth=1)
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per counted token)")
    axes.legend(fontsize=8)
    figure.savefig(folder / "loss.svg")
    pyplot.close(figure)
    return folder / "loss.svg"


def _write_csv(path: Path, records: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["tokens", "source", "loss", "accuracy"])
        for record in records:
            for name, loss in record["loss"].items():
                writer.writerow([record["tokens"], name, loss, record["accuracy"].get(name, "")])
    return path
