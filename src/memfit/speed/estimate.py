"""The whole answer for one job: where its memory goes, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from memfit.formula import estimate as memory
from memfit.formula.arrays import LARGEST
from memfit.formula.resolve import Resolved
from memfit.job import Job
from memfit.speed.arrays import evaluate, step_time
from memfit.speed.calibration import Calibration
from memfit.speed.serving import PARTS as SERVING_PARTS
from memfit.speed.serving import latency
from memfit.speed.step import PARTS


class Time(NamedTuple):
    """How long a job takes.

    Attributes:
        step_s: seconds of an optimizer step; serving: of one further token of every sequence.
        tokens_per_s_per_gpu: trained tokens; serving: generated tokens.
        parts: name -> seconds, which sum to ``step_s``.
        ttft_s: serving: seconds to the first token, with ``concurrency`` requests kept running.
    """

    step_s: float
    tokens_per_s_per_gpu: float
    parts: Mapping[str, float]
    ttft_s: float | None = None

    def lines(self) -> list[tuple[str, str, float]]:
        """(name, what it is, seconds) of the parts that are not zero."""
        words = PARTS if self.ttft_s is None else SERVING_PARTS
        return [(name, words[name], seconds) for name, seconds in self.parts.items() if seconds]

    def document(self) -> dict[str, Any]:
        """The fields that a result document has for it."""
        return {
            "step_s": self.step_s,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu,
            "time": {
                "parts": [{"name": n, "what": what, "seconds": s} for n, what, s in self.lines()],
                "ttft_s": self.ttft_s,
            },
        }


NO_TIME: dict[str, Any] = {"step_s": None, "tokens_per_s_per_gpu": None, "time": None}
"""The same fields of a job without a card."""


def time_of(resolved: Resolved, calibration: Calibration | None = None) -> Time | None:
    """How long a job takes; None without a card, and for an encoder that is served."""
    if resolved.gpu is None:
        return None
    if resolved.values["kind"] == "serve":
        if not resolved.arch.causal:
            return None
        served = latency(resolved, calibration=calibration)
        return Time(served.tpot_s, served.tokens_per_s_per_gpu, served.parts, served.ttft_s)
    step = step_time(resolved, calibration=calibration)
    return Time(step.step_s, step.tokens_per_s_per_gpu, step.parts)


@dataclass(frozen=True, kw_only=True)
class Estimate(memory.Estimate):
    """Where the memory of a job goes, and how long the job takes.

    Attributes:
        calibration: figures of the time model other than the shipped ones.
    """

    calibration: Calibration | None = None

    @cached_property
    def time(self) -> Time | None:
        """How long it takes; None without a card."""
        return time_of(self.resolved, self.calibration)

    @property
    def step_s(self) -> float | None:
        """Seconds of an optimizer step; serving: of one further token of every sequence."""
        return None if self.time is None else self.time.step_s

    @property
    def tokens_per_s_per_gpu(self) -> float | None:
        """Trained or generated tokens per second and GPU."""
        return None if self.time is None else self.time.tokens_per_s_per_gpu

    def to_dict(self, job_id: str | None = None, *, full: bool = True) -> dict[str, Any]:
        """The result document, as in the memory model, with ``step_s``, ``tokens_per_s_per_gpu`` and ``time``."""
        timed = NO_TIME if self.time is None else self.time.document()
        return {**super().to_dict(job_id, full=full), **timed}


def estimate(
    job: Job | Mapping[str, Any] | str | Path | None = None,
    *,
    calibration: Calibration | None = None,
    **fields_: Any,
) -> Estimate:
    """Where the memory of a job goes and how long it takes, before it runs and without a GPU.

    Args:
        job: a Job, a mapping in the form of the job document, or the path of one. May be left out.
        calibration: figures of the time model, as ``memfit.speed.calibration.load`` reads them from a file.
        **fields_: job fields by name, e.g. ``model="llama-3.1-8b", gpu="8xh100", zero=3``; they win over ``job``.

    Raises:
        MemfitError: the job, the model or the hardware cannot be read; the message names every fault.
    """
    return timed(memory.estimate(job, **fields_), calibration)


def timed(answer: memory.Estimate, calibration: Calibration | None = None) -> Estimate:
    """An estimate of memory as one that also knows the time."""
    values = {f.name: getattr(answer, f.name) for f in fields(memory.Estimate)}
    return Estimate(**values, calibration=calibration)


NUMERIC = ("micro_batch", "seq_len", "grad_accum", "dp", "dp_shard", "tp", "cp", "ep")
FEW = 4
"""Groups smaller than this are timed one job at a time."""


def documents_of(jobs: Sequence[Resolved], calibration: Calibration | None = None) -> list[dict[str, Any]]:
    """The time fields of many jobs that share their model and all discrete choices."""
    out: list[dict[str, Any] | None] = [None] * len(jobs)
    groups: dict[Any, list[int]] = {}
    for index, job in enumerate(jobs):
        large = job.values["micro_batch"] * job.values["seq_len"] ** 2 > LARGEST
        key = (index,) if large else (job.gpu, job.stated.hardware.gpus_per_node)
        groups.setdefault(key, []).append(index)
    for members in groups.values():
        if len(members) < FEW or jobs[members[0]].gpu is None:
            for index in members:
                found = time_of(jobs[index], calibration)
                out[index] = NO_TIME if found is None else found.document()
            continue
        columns = {name: [jobs[i].values[name] for i in members] for name in NUMERIC}
        times = evaluate(jobs[members[0]], parts=True, calibration=calibration, **columns)
        assert times.parts is not None
        listed = {name: column.tolist() for name, column in times.parts.items()}
        steps, rates = times.step_s.tolist(), times.tokens_per_s_per_gpu.tolist()
        for row, index in enumerate(members):
            parts = {name: column[row] for name, column in listed.items()}
            out[index] = Time(steps[row], rates[row], parts).document()
    return [document if document is not None else NO_TIME for document in out]
