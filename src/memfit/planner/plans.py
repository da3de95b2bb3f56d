"""A plan: a candidate as a job, with its estimate, its time in parts, its price and what it costs in quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from memfit import speed
from memfit.formula.estimate import Estimate, estimate
from memfit.job import Job, Strategy
from memfit.ledger import Band
from memfit.planner import levers
from memfit.planner.bounds import at
from memfit.planner.capabilities import Quality, quality
from memfit.planner.request import Option, Request
from memfit.planner.search import Candidate
from memfit.planner.space import Space

HOUR_S = 3600
MILLION = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run the job.

    Attributes:
        job: the whole job document.
        estimate: its memory.
        option: the GPUs.
        candidate: the point of the search space; None for serving.
        step_s: seconds of one optimizer step; None for serving, or where the time model has no answer.
        tokens_per_s_per_gpu: throughput: trained or generated tokens.
        parts: name of a part of the step -> seconds; they sum to ``step_s``, for serving to ``tpot_s``.
        ttft_s, tpot_s: of serving: seconds to the first token, and for each further one.
        qualities: what it costs in quality.
    """

    job: Job
    estimate: Estimate
    option: Option
    candidate: Candidate | None = None
    step_s: float | None = None
    tokens_per_s_per_gpu: float | None = None
    parts: Mapping[str, float] | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    qualities: tuple[Quality, ...] = ()

    @property
    def need(self) -> Band:
        """What must be there for it to finish, on each GPU."""
        return self.estimate.bands["need"]

    @cached_property
    def p_oom(self) -> float:
        """Probability of running out of memory."""
        p = self.estimate.p_oom
        assert p is not None, "a plan is made for a card"
        return p

    @property
    def tokens_per_s(self) -> float | None:
        """Of all GPUs."""
        return None if self.tokens_per_s_per_gpu is None else self.tokens_per_s_per_gpu * self.option.gpus

    @property
    def usd_per_mtoken(self) -> float | None:
        """Dollars for a million tokens."""
        rate, hour = self.tokens_per_s, self.option.usd_per_hour
        return None if not rate or hour is None else hour / HOUR_S / rate * MILLION

    def usd_of(self, tokens: int) -> float | None:
        """Dollars for so many tokens."""
        each = self.usd_per_mtoken
        return None if each is None else each * tokens / MILLION

    def hours_of(self, tokens: int) -> float | None:
        """Hours for so many tokens."""
        rate = self.tokens_per_s
        return tokens / rate / HOUR_S if rate else None


def job_of(job: Job, space: Space, candidate: Candidate) -> Job:
    """A candidate as a job: what the user stated, and every lever that has an effect."""
    v = candidate.values
    base = space.base.values
    fields: dict[str, Any] = {n: v[n] for n in levers.ALL}
    if v["zero"] == 0:
        del fields["dp_shard"]
    if v["zero"] < 3:
        del fields["reshard"]
    if v["tp"] == 1:
        del fields["sequence_parallel"]
    if v["pp"] == 1:
        del fields["pp_schedule"], fields["virtual_pp"], fields["pp_layers"]
    if not v["optimizer_in_backward"]:
        del fields["optimizer_in_backward"]
    stated = job.strategy
    rest = {n: getattr(stated, n) for n in ("framework_version", "set_to_none", "weights")}
    if base["method"] in ("lora", "qlora", "dora") and rest["weights"] is None:
        rest["weights"] = base["weights"]
    strategy = Strategy(framework=space.cap.name, **{k: x for k, x in rest.items() if x is not None}, **fields)
    task = replace(
        job.task,
        kind="train",
        method=base["method"],
        seq_len=base["seq_len"],
        global_batch=v["micro_batch"] * v["grad_accum"] * v["dp"],
    )
    gpu = space.base.gpu
    hardware = replace(
        job.hardware,
        gpu=gpu.name if gpu is not None else job.hardware.gpu,
        gpus=space.gpus,
        gpus_per_node=space.cluster.gpus_per_node,
    )
    return Job(model=job.model, task=task, strategy=strategy, hardware=hardware)


def make_plan(request: Request, space: Space, option: Option, candidate: Candidate) -> Plan:
    """A candidate as a plan; its job is estimated anew, the long way."""
    job = job_of(request.job, space, candidate)
    found = estimate(job)
    assert found.bands["need"].mid == candidate.need_bytes, "an array of jobs equals the single answers"
    seconds, rate, parts = time_of(space, candidate.values, request.calibration)
    return Plan(
        job=job,
        estimate=found,
        option=option,
        candidate=candidate,
        step_s=seconds,
        tokens_per_s_per_gpu=rate,
        parts=parts,
        qualities=qualities_of(space, request, candidate.values),
    )


def time_of(space: Space, values: Mapping[str, Any], calibration: Any) -> tuple[float, float, dict[str, float]]:
    """(seconds of a step, tokens per second and GPU, parts) of one candidate."""
    import numpy as np

    numbers: dict[str, Any] = {n: np.array([values[n]], dtype=np.int64) for n in levers.NUMBERS}
    static = {n: x for n, x in values.items() if n not in levers.NUMBERS}
    times = speed.evaluate(at(space.base, static), parts=True, calibration=calibration, **numbers)
    parts = {name: float(np.asarray(column).reshape(-1)[0]) for name, column in (times.parts or {}).items()}
    return float(times.step_s[0]), float(times.tokens_per_s_per_gpu[0]), parts


def qualities_of(space: Space, request: Request, values: Mapping[str, Any]) -> tuple[Quality, ...]:
    """What a candidate costs in quality beyond what the user stated."""
    stated = space.fixed
    found = []
    method = space.base.values["method"]
    if request.job.task.method is None and (q := quality("method", method)):
        found.append(q)
    for lever in ("optimizer", "precision", "optimizer_in_backward"):
        today = space.base.values[lever]
        if lever not in stated and values[lever] != today and (q := quality(lever, values[lever])):
            found.append(q)
    return tuple(found)
