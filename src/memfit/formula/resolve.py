"""From a job to everything the memory model needs: completed fields, architecture, card, capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

from memfit.errors import JobError, UnknownNameError, nearest
from memfit.formula import profile as profiles
from memfit.formula.cautions import check_targets
from memfit.hardware import Gpu, lookup_gpu
from memfit.job import Completed, Job, Strategy, complete
from memfit.models import Architecture
from memfit.models import resolve as resolve_model
from memfit.models.quantised import method, stored_as
from memfit.units import GIB

DEFAULT_FRAMEWORK = "transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A job with its model and card looked up.

    Attributes:
        completed: every field of the job with its origin.
        arch: the model; ``arch_origin`` says where it came from.
        gpu: the card, None when the job names none.
        capacity_bytes: what the driver reports as total, None without a card.
        values: flat view of task, strategy and hardware fields by name.
    """

    completed: Completed
    arch: Architecture
    arch_origin: str
    gpu: Gpu | None
    capacity_bytes: int | None
    others_bytes: int
    values: Mapping[str, Any] = field(hash=False)
    stated: Job

    @property
    def vendor(self) -> str:
        """Whose runtime the job uses: that of its card, CUDA's without one."""
        return self.gpu.vendor if self.gpu is not None else "nvidia"


def _by_name(name: str, family: str | None) -> tuple[Architecture, str]:
    found = _catalog(name, family)
    return found if found is not None else resolve_model(name, as_family=family)


@lru_cache(maxsize=1024)
def _catalog(name: str, family: str | None) -> tuple[Architecture, str] | None:
    """A catalog model; what comes from files is read anew each time."""
    from memfit.models import catalog

    return resolve_model(name, as_family=family) if catalog.lookup(name) is not None else None


@lru_cache(maxsize=1024)
def _gpu(name: str) -> Gpu:
    gpu, count = lookup_gpu(name)
    if count is not None:
        raise JobError(
            "hardware.gpu", "holds a number of cards that is not read", value=name, hint=f"write {count}x{gpu.name}"
        )
    return gpu


def defaults_of(strategy: Strategy) -> dict[str, Any]:
    """The defaults of a job's framework profile as dotted paths."""
    stages = strategy.pp or len(strategy.pp_layers or ())
    return _defaults(strategy.framework or DEFAULT_FRAMEWORK, strategy.framework_version, stages > 1)


@lru_cache(maxsize=1024)
def _defaults(framework: str, version: str | None, pipeline: bool) -> dict[str, Any]:
    if framework not in profiles.names():
        return {}
    found = profiles.profile(profiles.select(framework, version))
    table = {**found.defaults, **(found.pipeline if pipeline else {})}
    paths = {f"task.{k}" if k.startswith("lora.") else f"strategy.{k}": v for k, v in table.items()}
    return {path: tuple(v) if isinstance(v, list) else v for path, v in paths.items()}


_FACTS = {"moe_imbalance": (1, 100), "images": (0, 1 << 16)}
"""Numbers that ``model.extra`` may state, with their bounds."""


def check_facts(extra: Mapping[str, Any]) -> None:
    """Check the facts of ``model.extra`` that the memory model reads.

    Raises:
        JobError: one is not known, not of its type or out of bounds.
    """
    known = (*_FACTS, "as")
    for name in extra:
        if name not in known:
            near = nearest(str(name), known)
            hint = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(known)}"
            raise JobError(f"model.extra.{str(name)[:60]}", "unknown fact", value=extra[name], hint=hint)
    for name, (low, high) in _FACTS.items():
        value = extra.get(name, low)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            bound = f"{low} to {high}"
            raise JobError(f"model.extra.{name}", f"must be a number from {bound}", value=value, bound=bound)
    family = extra.get("as")
    if family is not None and not isinstance(family, str):
        raise JobError("model.extra.as", "must be the name of a model family", value=family)


def check_split(values: Mapping[str, Any], num_layers: int) -> None:
    """Check that the stated layers of the pipeline ranks are those of the model.

    Args:
        values: flat values of a completed job.
        num_layers: of the decoder.

    Raises:
        JobError: they do not sum to its layers.
    """
    layers = values["pp_layers"]
    if layers and values["kind"] == "train" and sum(layers) != num_layers:
        message = f"the ranks have {sum(layers)} layers together, the model has {num_layers}"
        raise JobError("strategy.pp_layers", message, value=layers, bound=str(num_layers))


@cache
def _engines() -> Mapping[str, Any]:
    found: dict[str, Any] = profiles.read_data("inference.toml")["stored"]
    return found


def stored_weights(arch: Architecture, framework: str) -> str | None:
    """What an engine keeps the weights of a quantised checkpoint in: as they are stored, where it runs them so.

    Args:
        arch: the model.
        framework: the engine that serves it.

    Returns:
        A type of weights; None for a plain checkpoint, or where the engine does not run it as it is.
    """
    name = stored_as(arch)
    return name if name is not None and name in _engines().get(framework, ()) else None


def _as_stored(completed: Completed, arch: Architecture) -> Completed:
    """A served model whose weights nobody stated is kept as its checkpoint stores it."""
    v = completed.values
    if v["kind"] != "serve" or completed.origins["strategy.weights"] != "default":
        return completed
    weights = stored_weights(arch, v["framework"])
    if weights is None:
        if (name := method(arch)) is None:
            return completed
        text = f"the checkpoint is quantised ({name[:40]}), which is not followed: weights are taken to be in 16 bit"
        return replace(completed, warnings=(*completed.warnings, text))
    return replace(
        completed,
        job=replace(completed.job, strategy=replace(completed.job.strategy, weights=weights)),
        origins={**completed.origins, "strategy.weights": "derived"},
        values={**v, "weights": weights},
    )


def resolve(job: Job) -> Resolved:
    """Complete a job and look up its model and card.

    Raises:
        JobErrors, JobError: the job contradicts itself or names no model.
        UnknownNameError: the model, the framework or the GPU does not exist.
        ConfigError, InputFileError: the model's configuration cannot be read.
    """
    completed = complete(job, defaults_of(job.strategy))
    model = job.model
    if model.config is None and model.name is None:
        raise JobError("model.name", "no model is given", hint="name a catalog model, a folder, or give `model.config`")
    if model.extra:
        check_facts(model.extra)
    family = (model.extra or {}).get("as")
    if model.config is not None:
        arch, origin = resolve_model(model.config, as_family=family)
    else:
        arch, origin = _by_name(str(model.name), family)
    check_split(completed.values, arch.num_layers)
    check_targets(completed.values, completed.origins, arch)
    completed = _as_stored(completed, arch)
    hardware = completed.job.hardware
    gpu = None
    if hardware.gpu:
        try:
            gpu = _gpu(hardware.gpu)
        except UnknownNameError:
            if hardware.memory_gib is None:
                raise
    capacity = None
    if hardware.memory_gib is not None:
        capacity = round(hardware.memory_gib * GIB)
    elif gpu is not None:
        capacity = gpu.total_bytes
    return Resolved(
        completed=completed,
        arch=arch,
        arch_origin=origin,
        gpu=gpu,
        capacity_bytes=capacity,
        others_bytes=round((hardware.others_gib or 0) * GIB),
        values=completed.values,
        stated=job,
    )
