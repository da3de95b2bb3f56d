"""What is planned can be written: the best plans of every framework go through its own export."""

from __future__ import annotations

import pytest

from memfit.export import export, targets
from memfit.job import from_kwargs
from memfit.planner import Request
from memfit.planner.capabilities import names
from memfit.planner.planning import find

FULL = [
    {"model": "llama-3.2-1b", "gpu": "rtx-4090"},
    {"model": "llama-3.1-8b", "gpu": "8xh100"},
]
LORA = {"model": "llama-3.1-8b", "gpu": "4xa10g", "method": "lora"}
QLORA = {"model": "llama-3.1-8b", "gpu": "2xrtx-4090", "method": "qlora"}
PEFT = ("transformers", "trl", "deepspeed", "torch", "axolotl")
OWN = sorted({t.framework[0] for t in targets() if t.framework[0] in names()})
"""Frameworks that an export is of."""

TARGET = {"torch": "fsdp2"}
"""Frameworks whose export is called otherwise."""

CASES = [
    *((framework, job) for framework in OWN for job in FULL),
    *((framework, LORA) for framework in (*PEFT, "torchtune")),
    *((framework, QLORA) for framework in ("trl", "deepspeed", "axolotl")),
    ("deepspeed", {"model": "qwen2.5-7b", "gpu": "8xa10g"}),
    ("deepspeed", {"model": "qwen3-30b-a3b", "gpu": "16xh100"}),
    ("megatron", {"model": "qwen2.5-7b", "gpu": "8xa10g"}),
]


def test_all_frameworks_with_an_export_are_tried():
    assert {*PEFT, "torchtitan", "megatron", "torchtune"} <= set(OWN)


@pytest.mark.parametrize(("framework", "job"), CASES, ids=[f"{f}-{'-'.join(j.values())}" for f, j in CASES])
def test_the_best_plans_are_written(framework, job):
    found = find(Request(job=from_kwargs(**job, framework=framework, seq_len=2048, global_batch=32), top=3))
    assert found is not None
    for plan in found.plans:
        assert export(plan.job, TARGET.get(framework, framework)).files
