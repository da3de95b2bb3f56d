"""Exports: a job as complete, runnable files of the tool that will run it, and other tools' files back as a job.

One module a target; each says which levers it has words for. What a target cannot express is an error that names the
lever (``memfit.export.levers``). Nothing here imports the tools themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from memfit.errors import UnknownNameError
from memfit.export.plan import Plan, make_plan
from memfit.export.target import File, Target
from memfit.job import Job

__all__ = ["NAMES", "Export", "File", "Target", "export", "target", "targets"]

_MODULES: Mapping[str, str] = {
    "accelerate": "accelerate",
    "transformers": "transformers",
    "trl": "trl",
    "deepspeed": "deepspeed",
    "fsdp2": "fsdp2",
    "axolotl": "axolotl",
    "llama-factory": "llama_factory",
    "torchtitan": "torchtitan",
    "megatron": "megatron",
    "megatron-bridge": "megatron_bridge",
    "lightning": "lightning",
    "torchtune": "torchtune",
    "slurm": "slurm",
    "skypilot": "skypilot",
    "k8s": "k8s",
}
NAMES = tuple(_MODULES)
"""Names of all targets."""

_BY_FRAMEWORK: Mapping[str, str] = {
    "transformers": "transformers",
    "trl": "trl",
    "deepspeed": "deepspeed",
    "torch": "fsdp2",
    "axolotl": "axolotl",
    "torchtitan": "torchtitan",
    "megatron": "megatron",
    "torchtune": "torchtune",
    "litgpt": "lightning",
}
"""Framework of a job -> the target whose program a launcher starts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """The files of an export and what the user should know."""

    target: Target
    plan: Plan
    files: tuple[File, ...]
    warnings: tuple[str, ...] = ()


@cache
def target(name: str) -> Target:
    """A target by name.

    Raises:
        UnknownNameError: no target is called so.
    """
    if name not in _MODULES:
        raise UnknownNameError("export target", name, NAMES, hint=f"one of {', '.join(NAMES)}")
    found: Target = import_module(f"memfit.export.{_MODULES[name]}").TARGET
    return found


def targets() -> tuple[Target, ...]:
    """All targets."""
    return tuple(target(name) for name in NAMES)


def export(job: Job, to: str, *, program: str | None = None) -> Export:
    """The files of a job for a target.

    Args:
        job: a training job.
        to: name of the target.
        program: for launchers (slurm, skypilot, k8s) the target whose program they start; by the job's framework
            unless stated.

    Raises:
        JobErrors: levers that the target cannot express, each by name.
        MemfitError: an unknown target, or a job, model or card that cannot be read.
    """
    from memfit.export.launchers import export_launcher

    chosen = target(to)
    if chosen.launcher:
        name = program or _BY_FRAMEWORK.get(job.strategy.framework or "transformers", "transformers")
        return export_launcher(job, chosen, target(name), plan_for)
    if program is not None:
        from memfit.errors import MemfitError

        raise MemfitError(f"{to} starts its own program", hint="--program goes with slurm, skypilot and k8s")
    plan = plan_for(job, chosen)
    return Export(target=chosen, plan=plan, files=tuple(files_of(plan)), warnings=plan.warnings)


def plan_for(job: Job, chosen: Target) -> Plan:
    """The checked plan of a job for a target.

    Raises:
        JobErrors: levers that the target cannot express.
    """
    others = {t.name: t.levers for t in targets() if t.name != chosen.name and not t.launcher}
    return make_plan(job, chosen, others)


def files_of(plan: Plan) -> list[File]:
    """The target's files, and the model's configuration when the job carries one."""
    from memfit.export.text import json_text

    files = plan.target.write(plan)
    if plan.job.model.config is not None:
        files.append(File(name="model/config.json", text=json_text(dict(plan.job.model.config))))
    return files
