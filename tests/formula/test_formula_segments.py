"""What segments of the caching allocator leave empty, and what cannot be reused."""

from __future__ import annotations

import pytest
from formula_jobs import models_of, stage_peaks

from memfit.allocator import ALLOC, replay
from memfit.formula.segments import SEGMENT, empty, first_pass, uneven, unfilled
from memfit.units import MIB

CORE = {"model": "qwen3-30b-a3b", "framework": "megatron", "seq_len": 1024, "attention": "flash"}
LAYERS, EXPERTS = 48, 128


@pytest.mark.parametrize("size", [MIB // 2, 3 * MIB, 4 * MIB, 6 * MIB, 11 * MIB, 12 * MIB, 33 * MIB + 512])
def test_empty_is_what_the_allocator_leaves_beside_many_alike(size):
    count = 120
    reserved = replay([(ALLOC, i, size, 0) for i in range(count)]).reserved_peak
    assert reserved == pytest.approx(count * (size + empty(size)), abs=SEGMENT)


def test_states_of_expert_matrices_leave_segments_unfilled():
    # gate and up are one tensor of 12 MiB in fp32, down one of 6: three of these in a segment of 20 MiB
    m = models_of(**CORE)[0]
    down = LAYERS * EXPERTS * 3 * (SEGMENT / 3 - 6 * MIB)
    assert down < unfilled(m) < down * 1.05


def test_nothing_of_states_is_unfilled_on_the_host():
    assert unfilled(models_of(**CORE, offload=["optimizer"])[0]) == 0


def test_rows_are_uneven_only_where_they_are_handed_out():
    assert uneven(models_of(**CORE, dp=4)[0]) == 0
    assert uneven(models_of(**CORE, dp=4, ep=4)[0]) > 0
    assert uneven(models_of(model="llama-3.1-8b", framework="megatron", dp=4)[0]) == 0


def test_what_layers_keep_is_no_part_of_their_work():
    kept, again = (first_pass(models_of(**CORE, checkpointing=mode)[0]) for mode in ("none", "full"))
    assert 0 < kept <= again


def test_more_is_held_at_the_logits_than_elsewhere():
    wide = stage_peaks(**CORE, loss="compiled", micro_batch=8)[0]
    assert wide.peak.what == "gradient of the logits"
    assert wide.slack > unfilled(models_of(**CORE, micro_batch=8)[0]) * 0.88
