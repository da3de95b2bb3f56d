"""Launchers start another target's program on machines: Slurm, SkyPilot, Kubernetes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memfit.errors import MemfitError
from memfit.export import Export, files_of
from memfit.export.levers import Rule, rules, written
from memfit.export.plan import Plan, Program
from memfit.export.target import Target
from memfit.job import Job
from memfit.units import GIB

LEVERS: dict[str, Rule] = rules(gpus=written(), gpus_per_node=written())
"""What launchers write themselves; every other lever is the program's."""

PACKAGES = {
    "accelerate": "torch==2.13.* transformers==5.23.* accelerate==1.15.* peft==0.21.*",
    "transformers": "torch==2.13.* transformers==5.23.* accelerate==1.15.* peft==0.21.*",
    "trl": "torch==2.13.* trl==1.16.* peft==0.21.*",
    "deepspeed": "torch==2.13.* deepspeed==0.19.* transformers==5.23.* peft==0.21.*",
    "fsdp2": "torch==2.13.* transformers==5.23.* peft==0.21.*",
    "axolotl": "axolotl==0.19.*",
    "llama-factory": "llamafactory==0.9.5",
    "torchtitan": "torchtitan==0.3.*",
    "megatron": "megatron-core==0.16.*",
    "megatron-bridge": "megatron-bridge==0.3.*",
    "lightning": "torch==2.13.* lightning==2.6.* transformers==5.23.* peft==0.21.*",
    "torchtune": "torchtune==0.6.1",
}
"""What ``pip install`` needs for each program."""
_HOST_GIB_EACH = 32  # host memory beside what offloading pins: loading, data, the processes themselves


def export_launcher(job: Job, chosen: Target, program: Target, plan_for: Callable[[Job, Target], Plan]) -> Export:
    """The launcher's files beside those of the program that it starts.

    Args:
        job: a training job.
        chosen: the launcher.
        program: what it starts.
        plan_for: makes the checked plan of a program.

    Raises:
        MemfitError: the program is a launcher itself.
        JobErrors: levers that the program cannot express.
    """
    if program.launcher or program.command is None:
        raise MemfitError(f"{program.name} is no program", hint=f"one of {', '.join(PACKAGES)}")
    inner = plan_for(job, program)
    started = Program(target=program, plan=inner, command=program.command(inner))
    plan = replace(inner, target=chosen, program=started)
    found = list(chosen.check(plan))
    if found:
        from memfit.errors import JobErrors

        raise JobErrors(found)
    files = (*chosen.write(plan), *files_of(inner))
    return Export(target=chosen, plan=plan, files=files, warnings=inner.warnings)


def host_gib(plan: Plan) -> int:
    """Host memory of one machine in GiB: what offloading pins, and room for loading and data."""
    pinned = plan.estimate.host_bytes * plan.gpus_each / GIB
    return round(pinned * 1.1) + _HOST_GIB_EACH * plan.gpus_each


def program_of(plan: Plan) -> Program:
    """The program that a launcher's plan starts."""
    assert plan.program is not None
    return plan.program


def packages(plan: Plan) -> str:
    """What ``pip install`` needs for the program."""
    words = PACKAGES[program_of(plan).target.name]
    low = plan.weights in ("nf4", "nf4-dq", "fp4", "int8") or plan.optimizer in ("adamw-8bit", "paged-adamw-8bit")
    if low and "torch==" in words:
        words += " bitsandbytes==0.50.* torchao==0.18.*"
    return words
