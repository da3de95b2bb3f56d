"""Arrays of jobs equal the single answers exactly, for every structure of a step; parts sum to the step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import MemfitError
from memfit.job import from_kwargs
from memfit.speed import PARTS, evaluate, step_time
from strategies import FRAMEWORKS, jobs

ROWS = {
    "micro_batch": [1, 2, 3, 8, 1],
    "seq_len": [256, 1024, 4096, 2048, 32768],
    "grad_accum": [1, 4, 1, 2, 16],
    "dp": [1, 2, 8, 4, 8],
    "dp_shard": [1, 2, 4, 4, 8],
    "tp": [1, 2, 1, 4, 2],
    "cp": [1, 1, 2, 1, 4],
}


def same(base, rows):
    found = evaluate(from_kwargs(**base), parts=True, **rows)
    for index in range(len(next(iter(rows.values())))):
        one = step_time(from_kwargs(**base, **{n: np.asarray(v)[index].item() for n, v in rows.items()}))
        assert one.step_s == found.step_s[index], (base, index)
        assert one.tokens_per_s_per_gpu == found.tokens_per_s_per_gpu[index]
        assert dict(one.parts) == {name: column[index] for name, column in found.parts.items()}


@settings(max_examples=30)
@given(jobs(micro_batch=1, grad_accum=1, seq_len=4096, dp=1, tp=1, cp=1), st.sampled_from(("h100", "rtx-4090")))
def test_arrays_equal_single_answers(job, gpu):
    base = {k: v for k, v in job.items() if k not in ROWS}
    same({**base, "gpu": gpu}, ROWS)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_and_stage(framework):
    for zero in (0, 1, 2, 3):
        same({"model": "llama-3.2-1b", "framework": framework, "zero": zero, "gpu": "a100-80gb"}, ROWS)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble", "dualpipe"])
@pytest.mark.parametrize("offload", [(), ("optimizer",), ("parameters", "gradients"), ("activations",)])
def test_every_schedule_and_offload(schedule, offload):
    base = {"model": "gemma-3-1b", "framework": "megatron", "pp": 4, "pp_schedule": schedule, "gpu": "h100"}
    same({**base, "offload": offload, "zero": 3}, ROWS)


@pytest.mark.parametrize("layers", [(5, 8, 8, 5), (0, 13, 13, 0), (10, 6, 6, 4)])
def test_stated_layers_of_the_ranks(layers):
    base = {"model": "gemma-3-1b", "framework": "megatron", "pp_layers": layers, "gpu": "h100", "zero": 1}
    same(base, ROWS)
    same({**base, "pp_schedule": "interleaved", "virtual_pp": 2}, ROWS)


def test_expert_parallel_degrees_vary_too():
    rows = {"dp": [8, 8, 8, 16], "ep": [1, 2, 8, 4], "micro_batch": [1, 2, 1, 1]}
    same({"model": "olmoe-1b-7b", "framework": "megatron", "gpu": "h100", "extra": {"moe_imbalance": 1.7}}, rows)


def test_structural_fields_split_the_rows_into_groups():
    rows = {
        "micro_batch": [1, 2, 1, 4, 2, 1],
        "checkpointing": ["none", "full", "none", "selective", "full", "full"],
        "zero": [0, 3, 3, 1, 0, 3],
        "dp": [4] * 6,
    }
    same({"model": "llama-3.2-1b", "framework": "torch", "gpu": "l40s"}, rows)


def test_rows_keep_their_order_over_slices(monkeypatch):
    from memfit.speed import arrays

    job = from_kwargs(model="gpt2", framework="torch", zero=1, gpu="a10g")
    lengths = np.arange(1, 200) * 8
    whole = evaluate(job, seq_len=lengths)
    monkeypatch.setattr(arrays, "SLICE", 7)
    assert (whole.step_s == evaluate(job, seq_len=lengths).step_s).all()


@settings(max_examples=40)
@given(jobs(gpu=st.sampled_from(("h100", "b200", "v100", "rtx-3090", "mi300x", "t4"))))
def test_parts_sum_to_the_step_and_none_is_negative(job):
    found = step_time(from_kwargs(**job))
    assert tuple(found.parts) == tuple(PARTS)
    total = 0.0
    for value in found.parts.values():
        assert value >= 0
        total += value
    assert total == found.step_s
    assert 0 < found.step_s < float("inf")


def test_a_job_without_a_card_or_of_another_kind_is_refused():
    with pytest.raises(MemfitError, match="needs a GPU"):
        step_time(from_kwargs(model="gpt2"))
    with pytest.raises(MemfitError, match="serving"):
        step_time(from_kwargs(model="gpt2", kind="serve", gpu="h100"))
    with pytest.raises(MemfitError, match="training"):
        evaluate(from_kwargs(model="gpt2", kind="serve", gpu="h100"), micro_batch=[1])
