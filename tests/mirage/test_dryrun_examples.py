"""The examples on an imaginary GPU, as their documentation says: the simulation must agree with PyTorch to the byte."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from record_torch import name_of, record

from memfit.errors import MemfitError, MissingError
from memfit.hardware import lookup_gpu
from memfit.mirage import check_machine, prepare
from memfit.mirage.environments import find_environment
from memfit.mirage.run import RunOptions, dryrun, dryrun_stages

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
NEEDS = {
    "plain": ("transformers",),
    "hf_trainer": ("transformers", "accelerate"),
    "sft_lora": ("transformers", "peft", "trl", "datasets"),
    "qlora": ("transformers", "peft", "bitsandbytes"),
    "float8": ("transformers", "torchao"),
    "int8": ("transformers", "torchao"),
    "compiled": ("transformers", "triton"),
    "ddp": ("transformers",),
    "accelerate_fsdp": ("transformers", "accelerate"),
    "fsdp2": ("transformers",),
    "deepspeed_zero": ("transformers", "deepspeed"),
}
pytestmark = [pytest.mark.mirage, pytest.mark.timeout(1200)]


@pytest.fixture(scope="session")
def python():
    """MEMFIT_CUDA_PYTHON, or the environment that ``memfit dryrun setup`` made."""
    stated = os.environ.get("MEMFIT_CUDA_PYTHON")
    found = Path(stated) if stated else find_environment()
    if found is None:
        pytest.skip("no environment with PyTorch's CUDA build: memfit dryrun setup, or MEMFIT_CUDA_PYTHON=...")
    try:
        check_machine()
    except MissingError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture(scope="session")
def benchmark():
    path = ROOT / "benchmarks" / "dryrun.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location("memfit_benchmark_dryrun", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def need(python, *packages):
    code = f"import importlib.util as u; print(*[p for p in {packages!r} if u.find_spec(p) is None])"
    missing = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if missing:
        pytest.skip(f"the environment has no {', '.join(missing)}")


APART = {"deepspeed_zero": 4 * MIB}
"""How far reserved may be apart: 4 MiB of 8.2 GiB with DeepSpeed, of a cause not known; nothing elsewhere."""


@pytest.mark.parametrize("name", sorted(NEEDS))
def test_an_example_runs_and_is_simulated_to_the_byte(name, python, benchmark, monkeypatch):
    need(python, *NEEDS[name])
    monkeypatch.chdir(ROOT)
    done = benchmark.run(name, python)
    assert done.failure is None
    assert done.facts.steps == (0 if name == "int8" else 3)
    if done.fits:
        assert done.answer.on_card is not None
        assert done.answer.on_card.allocated_peak == done.facts.allocated_peak
        assert abs(done.answer.on_card.reserved_peak - done.facts.reserved_peak) <= APART.get(name, 0)
        assert done.answer.on_card.num_alloc_retries == done.facts.num_alloc_retries


def test_the_card_that_is_predicted_is_enough_and_a_smaller_one_is_not(python, benchmark, monkeypatch):
    need(python, *NEEDS["plain"])
    monkeypatch.chdir(ROOT)
    needed = benchmark.run("plain", python).answer.needed[1]
    assert benchmark.fits("plain", python, needed + 16 * MIB)
    assert not benchmark.fits("plain", python, needed - 16 * MIB)


def test_every_stage_of_a_pipeline_runs(python, monkeypatch):
    monkeypatch.chdir(ROOT)
    gpu = lookup_gpu("rtx-4090")[0]
    words = ("torchrun", "--nproc-per-node", "4", "examples/dryrun/pipeline.py")
    options = RunOptions(command=words, python=python, ranks=4)
    runs = dryrun_stages(options, 4, gpu, lambda total: prepare(python, gpu, count=4, total_bytes=total),
                         base=dict(os.environ))  # fmt: skip
    peaks = [run.facts.allocated_peak for run in runs]
    assert all(run.facts.steps == 3 for run in runs)
    assert peaks[1] > peaks[2] > 0  # an earlier stage has more micro-batches in flight


SCRIPT = """
import torch
model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(8)]).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    out = model(torch.randn(512, 1024, device="cuda"))
    (out.float() ** 2).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
stats = torch.cuda.memory_stats()
print(stats["allocated_bytes.all.peak"], stats["reserved_bytes.all.peak"], stats["allocation.all.allocated"])
"""


def test_the_hooks_change_nothing(python, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    gpu = lookup_gpu("h100-sxm-80gb")[0]
    card = prepare(python, gpu)
    plain = subprocess.run([str(python), str(script)], env={**os.environ, **card}, capture_output=True, text=True,
                           check=True)  # fmt: skip
    parts = []
    options = RunOptions(command=("python", str(script)), python=python, steps=0)
    done = dryrun(options, gpu, lambda _total: card, base=dict(os.environ), echo=parts.append)
    watched = b"".join(parts).decode().split("\n")
    assert plain.stdout.strip() in watched
    assert done.facts.allocated_peak == int(plain.stdout.split()[0])


def test_a_torch_without_cuda_is_missing():
    spec = importlib.util.find_spec("torch")
    if spec is None:
        pytest.skip("memfit's own environment has no torch")
    with pytest.raises(MemfitError, match="no CUDA build"):
        prepare(Path(sys.executable), lookup_gpu("h100-sxm-80gb")[0], ignore_gpu=True)


def test_torch_says_what_was_recorded(python):
    said = record(python)
    path = Path(__file__).parent / "recorded" / name_of(said["torch"])
    if not path.is_file():
        pytest.skip(f"nothing is recorded of torch {said['torch']}")
    assert said == json.loads(path.read_text(encoding="utf-8"))
