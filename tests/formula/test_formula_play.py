"""The played step: every block is freed once, and its peak is that of the closed form."""

from __future__ import annotations

import pytest
from formula_jobs import parts_of
from hypothesis import given, settings

from memfit.formula.stage import StageModel
from memfit.formula.timeline import play
from memfit.formula.training import stage_peak, stages_of
from strategies import jobs

SMALL = {"model": "llama-3.2-1b", "framework": "torch", "precision": "bf16", "seq_len": 2048}
JOBS = [
    SMALL,
    {**SMALL, "checkpointing": "full"},
    {**SMALL, "checkpointing": "selective"},
    {**SMALL, "checkpointing": 2},
    {**SMALL, "loss": "fused"},
    {**SMALL, "loss": "chunked", "checkpointing": "full"},
    {**SMALL, "precision": "fp32", "micro_batch": 2},
    {**SMALL, "optimizer": "sgd"},
    {**SMALL, "optimizer": "adamw-8bit", "checkpointing": "full"},
    {**SMALL, "grad_accum": 4},
    {**SMALL, "framework": "megatron", "dp": 2},
    {**SMALL, "framework": "torchtune"},
    {**SMALL, "framework": "litgpt", "micro_batch": 2},
    {**SMALL, "model": "gpt2", "micro_batch": 8, "seq_len": 1024},
    {**SMALL, "model": "olmoe-1b-7b"},
    {**SMALL, "model": "gemma-3-1b", "checkpointing": "full"},
    {**SMALL, "model": "qwen2.5-7b", "tp": 2, "framework": "megatron"},
    {**SMALL, "method": "freeze", "trainable": 2},
    {**SMALL, "method": "lora", "framework": "transformers", "lora": {"rank": 16}},
    {**SMALL, "method": "qlora", "framework": "transformers", "lora": {"rank": 16}, "checkpointing": "full"},
    {**SMALL, "pp": 2, "grad_accum": 4, "framework": "megatron"},
]
SHARDED = [
    {**SMALL, "dp": 8, "zero": 3, "checkpointing": "full"},
    {**SMALL, "dp": 8, "zero": 3, "framework": "torchtitan"},
]


def played(job):
    s, d = parts_of(**job)
    for stage in stages_of(s, d):
        yield s, d, stage, play(s, d, stage)


def check_balance(events):
    live = {}
    for event in events:
        if event.bytes > 0:
            assert event.id not in live, "a block is allocated twice"
            live[event.id] = event
        else:
            assert live.pop(event.id).bytes == -event.bytes, "a free gives back another size"
    return live


@pytest.mark.parametrize("job", JOBS, ids=lambda job: "-".join(str(v) for v in job.values()))
def test_the_played_peak_is_that_of_the_closed_form(job):
    for s, d, stage, steps in played(job):
        closed = stage_peak(s, d, stage)
        # buffers of cuBLAS are not played
        assert steps.peak[1] == pytest.approx(closed.allocated - closed.peak.parts["cublas"], rel=0.02)


@pytest.mark.parametrize("job", SHARDED, ids=lambda job: "-".join(str(v) for v in job.values()))
def test_a_sharded_step_plays_within_the_blocks_that_are_gathered_ahead(job):
    # the closed form counts the blocks that prefetching may have gathered at once, the player one at a time
    for s, d, stage, steps in played(job):
        closed = stage_peak(s, d, stage)
        peak = closed.allocated - closed.peak.parts["cublas"]
        ahead = (s.sharding.live_units + s.sharding.copy_in) * StageModel(s, d, stage).largest_block() * s.width
        assert steps.peak[1] <= peak * 1.02
        assert peak <= steps.peak[1] * 1.02 + ahead


@pytest.mark.parametrize("job", JOBS + SHARDED, ids=lambda job: "-".join(str(v) for v in job.values()))
def test_blocks_are_freed_once_and_only_residents_stay(job):
    for s, _, _, steps in played(job):
        live = check_balance(steps)
        assert min(steps.totals()) >= 0
        left = {e.component for e in live.values()}
        allowed = {"parameters", "optimizer"}
        if s.scheme.always:
            allowed.add("gradients")
        if s.profile.bucket:
            allowed.add("communication")
        if s.profile.hold_logits:
            allowed.add("logits")  # the caller's logits of the last micro-batch
        assert left <= allowed


@settings(max_examples=20)
@given(jobs(model="llama-3.2-1b"))
def test_any_job_plays_in_balance(job):
    for _, _, _, steps in played(job):
        check_balance(steps)
        assert min(steps.totals(), default=0) >= 0


def test_phases_come_in_the_order_of_a_step():
    ((_, _, _, steps),) = played(SMALL)
    order = list(dict.fromkeys(e.phase for e in steps))
    assert order == ["load", "forward", "loss", "backward", "optimizer"]
    assert steps.origin == "formula"


def test_a_second_step_repeats_the_first_but_for_the_states():
    s, d = parts_of(**SMALL)
    (stage,) = stages_of(s, d)
    one, two = (play(s, d, stage, steps=n) for n in (1, 2))
    again = two.events[len(one) :]
    assert not [e for e in again if e.component in ("parameters", "optimizer")]
    assert two.peak[1] >= one.peak[1]
