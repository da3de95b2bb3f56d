"""Refining the figures of the time model from measured runs.

The most likely figures given the runs: the shipped values are believed within a part of their bounds, a measured step
within a few percent. Few runs move only what explains them; figures that no run depends on stay as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memfit.errors import InputFileError, MemfitError
from memfit.formula.resolve import Resolved, resolve
from memfit.job import parse
from memfit.readers import read_text
from memfit.speed.arrays import step_time
from memfit.speed.calibration import NAMES, Calibration, constant, default

MAX_FILE_BYTES = 256 << 20
SPREAD = 0.03
"""Relative spread of a measured step: run to run 1 %, the rest is what a model leaves out of a single run."""
BELIEF = 4.0
"""The bounds of a figure lie this many deviations around its shipped value."""
ROUNDS = 12
STEP = 0.02


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: its job, and trained tokens per second and GPU."""

    name: str
    job: Resolved
    tokens_per_s_per_gpu: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Refined figures.

    Attributes:
        calibration: the figures.
        runs: what they rest on.
        before, after: relative error of each run's step time with the shipped and with the refined figures.
        skipped: (name, reason) of records that could not be used.
    """

    calibration: Calibration
    runs: tuple[Run, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def changed(self) -> dict[str, tuple[float, float]]:
        """Figure -> (shipped, refined) where they differ by more than a tenth of a percent."""
        shipped = default()
        pairs = {name: (getattr(shipped, name), getattr(self.calibration, name)) for name in NAMES}
        return {name: pair for name, pair in pairs.items() if abs(pair[1] - pair[0]) > 1e-3 * max(pair[0], 1e-9)}


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[tuple[str, str]]]:
    """The runs of files of records, one JSON object a line, and what could not be used.

    A record has ``job`` and ``measured`` with ``tokens_per_s_per_gpu`` or ``step_s``. Records that are not training
    runs, state no speed or say ``score: false`` are passed over.

    Raises:
        InputFileError: a file is missing, too large, not text, or holds no record at all.
    """
    runs: list[Run] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        found = False
        for number, line in enumerate(read_text(path, limit=MAX_FILE_BYTES).splitlines(), 1):
            record = _record(line)
            if record is None:
                continue
            found = True
            name = str(record.get("id") or f"{Path(path).name}:{number}")
            try:
                run = _run(name, record)
            except MemfitError as error:
                skipped.append((name, error.message))
                continue
            if run is None:
                skipped.append((name, "states no speed of a training run"))
            else:
                runs.append(run)
        if not found:
            raise InputFileError(f"`{str(path)[:200]}` holds no records: lines of JSON with `job` and `measured`")
    return runs, skipped


def _record(line: str) -> Mapping[str, Any] | None:
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("job"), dict):
        return None
    return record if isinstance(record.get("measured"), dict) else None


def _run(name: str, record: Mapping[str, Any]) -> Run | None:
    measured = record["measured"]
    if record.get("score") is False or measured.get("outcome", "ok") != "ok":
        return None
    job = resolve(parse(record["job"]))
    if job.values["kind"] != "train":
        return None
    speed, step = measured.get("tokens_per_s_per_gpu"), measured.get("step_s")
    if not _positive(speed):
        if not _positive(step):
            return None
        v = job.values
        tokens = v["micro_batch"] * v["grad_accum"] * v["seq_len"]
        speed = tokens / (step * v["tp"] * v["cp"] * v["pp"])
    step_time(job)  # a run without an answer must not stop the fit
    return Run(name, job, float(speed))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def errors_of(runs: Sequence[Run], calibration: Calibration) -> tuple[float, ...]:
    """Predicted over measured step time minus one, for each run."""
    times = (step_time(r.job, calibration=calibration).tokens_per_s_per_gpu for r in runs)
    return tuple(r.tokens_per_s_per_gpu / predicted - 1 for r, predicted in zip(runs, times, strict=True))


def fit(runs: Sequence[Run], skipped: Sequence[tuple[str, str]] = ()) -> Fit:
    """The most likely figures given some runs (Gauss-Newton steps on logarithms, within the bounds).

    Raises:
        InputFileError: there is no run.
    """
    import numpy as np

    if not runs:
        why = f": {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise InputFileError(f"no record states the speed of a training run{why}")
    shipped = np.array([getattr(default(), name) for name in NAMES])
    low, high = (
        np.log(np.maximum([constant(name)[key] for name in NAMES], shipped * floor))
        for key, floor in (("low", 0.02), ("high", 0.0))
    )
    belief = (high - low) / (2 * BELIEF)
    weight = math.sqrt(min(1.0, MANY / len(runs))) / SPREAD
    start = np.log(shipped)
    now = start.copy()
    for _ in range(ROUNDS):
        base = np.log1p(errors_of(runs, _of(np.exp(now))))
        slopes = np.empty((len(runs), len(NAMES)))
        for index in range(len(NAMES)):
            moved = now.copy()
            moved[index] += STEP if moved[index] + STEP <= high[index] else -STEP
            change = moved[index] - now[index]
            slopes[:, index] = (np.log1p(errors_of(runs, _of(np.exp(moved)))) - base) / change
        left = np.vstack([slopes * weight, np.diag(1 / belief)])
        right = np.concatenate([-base * weight, (start - now) / belief])
        step, *_ = np.linalg.lstsq(left, right, rcond=None)
        following = np.clip(now + step, low, high)
        if np.max(np.abs(following - now)) < 1e-4:
            now = following
            break
        now = following
    best = _of(np.where(np.abs(now - start) < 1e-6, shipped, np.exp(now)))
    return Fit(best, tuple(runs), errors_of(runs, default()), errors_of(runs, best), tuple(skipped))


MANY = 20
"""Runs that count in full: of a longer list each counts less, as its errors have causes in common."""


def _of(values: Any) -> Calibration:
    return replace(default(), **{name: float(value) for name, value in zip(NAMES, values, strict=True)})


def document(found: Fit) -> dict[str, Any]:
    """A calibration file's content: all figures, and what they rest on."""
    return {
        "calibration": {name: float(f"{getattr(found.calibration, name):.6g}") for name in NAMES},
        "source": {
            "runs": [run.name for run in found.runs],
            "error_before": [round(e, 5) for e in found.before],
            "error_after": [round(e, 5) for e in found.after],
        },
    }
