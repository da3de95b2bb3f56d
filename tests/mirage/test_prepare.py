"""Settings, machines, interpreters and environments: what can be asked without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memfit.errors import MemfitError, MissingError
from memfit.hardware import gpus
from memfit.mirage import environments, machine
from memfit.mirage.build import NATIVE, Libraries
from memfit.mirage.environments import EnvironmentPlan, find_environment, make_environment, plan_environment
from memfit.mirage.machine import check_machine, default_cache
from memfit.mirage.prepare import prepare
from memfit.mirage.settings import PREFIX, VARIABLES, Imaginary, memory_interface
from memfit.mirage.torchbuild import inspect_python

CARDS = [gpu for gpu in gpus() if gpu.compute_capability is not None]
H100 = next(gpu for gpu in CARDS if gpu.name == "h100-sxm-80gb")


# ---- settings ----


@pytest.mark.parametrize("gpu", CARDS, ids=lambda gpu: gpu.name)
def test_every_nvidia_card_of_the_catalog_can_be_imagined(gpu):
    found = Imaginary.of(gpu, cuda=(13, 0)).environment()
    assert found[PREFIX + "TOTAL"] == str(gpu.total_bytes)
    assert found[PREFIX + "SMS"] == str(gpu.sm_count)
    assert int(found[PREFIX + "SHARED_PER_BLOCK"]) <= int(found[PREFIX + "SHARED_PER_SM"])


def test_every_variable_is_documented_and_read_by_the_libraries():
    written = {key.removeprefix(PREFIX) for key in Imaginary.of(H100, cuda=(13, 0)).environment()}
    source = (NATIVE / "core.c").read_text()
    read = set(re.findall(r'(?:text_)?setting\("(\w+)"', source))
    assert written == read == set(VARIABLES) - {"LIBRARY"}


def test_other_cards_and_bad_arguments_are_refused():
    amd = next(gpu for gpu in gpus() if gpu.vendor == "amd")
    with pytest.raises(MemfitError, match="no CUDA device"):
        Imaginary.of(amd, cuda=(13, 0))
    for bad in (
        {"count": 0}, {"count": 17}, {"context_bytes": -1}, {"context_bytes": 1 << 40}, {"lag": -1},
        {"values": "twos"}, {"order": "random"}, {"order": 0},
    ):  # fmt: skip
        with pytest.raises(MemfitError, match=next(iter(bad))):
            Imaginary.of(H100, cuda=(13, 0), **bad)


@pytest.mark.parametrize("rate", [1_790_000_000_000, 300_000_000_000, 8_000_000_000_000])
def test_bus_and_clock_give_the_bandwidth(rate):
    bits, khz = memory_interface(rate)
    assert 2 * khz * 1000 * bits / 8 == pytest.approx(rate, rel=1e-5)


# ---- machine ----


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("MEMFIT_CACHE", "/a")
    assert default_cache() == Path("/a")
    monkeypatch.delenv("MEMFIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache() == Path("/b/memfit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "memfit"


def test_a_real_driver_is_refused_unless_ignored(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "REAL_DRIVER", (str(tmp_path),))
    with pytest.raises(MissingError, match="real GPU driver") as caught:
        check_machine()
    assert "--ignore-gpu" in caught.value.hint
    check_machine(ignore_gpu=True)
    monkeypatch.setattr(machine, "REAL_DRIVER", (str(tmp_path / "none"),))
    check_machine()


@pytest.mark.parametrize(("system", "processor"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_other_machines_are_told_what_is_needed(monkeypatch, system, processor):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(machine.platform, "machine", lambda: processor)
    with pytest.raises(MissingError, match="the imaginary GPU needs"):
        check_machine()


# ---- interpreters ----


def fake_python(folder, **answer):
    """An interpreter that answers the probe with fixed findings."""
    full = {"torch": None, "version": None, "cuda": None, "hip": None, "triton": None,
            "bitsandbytes": None, "requires": [], **answer}  # fmt: skip
    path = folder / "python"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(full)}\nEND\n")
    path.chmod(0o755)
    return path


def test_a_cuda_build_is_described(tmp_path):
    (tmp_path / "bnb").mkdir()
    for name in ("cuda128", "cuda130", "cpu"):
        (tmp_path / "bnb" / f"libbitsandbytes_{name}.so").touch()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch.so").touch()
    python = fake_python(
        tmp_path,
        torch=str(tmp_path / "torch"),
        version="2.13.0+cu130",
        cuda="13.0",
        bitsandbytes=str(tmp_path / "bnb"),
        requires=["nvidia-cudnn-cu13==9.20.0.48; platform_system == 'Linux'", "nvidia-nccl-cu13 (==2.29.7)", "jinja2"],
    )
    found = inspect_python(python)
    assert (found.version, found.cuda, found.cudnn, found.nccl) == ("2.13.0+cu130", (13, 0), 92000, 22907)
    assert [path.name for path in found.libraries] == ["libtorch.so", "libbitsandbytes_cuda130.so"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, "has no torch"),
        ({"torch": "/t", "version": "2.13.0+cpu"}, "no CUDA build"),
        ({"torch": "/t", "version": "2.13.0", "hip": "7.0"}, "ROCm"),
    ],
)
def test_other_environments_are_missing_errors(tmp_path, answer, why):
    with pytest.raises(MissingError, match=why):
        inspect_python(fake_python(tmp_path, **answer))


def test_interpreters_that_do_not_answer(tmp_path):
    with pytest.raises(MissingError, match="no Python interpreter"):
        inspect_python(tmp_path / "absent")
    (tmp_path / "python").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(MemfitError, match="cannot ask"):
        inspect_python(tmp_path / "python")


def test_prepare_says_what_is_missing_before_it_builds(tmp_path):
    if sys.platform != "linux":
        pytest.skip("Linux is needed")
    with pytest.raises(MissingError, match="has no torch"):
        prepare(fake_python(tmp_path), H100, cache=tmp_path, ignore_gpu=True)
    assert not (tmp_path / "mirage").exists()


def test_the_variables_of_a_child(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/own")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    folder, sonames = tmp_path / "made", ("libcudart.so.13",)
    found = Libraries(folder=folder, sonames=sonames).environment(tmp_path)
    assert found["LD_LIBRARY_PATH"] == f"{tmp_path}/made:/own"
    assert found["TRITON_LIBCUDA_PATH"] == f"{tmp_path}/made"
    assert "LD_PRELOAD" not in found
    # beside the vendor's own libraries, which PyTorch's search path would find first, ours are loaded before
    preloaded = Libraries(folder=folder, sonames=sonames, preload=True).environment(tmp_path)["LD_PRELOAD"]
    assert preloaded == f"{tmp_path}/made/libmemfit_mirage.so:{tmp_path}/made/libcudart.so.13"


# ---- environments ----


REQUIRES = ("filelock", "nvidia-nccl-cu13==2.29.7; x", "triton==3.7.1; x", 'pyyaml; extra == "y"')


def report(version="2.13.0", requires=REQUIRES):
    item = {
        "metadata": {"version": version, "requires_dist": list(requires)},
        "download_info": {"url": "file:///nowhere/torch-2.13.0-cp311.whl"},
    }
    return json.dumps({"install": [item]})


def test_a_plan_names_wheel_and_packages(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(environments, "_pip", lambda _python, arguments, **_: asked.append(arguments) or report())
    plan = plan_environment("2.13", cache=tmp_path)
    assert "torch==2.13.*" in asked[0]
    assert "--no-deps" in asked[0]
    assert plan.requirements == ("filelock", "numpy")
    assert plan.triton is None
    assert plan_environment("2.13.0", triton=True, cache=tmp_path).triton == "triton==3.7.1"
    assert "none of NVIDIA's libraries" in plan.describe()
    assert not plan.exists
    assert plan.python.is_relative_to(tmp_path)


def test_plans_that_cannot_be(monkeypatch, tmp_path):
    with pytest.raises(MemfitError, match="not a torch release"):
        plan_environment("2.13; rm", cache=tmp_path)
    monkeypatch.setattr(environments, "_pip", lambda *_, **__: report(version="2.13.0+cpu", requires=["filelock"]))
    with pytest.raises(MemfitError, match="not built for CUDA"):
        plan_environment("2.13", cache=tmp_path)
    monkeypatch.setattr(environments, "_pip", lambda *_, **__: "no json")
    with pytest.raises(MemfitError, match="report"):
        plan_environment("2.13", cache=tmp_path)


def test_an_environment_is_made_once_and_found(monkeypatch, tmp_path):
    plan = EnvironmentPlan(
        version="2.13.0", folder=tmp_path / "mirage" / "environments" / "torch-2.13.0-py3.11", wheel="torch.whl",
        download_bytes=5, requirements=("filelock",), triton=None, exists=False,
    )  # fmt: skip
    steps = []

    def run(command, *_):
        steps.append(command)
        plan.python.parent.mkdir(parents=True, exist_ok=True)
        plan.python.touch()
        return ""

    monkeypatch.setattr(environments, "_run", run)
    assert find_environment(cache=tmp_path) is None
    said = []
    assert make_environment(plan, echo=said.append) == plan.python
    assert len(said) == 3
    installs = [step for step in steps if "torch==2.13.0" in step]
    assert len(installs) == 1
    assert "--no-deps" in installs[0]
    count = len(steps)
    assert make_environment(plan) == plan.python
    assert len(steps) == count
    assert find_environment(cache=tmp_path) == find_environment("2.13", cache=tmp_path) == plan.python
    assert find_environment("2.1", cache=tmp_path) is None


def test_an_attempt_that_failed_is_made_anew(monkeypatch, tmp_path):
    plan = EnvironmentPlan(
        version="2.13.0", folder=tmp_path / "torch-2.13.0", wheel="torch.whl", download_bytes=None,
        requirements=(), triton="triton==3.7.1", exists=False,
    )  # fmt: skip

    def fail(command, *_):
        plan.folder.mkdir()
        msg = "no space"
        raise MemfitError(msg)

    monkeypatch.setattr(environments, "_run", fail)
    for _ in range(2):
        with pytest.raises(MemfitError, match="no space"):
            make_environment(plan)


def test_a_command_that_fails_says_why():
    with pytest.raises(MemfitError, match="boom"):
        environments._run([sys.executable, "-c", "import sys; sys.exit('ERROR: boom')"], 60)
    with pytest.raises(MissingError, match="pip"):
        environments._run([sys.executable, "-c", "import sys; sys.exit('No module named pip')"], 60)
    with pytest.raises(MemfitError, match="did not end"):
        environments._run([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)


def test_importing_the_imaginary_gpu_loads_neither_torch_nor_numpy():
    code = "import sys, memfit.mirage; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
