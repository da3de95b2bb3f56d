"""The answer to "where does the memory go": one Estimate for one job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from memfit._version import __version__
from memfit.errors import MemfitError
from memfit.formula import profile as profiles
from memfit.formula.alternatives import alternatives_of, changes_of
from memfit.formula.inference import Serving, serving
from memfit.formula.resolve import Resolved, resolve
from memfit.formula.slack import bands
from memfit.formula.step import ENTRIES
from memfit.formula.training import StagePeak, dims_of, peaks, runtime_bytes, setup_of
from memfit.job import Job, from_kwargs, load, parse
from memfit.ledger import Band, Entry, Ledger

SCHEMA_VERSION = 1

Verdict = Literal["fits", "tight", "does not fit", "unknown"]
TIGHT = 0.01
"""A job fits when it runs out of memory with at most this probability, is tight up to one half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumption:
    """A value that nobody stated, and what its alternative would change.

    ``delta_bytes`` is the reserved peak with the alternative minus the peak as assumed.
    """

    field: str
    value: Any
    alternative: Any
    delta_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change of the job: ``fields`` are the overrides, ``delta_bytes`` what it does to the reserved peak."""

    what: str
    fields: Mapping[str, Any]
    delta_bytes: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Where the memory of a job goes.

    All figures are bytes on the fullest rank unless a stage is named.

    Attributes:
        job: the completed job.
        resolved: the job with model and card looked up.
        stages: ledgers of all pipeline stages at their own fullest moment (one for serving).
        fullest: index into ``stages``.
        bands: per kind of reading (``allocated``, ``reserved``, ``device``) the range that holds nine runs in ten.
        host_bytes: pinned host memory that offloading needs, per rank.
        serving: the parts of a serving job, None for training.
    """

    resolved: Resolved
    stages: tuple[Ledger, ...]
    stage_phases: tuple[str, ...]
    fullest: int
    bands: Mapping[str, Band]
    host_bytes: int = 0
    serving: Serving | None = None
    warnings: tuple[str, ...] = ()
    phases: tuple[tuple[str, str, Mapping[str, int]], ...] = field(default=(), repr=False)

    @property
    def job(self) -> Job:
        """The job with every field filled."""
        return self.resolved.completed.job

    @property
    def ledger(self) -> Ledger:
        """The ledger of the fullest rank."""
        return self.stages[self.fullest]

    @property
    def allocated_bytes(self) -> int:
        """Peak of what the caching allocator hands out."""
        return self.ledger.allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        """Peak of what the caching allocator holds."""
        return self.ledger.reserved_bytes

    @property
    def device_bytes(self) -> int:
        """What the card shows as used: reserved, runtime, other processes."""
        return self.ledger.device_bytes

    @property
    def capacity_bytes(self) -> int | None:
        """What the driver reports as the card's total; None without a card."""
        return self.resolved.capacity_bytes

    @cached_property
    def p_oom(self) -> float | None:
        """Probability that the job runs out of memory; None without a card."""
        return None if self.capacity_bytes is None else self.bands["need"].p_above(self.capacity_bytes)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        if self.p_oom is None:
            return "unknown"
        if self.p_oom <= TIGHT:
            return "fits"
        return "tight" if self.p_oom <= 0.5 else "does not fit"

    @property
    def fits(self) -> bool | None:
        """True unless it more likely runs out of memory than not; None without a card."""
        return None if self.p_oom is None else self.p_oom <= 0.5

    @property
    def peak_phase(self) -> str:
        """The phase of the step in which the peak stands."""
        return self.stage_phases[self.fullest]

    @cached_property
    def assumptions(self) -> tuple[Assumption, ...]:
        """What was assumed and what each assumption is worth, largest effect first."""
        found = []
        for path, value, alternative, fields in alternatives_of(self.resolved):
            other = self._with(fields)
            if other is not None:
                delta = other.reserved_bytes - self.reserved_bytes
                found.append(Assumption(field=path, value=value, alternative=alternative, delta_bytes=delta))
        return tuple(sorted(found, key=lambda a: -abs(a.delta_bytes)))

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Changes of the job that save memory, largest saving first."""
        found = []
        for what, fields in changes_of(self.resolved):
            other = self._with(fields)
            if other is not None and other.reserved_bytes < self.reserved_bytes:
                delta = other.reserved_bytes - self.reserved_bytes
                found.append(Change(what=what, fields=fields, delta_bytes=delta))
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

    def to_dict(self, job_id: str | None = None) -> dict[str, Any]:
        """The result document (see docs/schema.md), JSON-ready."""
        ledger = self.ledger
        out: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "id": job_id,
            "verdict": self.verdict,
            "p_oom": self.p_oom,
            "capacity_bytes": self.capacity_bytes,
            "peak_bytes": {
                "allocated": ledger.allocated_bytes,
                "reserved": ledger.reserved_bytes,
                "device": ledger.device_bytes,
            },
            "band_bytes": {k: v.to_list() for k, v in self.bands.items() if k != "need"},
            "peak_phase": self.peak_phase,
            "components": _components(ledger),
            "stages": [
                {
                    "stage": index,
                    "label": stage.label,
                    "peak_phase": phase,
                    "peak_bytes": {
                        "allocated": stage.allocated_bytes,
                        "reserved": stage.reserved_bytes,
                        "device": stage.device_bytes,
                    },
                    "components": _components(stage),
                }
                for index, (stage, phase) in enumerate(zip(self.stages, self.stage_phases, strict=True))
            ],
            "fullest_stage": self.fullest,
            "host_bytes": self.host_bytes,
            "assumptions": [
                {"field": a.field, "value": a.value, "alternative": a.alternative, "delta_bytes": a.delta_bytes}
                for a in self.assumptions
            ],
            "changes": [{"what": c.what, "fields": dict(c.fields), "delta_bytes": c.delta_bytes} for c in self.changes],
            "warnings": list(self.warnings),
            "model": {
                "source": self.resolved.arch_origin,
                "params": self.resolved.arch.num_params,
                "active_params": self.resolved.arch.active_params,
            },
            "versions": versions(),
        }
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


_TASK = frozenset({"method", "seq_len", "global_batch", "lora", "context", "concurrency", "batch_tokens", "prompt", "output"})


def _components(ledger: Ledger) -> list[dict[str, Any]]:
    return [
        {"name": e.component, "what": e.name, "bytes": e.bytes, "provenance": e.provenance} for e in ledger.entries
    ]


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
    resolved = resolve(stated)
    return _serve(resolved) if resolved.values["kind"] == "serve" else _train(resolved)


def _runtime(context: int, nccl: int, others: int) -> list[Entry]:
    return [
        Entry(component="runtime", name="CUDA context", bytes=context, provenance="assumed"),
        Entry(component="runtime", name="NCCL", bytes=nccl, provenance="assumed"),
        Entry(component="others", name="other processes", bytes=others, provenance="assumed"),
    ]


def _train(resolved: Resolved) -> Estimate:
    setup, d = setup_of(resolved), dims_of(resolved)
    found = peaks(setup, d, every=True)
    context, nccl = runtime_bytes(resolved, d)
    tail = _runtime(context, nccl, resolved.others_bytes)
    ledgers = tuple(_ledger(p, tail, resolved, len(found)) for p in found)
    fullest = max(range(len(ledgers)), key=lambda i: ledgers[i].device_bytes)
    ledger = ledgers[fullest]
    return Estimate(
        resolved=resolved,
        stages=ledgers,
        stage_phases=tuple(p.peak.phase for p in found),
        fullest=fullest,
        bands=bands(ledger, sharded=setup.choices.zero >= 3),
        host_bytes=found[fullest].host,
        warnings=(*resolved.completed.warnings, *resolved.arch.unknowns),
        phases=tuple((m.phase, m.what, m.parts) for m in found[fullest].moments),
    )


def _ledger(p: StagePeak, tail: list[Entry], resolved: Resolved, count: int) -> Ledger:
    entries = [
        Entry(
            component=component,
            name=name,
            bytes=p.peak.parts[key],
            provenance="exact" if key == "weights" else "formula",
        )
        for key, (component, name) in ENTRIES.items()
    ]
    entries.append(Entry(component="slack", name="allocator slack", bytes=p.slack, provenance="calibrated"))
    label = f"pipeline stage {p.stage.index}" if count > 1 else "every rank"
    return Ledger.of([*entries, *tail], label=label, moment=p.peak.what, capacity_bytes=resolved.capacity_bytes)


def _serve(resolved: Resolved) -> Estimate:
    s = serving(resolved)
    d = dims_of(resolved)
    context, nccl = runtime_bytes(resolved, d)
    running = [
        Entry(component="activations", name="running block", bytes=s.activation if s.activation >= s.logits else 0),
        Entry(component="logits", name="logits", bytes=s.logits if s.logits > s.activation else 0),
    ]
    entries = [
        Entry(component="parameters", name="weights", bytes=s.weights, provenance="exact"),
        Entry(component="kv_cache", name="keys and values", bytes=s.kv, provenance="exact"),
        Entry(component="state", name="recurrent state", bytes=s.state, provenance="exact"),
        *running,
        Entry(component="workspace", name="position tables", bytes=s.tables),
        Entry(component="workspace", name="cuBLAS workspace", bytes=s.workspace),
        Entry(component="slack", name="allocator slack", bytes=(s.activation + s.logits) * 8 // 100, provenance="calibrated"),
        *_runtime(context, nccl, resolved.others_bytes),
    ]
    ledger = Ledger.of(entries, label="every rank", moment="prefill of the prompts", capacity_bytes=resolved.capacity_bytes)
    return Estimate(
        resolved=resolved,
        stages=(ledger,),
        stage_phases=("prefill",),
        fullest=0,
        bands=bands(ledger, sharded=False),
        serving=s,
        warnings=(*resolved.completed.warnings, *resolved.arch.unknowns, *s.warnings),
    )
