# SPDX-License-Identifier: Apache-2.0
"""Weights that do not fit: layers come from a file in every step, ahead of the kernels, through places that the Plan gave them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ziggurat.engine.config import EngineConfig
from ziggurat.engine.fingerprint import fingerprint
from ziggurat.engine.layer_file import (
    LayerChecks,
    StoredLayer,
    check_layer,
    layer_file_path,
    read_layer_table,
    write_layer_file,
)
from ziggurat.engine.resources import Resources
from ziggurat.engine.sizing import ModelSource
from ziggurat.engine.weights import Progress, fill_random, read_checkpoint, weight_views
from ziggurat.errors import ConfigError
from ziggurat.kernels import KernelOps
from ziggurat.memory.arena import Arena
from ziggurat.memory.tiers.direct_file import DirectFile
from ziggurat.memory.tiers.window import Part, StreamWindow
from ziggurat.programs.lower import lower
from ziggurat.programs.plan import Plan
from ziggurat.programs.streaming import layer_weights


class LayerStream:
    """The streamed layers of one engine. `fill` makes it ready; the executor then asks for every layer in turn.

    Args:
        plan: with streamed layers.
        weights: the arena of that Plan; outlives this.

    Attributes:
        step_bytes: read in every step.
    """

    def __init__(self, config: EngineConfig, source: ModelSource, plan: Plan, weights: Arena) -> None:
        assert config.offload_folder is not None and plan.streamed_layers
        self._config, self._source, self._plan, self._arena = config, source, plan, weights
        self._whole = lower(source.program, source.formats, plan.limits)
        self._parts = {layer: part for part, layer in enumerate(plan.streamed_layers)}
        self.step_bytes = sum(plan.layer_spans[layer].num_bytes for layer in plan.streamed_layers)
        self.path = layer_file_path(Path(config.offload_folder).expanduser(), self._identity(), self._format_name())
        self._file: DirectFile | None = None
        self._window: StreamWindow | None = None

    def fill(self, ops: KernelOps, progress: Progress | None) -> None:
        """Make the file if it is not there, read the layers that stay, and what is no layer from the checkpoint; begin to stream.

        Raises:
            ConfigError: the folder cannot be used; ModelError: the checkpoint is broken, or the file is damaged.
        """
        spans = self._plan.layer_spans
        sizes = [span.num_bytes for span in spans]
        table = read_layer_table(self.path, sizes)
        if table is None:
            table = write_layer_file(self.path, sizes, lambda number: self._pack(number, ops, progress))
        try:
            self._file = DirectFile(self.path)
            self._read_resident(self._file, table, progress)
        except OSError as error:
            raise ConfigError(f"cannot read the packed layers in {self.path}: {error.strerror or error}") from error
        in_layers = {name for number in range(len(spans)) for name in layer_weights(self._whole, number)}
        rest = {name: weight for name, weight in self._plan.weights.items() if name not in in_layers}
        self._load(replace(self._plan, weights=rest), ops, progress)
        first = next(iter(self._parts))
        places = sorted({spans[layer].offset for layer in self._parts})
        parts = [
            Part(
                offset=table[layer].offset,
                place=self._bytes(spans[layer].offset, spans[layer].num_bytes),
                place_number=places.index(spans[layer].offset),
            )
            for layer in self._parts
        ]
        assert first == self._plan.streamed_layers[0]
        self._window = StreamWindow(self._file, parts, LayerChecks(self.path, table, list(self._parts)))
        self._window.start()

    def acquire(self, layer: int) -> None:
        """Wait until the weights of a streamed layer are in their place.

        Raises:
            OSError, ModelError: they cannot be read, or are not what was written.
        """
        assert self._window is not None, "fill comes first"
        self._window.acquire(self._parts[layer])

    def release(self, layer: int) -> None:
        """The layer has computed."""
        assert self._window is not None
        self._window.release(self._parts[layer])

    def restart(self) -> None:
        """A step broke off: the next one begins at the first layer."""
        if self._window is not None:
            self._window.start()

    def report(self) -> dict[str, Any]:
        """What streams, for `engine.report.memory_report`."""
        file, window = self._file, self._window
        return {
            "path": str(self.path),
            "num_layers": len(self._plan.layer_spans),
            "num_streamed_layers": len(self._parts),
            "step_bytes": self.step_bytes,
            "read_bytes": 0 if file is None else file.num_read_bytes,
            "waited_s": 0.0 if window is None else window.waited_s,
            "is_direct": file is not None and file.is_direct,
        }

    def close(self) -> None:
        """Wait for what is in flight and let go of file and memory."""
        if self._window is not None:
            self._window.stop()
            self._window = None
        if self._file is not None:
            self._file.close()

    def _identity(self) -> str:
        name = fingerprint(self._source.folder)
        return f"{name}-dummy{self._config.seed}" if self._config.load_format == "dummy" else name

    def _format_name(self) -> str:
        return self._source.formats.weight.name

    def _bytes(self, offset: int, num_bytes: int) -> memoryview:
        return self._arena.buffer[offset : offset + num_bytes]

    def _pack(self, number: int, ops: KernelOps, progress: Progress | None) -> memoryview:
        """One layer from the checkpoint, packed in the first place."""
        span, place = self._whole.layer_spans[number], self._plan.layer_spans[self._plan.streamed_layers[0]].offset
        weights = {
            name: replace(weight, offset=weight.offset - span.offset + place)
            for name in layer_weights(self._whole, number)
            for weight in [self._whole.weights[name]]
        }
        self._load(replace(self._whole, weights=weights), ops, None)
        if progress is not None:
            total = sum(each.num_bytes for each in self._whole.layer_spans)
            progress(
                f"packing layers to {self.path}", span.offset + span.num_bytes, max(total, span.offset + span.num_bytes)
            )
        return self._bytes(place, span.num_bytes)

    def _load(self, plan: Plan, ops: KernelOps, progress: Progress | None) -> None:
        views = weight_views(plan, self._arena)
        if self._config.load_format == "dummy":
            fill_random(plan, views, ops, seed=self._config.seed, progress=progress)
        else:
            read_checkpoint(plan, views, self._source.tensors, ops, progress=progress)

    def _read_resident(self, file: DirectFile, table: tuple[StoredLayer, ...], progress: Progress | None) -> None:
        resident = [number for number, span in enumerate(self._plan.layer_spans) if not span.is_streamed]
        for done, number in enumerate(resident, 1):
            span = self._plan.layer_spans[number]
            data = self._bytes(span.offset, span.num_bytes)
            file.read(table[number].offset, data).wait()
            check_layer(self.path, number, table[number], data)
            if progress is not None:
                progress("reading layers that stay", done, len(resident))


def make_stream(config: EngineConfig, source: ModelSource, resources: Resources) -> LayerStream | None:
    """What brings the streamed layers of an engine's Plan; None if all its weights stay."""
    plan = resources.fit.plan
    return LayerStream(config, source, plan, resources.weights) if plan.streamed_layers else None
