# SPDX-License-Identifier: Apache-2.0
"""Fit cost models to measured files and say how wrong they are on other files. Split by file, never by row: neighbours leak.

Every model knows its own error: the 10 % and 90 % quantiles of ``measured / predicted`` on samples that were held out of a fit of the
training files, held out by model where a device has several, by shape where it has one, and by device where the tested device is not
among them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ziggurat.hardware import collective, iteration
from ziggurat.hardware.families import F64, FAMILIES, Columns, fit_family
from ziggurat.hardware.residual import fit_hybrid
from ziggurat.hardware.samples import Sample

# Below 10 us the timer's resolution of 1 us is the error; such rows of element-wise operators are fitted and not judged.
MIN_JUDGED_S = 1e-5
NUM_FOLDS = 4
Predictor: TypeAlias = Callable[[Sequence[Sample]], F64]
Fitter: TypeAlias = Callable[[Sequence[Sample], int], Predictor]


def _calibrated(samples: Sequence[Sample], seed: int) -> Predictor:
    model = fit_family(FAMILIES[samples[0].op_class], Columns.of(samples))
    return lambda tested: model.predict(Columns.of(tested))


def _hybrid(samples: Sequence[Sample], seed: int) -> Predictor:
    columns = Columns.of(samples)
    model = fit_hybrid(fit_family(FAMILIES[samples[0].op_class], columns), columns, seed)
    return lambda tested: model.predict(Columns.of(tested))


def _table(samples: Sequence[Sample], seed: int) -> Predictor:
    return collective.fit_table(samples).predict


def _overhead(samples: Sequence[Sample], seed: int) -> Predictor:
    return iteration.fit_overhead(samples).predict


def _composed(samples: Sequence[Sample]) -> F64:
    return np.asarray([iteration.prefill_s(sample) or np.nan for sample in samples])


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One cost model of a class.

    Attributes:
        fit: from training samples to a predictor; None needs none.
        plain: the predictor of a method without a fit.
    """

    name: str
    fit: Fitter | None = None
    plain: Predictor | None = None


_IDEAL = Method(name="ideal", plain=lambda samples: Columns.of(samples).ideal_s)


def methods_of(op_class: str) -> tuple[Method, ...]:
    """The cost models that a class has, plainest first."""
    if op_class == "gemm":
        return _IDEAL, Method(name="calibrated", fit=_calibrated), Method(name="hybrid", fit=_hybrid)
    if op_class in FAMILIES:
        return _IDEAL, Method(name="calibrated", fit=_calibrated)
    if op_class == "prefill":
        return (Method(name="calibrated", plain=_composed),)
    if op_class == "decode":
        return (
            Method(name="ideal", plain=lambda samples: np.asarray([iteration.decode_bytes_s(s) for s in samples])),
            Method(name="calibrated", fit=_overhead),
        )
    return Method(name="ideal", plain=collective.ideal_seconds), Method(name="calibrated", fit=_table)


def evaluate(
    train: Sequence[Sample], test: Sequence[Sample], *, samples_per_device: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """A row per tested file, device, model, class and cost model, in the order of the files.

    Args:
        samples_per_device: draw that many training samples per device and class.
        seed: of the drawing and of the trees.
    """
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in train:
        by_class[sample.op_class].append(sample)
    if samples_per_device is not None:
        by_class = {name: draw(samples, samples_per_device, seed) for name, samples in by_class.items()}
    rows = []
    cache: dict[object, tuple[Predictor, F64]] = {}
    for group in grouped(test, lambda s: (s.file, s.device, s.model, s.op_class)):
        trained = by_class.get(group[0].op_class, [])
        seen = [sample for sample in trained if sample.device == group[0].device]
        for method in methods_of(group[0].op_class):
            if method.fit is not None and not trained:
                continue
            key = method.name, group[0].op_class, group[0].device if seen else ""
            if key not in cache:
                cache[key] = _fitted(method, seen or trained, is_seen=bool(seen), seed=seed)
            rows.append(_row(group, method.name, bool(seen), *cache[key]))
    return [row for row in rows if row["n"]]


def draw(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` samples of each device, without repetition."""
    rng = np.random.default_rng(seed)
    found = []
    for members in grouped(samples, lambda s: s.device):
        chosen = rng.choice(len(members), size=min(count, len(members)), replace=False)
        found += [members[index] for index in sorted(chosen)]
    return found


def grouped(samples: Iterable[Sample], key: Callable[[Sample], object]) -> list[list[Sample]]:
    """Samples by key, in order of first appearance."""
    groups: dict[object, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[key(sample)].append(sample)
    return list(groups.values())


def _fitted(method: Method, samples: Sequence[Sample], *, is_seen: bool, seed: int) -> tuple[Predictor, F64]:
    """The predictor, and log(measured / predicted) of held-out training samples (empty where nothing is held out)."""
    if method.fit is None:
        assert method.plain is not None
        residual = np.empty(0)
        if samples:
            residual = np.log(np.asarray([s.time_s for s in samples]) / method.plain(samples))
        return method.plain, residual[np.isfinite(residual)]
    residuals = []
    for kept, held in folds(samples, is_seen=is_seen):
        predict = method.fit(kept, seed)
        residuals.append(np.log(np.asarray([sample.time_s for sample in held]) / predict(held)))
    predictor = method.fit(samples, seed)
    if not residuals:
        return predictor, np.empty(0)
    pooled = np.concatenate(residuals)
    if not is_seen:
        # One more device is one more draw from what devices differ by: a prediction from k of them is wider by sqrt(1 + 1 / k).
        centre = np.median(pooled)
        pooled = centre + (pooled - centre) * np.sqrt(1 + 1 / len(residuals))
    return predictor, pooled


def folds(samples: Sequence[Sample], *, is_seen: bool) -> list[tuple[list[Sample], list[Sample]]]:
    """(kept, held out): by device for a device that was not seen, else by model, else by shape."""
    if not is_seen and len({sample.device for sample in samples}) > 1:
        parts = grouped(samples, lambda s: s.device)
    else:
        parts = grouped(samples, lambda s: s.model)
    if len(parts) < 2:
        shapes = grouped(samples, lambda s: _shape_without_tokens(s))
        shapes = shapes if len(shapes) >= NUM_FOLDS else [[sample] for sample in samples]
        parts = [[sample for shape in shapes[fold::NUM_FOLDS] for sample in shape] for fold in range(NUM_FOLDS)]
    found = []
    for index, held in enumerate(parts):
        kept = [sample for other, part in enumerate(parts) if other != index for sample in part]
        if held and len(kept) > NUM_FOLDS:
            found.append((kept, held))
    return found


def _shape_without_tokens(sample: Sample) -> object:
    return tuple(value for name, value in sample.shape.items() if name not in ("m", "tokens", "bytes"))


def _row(samples: Sequence[Sample], name: str, is_seen: bool, predict: Predictor, residual: F64) -> dict[str, Any]:
    first = samples[0]
    predicted = predict(samples)
    judged = np.isfinite(predicted)
    if first.op_class in FAMILIES and first.op_class not in ("gemm", "attention_decode", "attention_prefill"):
        judged &= np.asarray([sample.time_s >= MIN_JUDGED_S for sample in samples])
    measured = np.asarray([sample.time_s for sample in samples])[judged]
    row: dict[str, Any] = {
        "file": first.file,
        "device": first.device,
        "model": first.model,
        "op_class": first.op_class,
        "cost_model": name,
        "device_seen": is_seen,
        "n": len(measured),
    }
    row |= errors(predicted[judged], measured, residual)
    if first.op_class == "decode" and name == "calibrated":
        row |= iteration.how_much_is_fitted(samples)
    return row


def errors(predicted: F64, measured: F64, residual: F64) -> dict[str, float | None]:
    """Relative errors, as fractions of the measured time, and how good the 80 % interval is that ``residual`` gives."""
    names = ("mape", "median_error", "p90_error", "p95_error", "bias")
    if not len(measured):
        return dict.fromkeys((*names, "interval80_coverage", "interval80_halfwidth"))
    signed = predicted / measured - 1
    sizes = np.abs(signed)
    values = (np.mean(sizes), np.median(sizes), *np.quantile(sizes, (0.9, 0.95)), np.mean(signed))
    found: dict[str, float | None] = {name: float(value) for name, value in zip(names, values, strict=True)}
    coverage = halfwidth = None
    if len(residual):
        low, high = np.exp(np.quantile(residual, (0.1, 0.9)))
        coverage = float(np.mean((measured >= low * predicted) & (measured <= high * predicted)))
        halfwidth = float(high - low) / 2
    return found | {"interval80_coverage": coverage, "interval80_halfwidth": halfwidth}
