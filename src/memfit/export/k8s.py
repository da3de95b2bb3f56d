"""Kubernetes: an indexed Job that starts another target's program in one pod a machine."""

from __future__ import annotations

from collections.abc import Iterator

from memfit.errors import JobError
from memfit.export import files_of
from memfit.export.launchers import LEVERS, host_gib, packages, program_of
from memfit.export.plan import Plan
from memfit.export.target import File, Target
from memfit.export.text import commented, header

IMAGE = "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-devel"
_RESOURCES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "gpu.intel.com/i915"}
_LIMIT = 900_000  # bytes that a ConfigMap takes, less room for its own fields


def _check(plan: Plan) -> Iterator[JobError]:
    card = plan.estimate.resolved.gpu
    if card is not None and card.vendor not in _RESOURCES:
        yield JobError("hardware.gpu", f"Kubernetes schedules no {card.title}", value=card.name)


def _block(text: str, indent: int) -> str:
    pad = " " * indent
    return "".join(f"{pad}{line}\n" if line else "\n" for line in text.rstrip("\n").split("\n"))


def write(plan: Plan) -> list[File]:
    """The files of the program as a ConfigMap, a headless service where there are several pods, and the Job."""
    program = program_of(plan)
    card = plan.estimate.resolved.gpu
    name = f"memfit-{program.target.name}"
    files = files_of(program.plan)
    assert sum(len(file.text.encode()) for file in files) < _LIMIT, "a ConfigMap holds one MiB"
    data = "".join(f"  {file.name.replace('/', '__')}: |\n{_block(file.text, 4)}" for file in files)
    folder = [f"mkdir -p {file.name.rpartition('/')[0]}" for file in files if "/" in file.name]
    copies = [f"cp /files/{file.name.replace('/', '__')} {file.name}" for file in files]
    executable = [f"chmod +x {file.name}" for file in files if file.executable]
    master = []
    if plan.nodes > 1:
        master = ["export NODE_RANK=$JOB_COMPLETION_INDEX MASTER_PORT=29500", f"export MASTER_ADDR={name}-0.{name}"]
    lines = [
        "set -euo pipefail",
        *dict.fromkeys(folder),
        *copies,
        *executable,
        f"pip install {packages(plan)}",
        *master,
    ]
    script = _block("\n".join([*lines, program.command]), 14)
    resource = _RESOURCES[card.vendor if card else "nvidia"]
    service = ""
    if plan.nodes > 1:
        service = f"""---
# Gives every pod a name, so that they find the first.
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  selector:
    job-name: {name}
"""
    head = commented(
        header(plan, f"Kubernetes Job that starts {program.target.title}", ["kubectl apply -f job.yaml"], reasons=False)
    )
    text = f"""{head}apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
data:
{data}{service}---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {plan.nodes}  # machines
  parallelism: {plan.nodes}
  backoffLimit: 0
  template:
    spec:
      {f"subdomain: {name}" if plan.nodes > 1 else "# one pod needs no name"}
      restartPolicy: Never
      containers:
        - name: train
          image: {IMAGE}  # yours to choose
          workingDir: /work
          command:
            - bash
            - -c
            - |
{script}          resources:
            limits:
              {resource}: {plan.gpus_each}
              memory: {host_gib(plan)}Gi  # host memory: pinned buffers of offloading, loading and data
          volumeMounts:
            - name: files
              mountPath: /files
            - name: work
              mountPath: /work
            - name: shm
              mountPath: /dev/shm  # what NCCL and data loaders share
      volumes:
        - name: files
          configMap:
            name: {name}
        - name: work
          emptyDir: {{}}
        - name: shm
          emptyDir:
            medium: Memory
"""
    return [File(name="job.yaml", text=text)]


TARGET = Target(
    name="k8s",
    title="Kubernetes",
    version="1.31",
    about="ConfigMap and indexed Job that start another target's program (`--program`)",
    checked="`kubernetes-validate --strict`",
    framework=("transformers", None),
    levers=LEVERS,
    check=_check,
    write=write,
    launcher=True,
)
