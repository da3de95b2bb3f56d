"""What is planned can be written, and what is written is what was planned: for every framework and method."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memfit.errors import JobError, JobErrors
from memfit.export import export, target, targets
from memfit.export.importing import READABLE, import_files
from memfit.formula.able import variant
from memfit.formula.estimate import estimate
from memfit.job import from_kwargs
from memfit.planner import Request
from memfit.planner.capabilities import methods_of, names
from memfit.planner.planning import find

LARGE = {"model": "llama-3.1-8b", "gpu": "8xh100"}
LORA = {"model": "llama-3.1-8b", "gpu": "4xa10g", "method": "lora"}
QLORA = {"model": "llama-3.1-8b", "gpu": "2xrtx-4090", "method": "qlora"}
PEFT = ("transformers", "trl", "deepspeed", "torch", "axolotl")
OWN = sorted({t.framework[0] for t in targets() if t.framework[0] in names()})
"""Frameworks that an export is of."""

ROLLOUTS = "grpo"
"""The method that no export writes: its rollouts need settings that a job does not have."""

NAMED = {"axolotl": ("lm_head", "*layers.15.*")}
"""What is trained beside frozen layers, where a tool takes names alone."""

CASES = [
    *((framework, LARGE) for framework in OWN),
    *((framework, LORA) for framework in (*PEFT, "torchtune")),
    *((framework, QLORA) for framework in ("trl", "deepspeed", "axolotl", "torchtune")),
    ("deepspeed", {"model": "qwen2.5-7b", "gpu": "8xa10g"}),
    ("deepspeed", {"model": "qwen3-30b-a3b", "gpu": "16xh100"}),
    ("megatron", {"model": "qwen2.5-7b", "gpu": "8xa10g"}),
]
MATRIX = [
    (framework, None, method, gpus)
    for framework in OWN
    for method in methods_of(framework)
    for gpus in (1, 8)
    if method != ROLLOUTS
]
MATRIX += [("transformers", "llama-factory", method, gpus) for method in methods_of("transformers") for gpus in (1, 8)]
WHOLE = frozenset(READABLE) - {"deepspeed", "accelerate"}
"""Tools whose files hold all that a job says, and are read."""


def target_of(framework, method="full"):
    """The export of a framework's jobs."""
    if framework == "megatron" and method != "full":
        return "megatron-bridge"
    return {"torch": "fsdp2"}.get(framework, framework)


def planned(**fields):
    found = find(Request(job=from_kwargs(seq_len=2048, global_batch=32, **fields), top=3))
    assert found is not None
    return found.plans


def read_back(files, name, folder):
    """The job of the files of an export."""
    for file in files:
        (folder / file.name).write_text(file.text)
    first = next(f.name for f in files if f.name.endswith((".yaml", ".py")) and f.name != "train.py")
    return import_files(folder / first, of=name)


def test_all_frameworks_with_an_export_are_tried():
    assert {*PEFT, "torchtitan", "megatron", "torchtune"} <= set(OWN)
    assert {m for f in OWN for m in methods_of(f)} >= {"full", "lora", "qlora", "dora", "freeze", "dpo"}


@pytest.mark.parametrize(("framework", "job"), CASES, ids=[f"{f}-{'-'.join(j.values())}" for f, j in CASES])
def test_the_best_plans_are_written(framework, job):
    for plan in planned(**job, framework=framework):
        assert export(plan.job, target_of(framework)).files


@pytest.mark.parametrize(("framework", "version", "method", "gpus"), MATRIX)
def test_a_plan_its_export_and_what_is_read_back_need_the_same_bytes(framework, version, method, gpus, tmp_path):
    fields = {"framework": framework, "framework_version": version, "method": method}
    if method == "freeze" and framework in NAMED:
        fields["trainable"] = NAMED[framework]
    name = version or target_of(framework, method)
    for at, plan in enumerate(planned(model="llama-3.2-1b", gpu=f"{gpus}xh100", **fields)):
        written = export(plan.job, name)
        assert written.plan.estimate.reserved_bytes == plan.estimate.reserved_bytes
        if name not in WHOLE:
            continue
        folder = tmp_path / str(at)
        folder.mkdir()
        found = read_back(written.files, name, folder)
        assert not found.warnings
        job = replace(found.job, model=plan.job.model, hardware=plan.job.hardware)
        assert estimate(job).reserved_bytes == plan.estimate.reserved_bytes


@pytest.mark.parametrize("framework", OWN)
def test_a_method_that_a_framework_lacks_is_refused_and_has_no_export(framework):
    for method in ("lora", "qlora", "dora", "freeze", "dpo"):
        job = from_kwargs(model="llama-3.2-1b", gpu="h100", framework=framework, method=method)
        if method in methods_of(framework):
            continue
        with pytest.raises(JobError, match=f"does not train with {method}") as caught:
            find(Request(job=job))
        assert str(caught.value.hint).startswith("it has full")
        with pytest.raises(JobErrors, match="cannot express method"):
            export(job, target_of(framework, method))


@pytest.mark.parametrize(
    ("framework", "method", "weights"),
    [("torchtitan", "lora", "fp32"), ("torchtune", "qlora", "nf4-dq"), ("torchtune", "lora", "bf16"),
     ("trl", "qlora", "nf4"), ("axolotl", "lora", "bf16")],
)  # fmt: skip
def test_a_plan_states_the_frozen_weights_as_the_tool_loads_them(framework, method, weights):
    plan = planned(model="llama-3.2-1b", gpu="h100", framework=framework, method=method)[0]
    assert plan.job.strategy.weights == weights


def test_a_plan_has_the_losses_of_the_version_that_is_asked_for():
    asked = {"model": "llama-3.2-1b", "gpu": "h100", "framework": "trl"}
    for version in ("1.3", "1.6", "1.14", "1.16", None):
        for plan in planned(**asked, framework_version=version):
            assert plan.job.strategy.loss in variant("trl", version).loss
            written = export(plan.job, "trl")
            assert written.plan.estimate.reserved_bytes == plan.estimate.reserved_bytes
            assert ("use_liger_kernel: true" in written.files[0].text) == (plan.job.strategy.loss == "fused")
    assert "chunked" not in variant("trl", "1.3").loss


def test_torchtune_shards_on_several_gpus_alone():
    asked = {"model": "llama-3.2-1b", "framework": "torchtune", "method": "lora"}
    assert {p.job.strategy.zero for p in planned(**asked, gpu="4xh100")} == {3}
    assert target("torchtune").levers["strategy.zero"].takes(0)
