"""Arrays of jobs equal the single answers to the byte, for every structure of a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import MemfitError, estimate
from memfit.formula.arrays import FEW, NUMERIC, evaluate
from memfit.formula.step import ENTRIES
from memfit.job import from_kwargs
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
COUNT = 5


def same(base, rows, *, order=None):
    found = evaluate(from_kwargs(**base), components=True, **rows)
    count = len(next(iter(rows.values())))
    for index in range(count):
        one = estimate(**base, **{name: np.asarray(values)[index].item() for name, values in rows.items()})
        single = (one.allocated_bytes, one.reserved_bytes, one.device_bytes)
        assert single == (found.allocated[index], found.reserved[index], found.device[index]), (base, index)
        assert {n: one.reading.parts[n] for n in ENTRIES} == {n: int(v[index]) for n, v in found.components.items()}


@settings(max_examples=40)
@given(jobs(micro_batch=1, grad_accum=1, seq_len=4096, dp=1, tp=1, cp=1), st.booleans())
def test_arrays_equal_single_answers(job, in_backward):
    base = {k: v for k, v in job.items() if k not in ROWS}
    rows = dict(ROWS)
    if in_backward:
        base["optimizer_in_backward"] = True
        rows["grad_accum"] = [1] * COUNT
    same(base, rows)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_every_framework_and_stage(framework, zero):
    same({"model": "llama-3.2-1b", "framework": framework, "zero": zero}, ROWS)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble", "dualpipe"])
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full", 3])
def test_every_schedule(schedule, checkpointing):
    base = {"model": "gemma-3-1b", "framework": "megatron", "pp": 4, "pp_schedule": schedule}
    same({**base, "checkpointing": checkpointing}, ROWS)


@pytest.mark.parametrize("method", ["full", "lora", "qlora", "dora", "freeze", "dpo", "grpo"])
@pytest.mark.parametrize("loss", ["eager", "compiled", "chunked", "fused"])
def test_every_method_and_loss(method, loss):
    same({"model": "phi-2", "framework": "trl", "method": method, "loss": loss, "zero": 2}, ROWS)


@pytest.mark.parametrize("offload", [(), ("optimizer",), ("parameters", "gradients"), ("activations",)])
def test_every_offload(offload):
    base = {"model": "llama-3.2-1b", "framework": "transformers", "offload": offload, "checkpointing": "full"}
    for zero in (0, 2, 3):
        same({**base, "zero": zero}, ROWS)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("base", [{}, {"zero": 3, "pp": 4, "pp_schedule": "interleaved"}, {"offload": ("optimizer",)}])
def test_many_jobs_equal_few(framework, base):
    """Few jobs of a structure are worked out one by one, many as arrays."""
    job = from_kwargs(**{"model": "gemma-3-1b", "framework": framework, **base})
    few = evaluate(job, components=True, **ROWS)
    many = evaluate(job, components=True, **{name: values * (FEW + 1) for name, values in ROWS.items()})
    for name in ("allocated", "reserved", "device", "host"):
        assert np.array_equal(np.tile(getattr(few, name), FEW + 1), getattr(many, name))
    for name in ENTRIES:
        assert np.array_equal(np.tile(few.components[name], FEW + 1), many.components[name])


def test_expert_parallel_degrees_vary_too():
    rows = {"dp": [8, 8, 8, 16], "ep": [1, 2, 8, 4], "micro_batch": [1, 2, 1, 1]}
    same({"model": "olmoe-1b-7b", "framework": "megatron", "extra": {"moe_imbalance": 1.7}}, rows)


def test_structural_fields_split_the_rows_into_groups():
    rows = {
        "micro_batch": [1, 2, 1, 4, 2, 1],
        "checkpointing": ["none", "full", "none", "selective", "full", "full"],
        "zero": [0, 3, 3, 1, 0, 3],
        "dp": [4] * 6,
    }
    same({"model": "llama-3.2-1b", "framework": "torch"}, rows)


def test_rows_keep_their_order_over_slices(monkeypatch):
    from memfit.formula import arrays

    job = from_kwargs(model="gpt2", framework="torch", zero=1)
    lengths = np.arange(1, 200) * 8
    whole = evaluate(job, seq_len=lengths)
    monkeypatch.setattr(arrays, "SLICE", 7)
    sliced = evaluate(job, seq_len=lengths)
    assert (whole.reserved == sliced.reserved).all()
    assert (np.diff(whole.allocated) >= 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"micro_batch": [1, 2], "seq_len": [1]}, "equal length"),
        ({"micro_batch": [[1, 2]]}, "one-dimensional"),
        ({}, "equal length"),
    ],
)
def test_arrays_of_other_shapes_are_refused(fields, message):
    with pytest.raises(MemfitError, match=message):
        evaluate(from_kwargs(model="gpt2"), **fields)


def test_serving_jobs_are_refused():
    with pytest.raises(MemfitError, match="training"):
        evaluate(from_kwargs(model="gpt2", kind="serve"), micro_batch=[1])


def test_the_numeric_axes_are_those_of_the_rows():
    assert set(ROWS) | {"ep"} == set(NUMERIC)
