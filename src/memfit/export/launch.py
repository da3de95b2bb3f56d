"""How a program is started on one machine or on several: torchrun and accelerate, and the header of shell scripts."""

from __future__ import annotations

from memfit.export.plan import Plan
from memfit.export.text import commented, header

SCRIPT = "#!/usr/bin/env bash\n"
STRICT = 'set -euo pipefail\ncd "$(dirname "$0")"\n'
MASTER = (
    "# On each machine: NODE_RANK is its number from 0, MASTER_ADDR the address of number 0.\n"
    ': "${NODE_RANK:?}" "${MASTER_ADDR:?}"\n'
    "MASTER_PORT=${MASTER_PORT:-29500}\n"
)


def torchrun(plan: Plan, program: str) -> str:
    """The torchrun command of one machine."""
    if plan.nodes == 1:
        return f"torchrun --standalone --nproc-per-node {plan.gpus_each} {program}"
    where = '--node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT"'
    return f"torchrun --nnodes {plan.nodes} --nproc-per-node {plan.gpus_each} {where} {program}"


def training_script(plan: Plan) -> str:
    """What one machine starts where the target writes its own ``train.py``."""
    return torchrun(plan, "train.py")


def accelerate(plan: Plan, program: str, config: str = "") -> str:
    """The accelerate command of one machine; without a configuration file the flags say how many processes."""
    words = f"--config_file {config} " if config else f"--num_processes {plan.gpus} "
    if not config and plan.gpus > 1:
        words += "--multi_gpu "
    if plan.nodes > 1:
        words += f"--num_machines {plan.nodes} " if not config else ""
        words += '--machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT" '
    return f"accelerate launch {words}{program}"


def run_script(plan: Plan, what: str, command: str, before: str = "") -> str:
    """A shell script that starts the command on one machine."""
    master = MASTER if plan.nodes > 1 else ""
    run = ["./run.sh on each machine" if plan.nodes > 1 else "./run.sh"]
    return f"{SCRIPT}{commented(header(plan, what, run, reasons=False))}{STRICT}{master}{before}{command}\n"
