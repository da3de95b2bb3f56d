"""SkyPilot: a task that starts another target's program on rented machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memfit.errors import JobError
from memfit.export.launchers import LEVERS, host_gib, packages, program_of
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import commented, header

ACCELERATORS: Mapping[str, str] = {
    "a10": "A10",
    "a10g": "A10G",
    "a100-sxm-40gb": "A100",
    "a100-pcie-40gb": "A100",
    "a100-sxm-80gb": "A100-80GB",
    "a100-pcie-80gb": "A100-80GB",
    "a40": "A40",
    "b200-sxm": "B200",
    "b300-sxm": "B300",
    "gh200-96gb": "GH200",
    "h100-sxm-80gb": "H100",
    "h100-pcie-80gb": "H100",
    "h200-sxm": "H200",
    "l4": "L4",
    "l40": "L40",
    "l40s": "L40S",
    "mi300x": "MI300X",
    "rtx-3090": "RTX3090",
    "rtx-4090": "RTX4090",
    "rtx-5090": "RTX5090",
    "rtx-6000-ada": "RTX6000-Ada",
    "rtx-a5000": "RTXA5000",
    "rtx-a6000": "RTXA6000",
    "t4": "T4",
    "v100-sxm-16gb": "V100",
    "v100-sxm-32gb": "V100-32GB",
}
"""memfit's name of a card -> SkyPilot's."""


def _check(plan: Plan) -> Iterator[JobError]:
    card = plan.estimate.resolved.gpu
    if card is None or card.name not in ACCELERATORS:
        shown = card.name if card else plan.job.hardware.gpu
        message = "SkyPilot rents by the card, and none is named" if shown is None else f"SkyPilot has no {shown} here"
        hint = f"state gpu: {', '.join(ACCELERATORS)}"
        yield JobError("hardware.gpu", message, value=shown, hint=hint)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" if line else "\n" for line in text.strip("\n").split("\n"))


def write(plan: Plan) -> list[File]:
    """The task."""
    program = program_of(plan)
    card = plan.estimate.resolved.gpu
    assert card is not None
    run = "cd ~/sky_workdir\n"
    if plan.nodes > 1:
        run += (
            "export NODE_RANK=$SKYPILOT_NODE_RANK MASTER_PORT=29500\n"
            'MASTER_ADDR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\nexport MASTER_ADDR\n'
        )
    run += program.command
    where = ["sky launch -c memfit sky.yaml"]
    text = commented(header(plan, f"SkyPilot task that starts {program.target.title}", where, reasons=False))
    text += f"""name: memfit-{program.target.name}

resources:
  accelerators: {ACCELERATORS[card.name]}:{plan.gpus_each}  # on each of {plan.nodes} machines
  memory: {host_gib(plan)}+  # GiB on the host: pinned buffers of offloading, loading and data
  disk_size: 512

num_nodes: {plan.nodes}

workdir: .

setup: |
{_indented(f"pip install {packages(plan)}")}
run: |
{_indented(run)}"""
    return [File(name="sky.yaml", text=text)]


TARGET = Target(
    name="skypilot",
    title="SkyPilot",
    version="0.14",
    about="task that starts another target's program (`--program`) on rented machines",
    checked="`sky.Task.from_yaml`",
    framework=("transformers", None),
    levers=LEVERS,
    check=_check,
    write=write,
    launcher=True,
)
