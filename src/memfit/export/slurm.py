"""Slurm: a batch script that starts another target's program on every node."""

from __future__ import annotations

from memfit.export.launch import SCRIPT
from memfit.export.launchers import LEVERS, host_gib, program_of
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import commented, header


def write(plan: Plan) -> list[File]:
    """The batch script, and what each node runs."""
    program = program_of(plan)
    memory = host_gib(plan)
    directives = [
        ("job-name", f"memfit-{program.target.name}", ""),
        ("nodes", plan.nodes, ""),
        ("ntasks-per-node", 1, "the program starts one process a GPU itself"),
        ("gpus-per-node", plan.gpus_each, f"{plan.gpus} x {plan.job.hardware.gpu or 'GPU'} in all"),
        ("cpus-per-task", 8 * plan.gpus_each, ""),
        ("mem", f"{memory}G", "host memory: pinned buffers of offloading, loading and data"),
        ("time", "24:00:00", "yours to choose"),
        ("output", "slurm-%j.out", ""),
    ]
    # sbatch reads no comment behind a directive: reasons stand above.
    lines = []
    for key, value, why in directives:
        lines += [f"# {why}"] if why else []
        lines.append(f"#SBATCH --{key}={value}")
    head = commented(
        header(plan, f"batch script that starts {program.target.title}", ["sbatch job.sbatch"], reasons=False)
    )
    body = """
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?}"
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500
srun --kill-on-bad-exit=1 bash ./node.sh
"""
    node = f"""{SCRIPT}# What every node runs; job.sbatch starts it.
set -euo pipefail
export NODE_RANK=$SLURM_NODEID
{program.command}
"""
    text = SCRIPT + "\n".join(lines) + "\n#\n" + head + body.lstrip("\n")
    return [File(name="job.sbatch", text=text), File(name="node.sh", text=node, executable=True)]


TARGET = Target(
    name="slurm",
    title="Slurm",
    version="22.05",
    about="batch script that starts another target's program (`--program`) on every node",
    checked="shellcheck, and the directives by name",
    framework=("transformers", None),
    levers=LEVERS,
    write=write,
    launcher=True,
)
