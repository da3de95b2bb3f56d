"""The answer to "where does the memory go": one Estimate for one job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from memfit._version import __version__
from memfit.errors import MemfitError
from memfit.formula import profile as profiles
from memfit.formula.alternatives import AS_STORED, alternatives_of, changes_of
from memfit.formula.cautions import cautions
from memfit.formula.inference import ENTRIES as SERVING_ENTRIES
from memfit.formula.inference import Serving, serving
from memfit.formula.reading import Outside, Reading
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.slack import bands
from memfit.formula.training import StagePeak, dims_of, peaks, runtime_bytes, segments_grow, setup_of
from memfit.job import Job, from_kwargs, load, parse
from memfit.ledger import Band, Ledger
from memfit.models import Architecture

SCHEMA_VERSION = 1

Verdict = Literal["fits", "tight", "does not fit", "unknown"]
TIGHT = 0.01
"""A job fits when it runs out of memory with at most this probability, is tight up to one half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumption:
    """A value that nobody stated, and what its alternative would change.

    ``delta_bytes`` is the reserved peak with the alternative minus the peak as assumed; ``reason`` is why the value was
    assumed, where it follows from the model.
    """

    field: str
    value: Any
    alternative: Any
    delta_bytes: int
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of the job.

    ``fields`` are the overrides, ``delta_bytes`` is what it does to the reserved peak, ``p_oom`` the probability of
    running out of memory with it (None without a card).
    """

    what: str
    fields: Mapping[str, Any]
    delta_bytes: int
    p_oom: float | None = None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Where the memory of a job goes.

    All figures are bytes on the fullest rank unless a stage is named.

    Attributes:
        resolved: the job with model and card looked up.
        readings: all pipeline stages at their own fullest moment (one for serving).
        fullest: index into ``readings``.
        sharded: data parallelism shards weights.
        serving: the parts of a serving job, None for training.
        phases: candidate moments of the fullest stage's step: (phase, what, entry -> bytes).
    """

    resolved: Resolved
    readings: tuple[Reading, ...]
    fullest: int
    sharded: bool = False
    serving: Serving | None = None
    warnings: tuple[str, ...] = ()
    phases: tuple[tuple[str, str, Mapping[str, int]], ...] = field(default=(), repr=False)

    @property
    def job(self) -> Job:
        """The job with every field filled."""
        return self.resolved.completed.job

    @property
    def reading(self) -> Reading:
        """The fullest stage."""
        return self.readings[self.fullest]

    @cached_property
    def stages(self) -> tuple[Ledger, ...]:
        """Ledgers of all stages."""
        return tuple(r.ledger(self.capacity_bytes) for r in self.readings)

    @property
    def stage_phases(self) -> tuple[str, ...]:
        """The phase in which each stage peaks."""
        return tuple(r.phase for r in self.readings)

    @property
    def ledger(self) -> Ledger:
        """The ledger of the fullest rank."""
        return self.stages[self.fullest]

    @cached_property
    def bands(self) -> dict[str, Band]:
        """The range that holds nine runs in ten, for ``allocated``, ``reserved``, ``device`` and ``need``."""
        return bands(self.reading.peak_bytes(), self.reading.outside.total, sharded=self.sharded)

    @property
    def allocated_bytes(self) -> int:
        """Peak of what the caching allocator hands out."""
        return self.reading.allocated

    @property
    def reserved_bytes(self) -> int:
        """Peak of what the caching allocator holds."""
        return self.reading.reserved

    @property
    def device_bytes(self) -> int:
        """What the card shows as used: reserved, runtime, other processes."""
        return self.reading.device

    @property
    def host_bytes(self) -> int:
        """Pinned host memory that offloading needs, per rank."""
        return self.reading.host

    @property
    def capacity_bytes(self) -> int | None:
        """What the driver reports as the card's total; None without a card."""
        return self.resolved.capacity_bytes

    @cached_property
    def p_oom(self) -> float | None:
        """Probability that the job runs out of memory; None without a card."""
        return None if self.capacity_bytes is None else self.bands["need"].p_above(self.capacity_bytes)

    @cached_property
    def p_retry(self) -> float | None:
        """Probability that a training job which runs gives the allocator's cache back in every step, which is slow.

        That is when reserved memory exceeds the card. Expandable segments reserve little that is not allocated, so
        there it comes down to running out of memory: 0. None without a card.
        """
        if self.capacity_bytes is None:
            return None
        if self.resolved.values["kind"] != "train" or segments_grow(self.resolved):
            return 0.0
        return self.bands["device"].p_above(self.capacity_bytes)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        return verdict_of(self.p_oom)

    @property
    def fits(self) -> bool | None:
        """True unless it more likely runs out of memory than not; None without a card."""
        return None if self.p_oom is None else self.p_oom <= 0.5

    @property
    def peak_phase(self) -> str:
        """The phase of the step in which the peak stands."""
        return self.reading.phase

    @cached_property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What was assumed and what each assumption is worth, largest effect first."""
        found = []
        for path, value, alternative, fields in alternatives_of(self.resolved):
            other = self._with(fields)
            if other is not None:
                delta = other.reserved_bytes - self.reserved_bytes
                why = AS_STORED if path == "strategy.weights" else None
                found.append(
                    Assumption(field=path, value=value, alternative=alternative, delta_bytes=delta, reason=why)
                )
        return tuple(sorted(found, key=lambda a: -abs(a.delta_bytes)))

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Changes of the job that save memory, largest saving first."""
        found = []
        for what, fields in changes_of(self.resolved):
            other = self._with(fields)
            if other is not None and other.reserved_bytes < self.reserved_bytes:
                delta = other.reserved_bytes - self.reserved_bytes
                found.append(Change(what=what, fields=fields, delta_bytes=delta, p_oom=other.p_oom))
        return tuple(sorted(found, key=lambda c: c.delta_bytes))

    def _with(self, fields: Mapping[str, Any]) -> Estimate | None:
        stated = self.resolved.stated
        try:
            return estimate(
                replace(
                    stated,
                    task=replace(stated.task, **{k: v for k, v in fields.items() if k in _TASK}),
                    strategy=replace(stated.strategy, **{k: v for k, v in fields.items() if k not in _TASK}),
                )
            )
        except MemfitError:
            return None

    def to_dict(self, job_id: str | None = None, *, full: bool = True) -> dict[str, Any]:
        """The result document (see docs/schema.md), JSON-ready.

        Args:
            job_id: copied into ``id``.
            full: compute what each assumption is worth and the changes that save most (a few further estimates);
                without it ``assumptions`` and ``changes`` are empty.
        """
        out = document(
            self.resolved,
            self.readings,
            self.fullest,
            sharded=self.sharded,
            warnings=self.warnings,
            job_id=job_id,
        )
        if full:
            out["assumptions"] = [
                {"field": a.field, "value": a.value, "alternative": a.alternative, "delta_bytes": a.delta_bytes}
                | ({"reason": a.reason} if a.reason else {})
                for a in self.assumptions
            ]
            out["changes"] = [
                {"what": c.what, "fields": dict(c.fields), "delta_bytes": c.delta_bytes} for c in self.changes
            ]
        if self.serving is not None:
            s = self.serving
            out["serving"] = {
                "weights_bytes": s.weights,
                "kv_bytes": s.kv,
                "kv_bytes_per_token": s.kv_per_token,
                "state_bytes": s.state,
                "activation_bytes": s.activation,
                "logits_bytes": s.logits,
            }
        return out

    def _repr_html_(self) -> str:
        from memfit.report.html import estimate_html

        return estimate_html(self)


_TASK = frozenset(
    {"method", "seq_len", "global_batch", "lora", "context", "concurrency", "batch_tokens", "prompt", "output"}
)


def verdict_of(p_oom: float | None) -> Verdict:
    """The verdict that a probability of running out of memory stands for."""
    if p_oom is None:
        return "unknown"
    if p_oom <= TIGHT:
        return "fits"
    return "tight" if p_oom <= 0.5 else "does not fit"


def document(
    resolved: Resolved,
    readings: Sequence[Reading],
    fullest: int,
    *,
    sharded: bool,
    warnings: Sequence[str],
    job_id: str | None,
) -> dict[str, Any]:
    """The result document of one job without assumptions and changes."""
    reading = readings[fullest]
    peak = reading.peak_bytes()
    ranges = bands(peak, reading.outside.total, sharded=sharded)
    p_oom = None if resolved.capacity_bytes is None else ranges["need"].p_above(resolved.capacity_bytes)
    stages = [
        {
            "stage": index,
            "label": r.label,
            "peak_phase": r.phase,
            "peak_bytes": r.peak_bytes(),
            "components": r.components(),
        }
        for index, r in enumerate(readings)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "id": job_id,
        "verdict": verdict_of(p_oom),
        "p_oom": p_oom,
        "capacity_bytes": resolved.capacity_bytes,
        "peak_bytes": peak,
        "band_bytes": {kind: ranges[kind].to_list() for kind in ("allocated", "reserved", "device")},
        "peak_phase": reading.phase,
        "components": stages[fullest]["components"],
        "stages": stages,
        "fullest_stage": fullest,
        "host_bytes": reading.host,
        "assumptions": [],
        "changes": [],
        "warnings": list(warnings),
        "model": {
            "source": resolved.arch_origin,
            "params": params_of(resolved.arch)[0],
            "active_params": params_of(resolved.arch)[1],
        },
        "versions": versions(),
    }


@lru_cache(maxsize=1024)
def params_of(arch: Architecture) -> tuple[int, int]:
    """(all parameters, parameters that one token uses)."""
    return arch.num_params, arch.active_params


@cache
def versions() -> dict[str, str]:
    """Versions of the code and of every data file behind a result."""
    from memfit.hardware import data_version as hardware_version
    from memfit.models.catalog import version as catalog_version

    return {
        "memfit": __version__,
        "profiles": profiles.data_version(),
        "hardware": hardware_version(),
        "catalog": catalog_version(),
    }


def estimate(job: Job | Mapping[str, Any] | str | Path | None = None, **fields: Any) -> Estimate:
    """Where the memory of a job goes, before it runs and without a GPU.

    Args:
        job: a Job, a mapping in the form of the job document, or the path of one. May be left out.
        **fields: job fields by name, e.g. ``model="llama-3.1-8b", gpu="8xh100", zero=3``; they win over ``job``.

    Raises:
        MemfitError: the job, the model or the hardware cannot be read; the message names every fault.
    """
    if isinstance(job, Job):
        if fields:
            raise MemfitError("fields cannot be combined with a Job", hint="use dataclasses.replace")
        stated = job
    elif job is None:
        stated = from_kwargs(**fields)
    elif isinstance(job, Mapping) and not fields:
        stated = parse(job)
    else:
        stated = load(job, fields or None)
    return estimate_resolved(resolve(stated))


def estimate_resolved(resolved: Resolved) -> Estimate:
    """The same for a job whose model and card are looked up."""
    return _serve(resolved) if resolved.values["kind"] == "serve" else _train(resolved)


def train_readings(found: Sequence[StagePeak], outside: Outside) -> tuple[tuple[Reading, ...], int]:
    """(readings of all stages, index of the fullest)."""
    several = len(found) > 1
    readings = tuple(
        Reading(
            f"pipeline stage {p.stage.index}" if several else "every rank",
            p.peak.phase,
            p.peak.what,
            p.peak.parts,
            p.slack,
            outside,
            p.host,
        )
        for p in found
    )
    return readings, max(range(len(readings)), key=lambda i: readings[i].reserved)


def warnings_of(resolved: Resolved) -> tuple[str, ...]:
    """What the user should know of the job and the model."""
    found = [*resolved.completed.warnings, *resolved.arch.unknowns]
    v = resolved.values
    found += cautions(v, resolved.completed.origins, resolved.arch, resolved.gpu)
    if "parameters" in (v["offload"] or ()) and v["zero"] < 3:
        found.append("`strategy.offload`: parameters leave the card only with zero 3; without it this has no effect")
    return tuple(found)


def _train(resolved: Resolved) -> Estimate:
    setup, d = setup_of(resolved), dims_of(resolved)
    found = peaks(setup, d, every=True)
    readings, fullest = train_readings(
        found, Outside(*runtime_bytes(resolved, d), resolved.others_bytes, resolved.vendor)
    )
    return Estimate(
        resolved=resolved,
        readings=readings,
        fullest=fullest,
        sharded=setup.choices.zero >= 3,
        warnings=warnings_of(resolved),
        phases=tuple((m.phase, m.what, m.parts) for m in found[fullest].moments),
    )


def _serve(resolved: Resolved) -> Estimate:
    s = serving(resolved)
    parts = {
        "weights": s.weights,
        "kv": s.kv,
        "state": s.state,
        "block": s.activation if s.activation >= s.logits else 0,
        "logits": s.logits if s.logits > s.activation else 0,
        "tables": s.tables,
        "cublas": s.workspace,
    }
    outside = Outside(*runtime_bytes(resolved, dims_of(resolved)), resolved.others_bytes, resolved.vendor)
    slack = (s.activation + s.logits) * 8 // 100
    reading = Reading("every rank", "prefill", "prefill of the prompts", parts, slack, outside, 0, SERVING_ENTRIES)
    return Estimate(
        resolved=resolved,
        readings=(reading,),
        fullest=0,
        serving=s,
        warnings=(*warnings_of(resolved), *s.warnings),
    )
