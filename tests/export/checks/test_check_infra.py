"""shellcheck, SkyPilot's task reader and Kubernetes' schemas on what launchers write."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.export

from check_support import PROGRAMS, accepted, base, export, job  # noqa: E402

SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
SIZES = ({}, {"gpus": 16}, {"zero": 3, "offload": ("optimizer", "parameters", "gradients")})


def exports(launcher):
    """Every program, on one machine and on two, and one that offloads."""
    from memfit.errors import JobErrors

    for program in PROGRAMS:
        for more in SIZES:
            fields = {**base(program, **more), **({"framework": "torch"} if more.get("offload") else {})}
            try:
                yield f"{program} {more}", export(job(**fields), launcher, program=program)
            except JobErrors:
                continue


def shells(answer):
    return [file for file in answer.files if file.text.startswith("#!/usr/bin/env bash")]


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", [*PROGRAMS, "slurm"])
def test_shell_scripts_are_clean(tmp_path, name):
    seen = set()
    pairs = (
        exports("slurm")
        if name == "slurm"
        else ((str(more), export(job(**base(name, **more)), name)) for more in SIZES[:2])
    )
    for what, answer in pairs:
        for file in shells(answer):
            if file.text in seen:
                continue
            seen.add(file.text)
            path = tmp_path / Path(file.name).name
            path.write_text(file.text)
            done = subprocess.run([SHELLCHECK, "-s", "bash", str(path)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{what}\n{done.stdout}"


def test_slurm_directives_are_known():
    known = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "output"}
    for _, answer in exports("slurm"):
        lines = answer.files[0].text.splitlines()
        directives = [line for line in lines if line.startswith("#SBATCH")]
        assert {line.split("--")[1].split("=")[0] for line in directives} == known
        first = next(at for at, line in enumerate(lines) if line and not line.startswith("#"))
        assert all(lines.index(line) < first for line in directives), "sbatch stops at the first command"


def test_skypilot_reads_every_task(tmp_path):
    sky = pytest.importorskip("sky")
    count = 0
    for what, answer in exports("skypilot"):
        for file in answer.files:
            path = tmp_path / file.name
            path.parent.mkdir(exist_ok=True)
            path.write_text(file.text)
        task = sky.Task.from_yaml(str(tmp_path / "sky.yaml"))
        assert task.num_nodes == answer.plan.nodes, what
        (resources,) = task.resources
        assert resources.accelerators == {"H100": answer.plan.gpus_each}
        assert answer.plan.program.command in task.run
        count += 1
    assert count > 15


def test_kubernetes_schemas_take_every_job():
    validate = pytest.importorskip("kubernetes_validate")
    import yaml

    count = 0
    for what, answer in exports("k8s"):
        documents = list(yaml.safe_load_all(answer.files[0].text))
        assert [d["kind"] for d in documents] == (
            ["ConfigMap", "Service", "Job"] if answer.plan.nodes > 1 else ["ConfigMap", "Job"]
        )
        for document in documents:
            validate.validate(document, "1.31", strict=True)
        program = {file.name.replace("/", "__"): file.text.rstrip("\n") for file in answer.files[1:]}
        assert {key: text.rstrip("\n") for key, text in documents[0]["data"].items()} == program, what
        container = documents[-1]["spec"]["template"]["spec"]["containers"][0]
        done = subprocess.run(
            ["bash", "-n", "-c", container["command"][2]], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        count += 1
    assert count > 15


def test_every_exported_python_file_compiles():
    for name in PROGRAMS:
        for what, answer in accepted(name):
            for file in answer.files:
                if file.name.endswith(".py"):
                    compile(file.text, f"{name} {what}", "exec")
