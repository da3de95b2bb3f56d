"""Pipeline stages: who holds which layers, and how many micro-batches are in flight."""

from __future__ import annotations

import pytest
from formula_jobs import models_of, stage_peaks
from hypothesis import given
from hypothesis import strategies as st

from memfit import estimate
from memfit.errors import JobError
from memfit.formula import profile as profiles
from memfit.formula.arrays import evaluate
from memfit.formula.resolve import resolve
from memfit.formula.schedule import distinct, in_flight, split_by_cost, split_layers, split_ranks, stages
from memfit.formula.sharding import embedding_hole
from memfit.formula.training import rank_layers
from memfit.job import from_kwargs
from memfit.models import catalog
from memfit.speed import step_time

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble", "dualpipe")
degrees = st.integers(1, 12)


def ranges_cover(ranges, layers):
    assert [i for start, stop in ranges for i in range(start, stop)] == list(range(layers))


@given(st.integers(0, 200), degrees)
def test_even_ranges_cover_all_layers(layers, parts):
    found = split_layers(layers, parts)
    ranges_cover(found, layers)
    sizes = [stop - start for start, stop in found]
    assert len(found) == parts
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=80), st.integers(0, 1000), degrees)
def test_ranges_by_cost_cover_all_layers(costs, head, parts):
    found = split_by_cost(costs, head, parts)
    assert len(found) == parts
    ranges_cover(found, len(costs))


def test_the_head_takes_layers_from_the_last_stage():
    found = split_by_cost([10] * 12, 40, 4)
    assert [stop - start for start, stop in found] == [4, 4, 4, 0]


@given(st.integers(1, 120), st.integers(2, 12), st.sampled_from(SCHEDULES), st.integers(1, 4), st.integers(1, 64))
def test_stages_hold_every_layer_once(layers, pp, schedule, virtual, micro_batches):
    found = stages(layers, pp=pp, schedule=schedule, virtual=virtual, micro_batches=micro_batches)
    assert [s.index for s in found] == list(range(pp))
    held = sorted(i for s in found for i in s.indices())
    copies = 2 if schedule == "dualpipe" else 1  # each rank runs a stage of either direction
    assert held == sorted(list(range(layers)) * copies)
    assert found[0].first
    assert found[-1].last
    if copies == 1:
        assert [s.first for s in found].count(True) == [s.last for s in found].count(True) == 1


@given(st.integers(2, 16), st.integers(1, 64))
def test_micro_batches_in_flight(pp, micro_batches):
    for stage in range(pp):
        assert in_flight("gpipe", stage, pp, 1, micro_batches) == (micro_batches, 1)
        assert in_flight("1f1b", stage, pp, 1, micro_batches) == (min(micro_batches, pp - stage), 1)
        assert in_flight("zero-bubble", stage, pp, 1, micro_batches) == (min(micro_batches, pp), 1)
    assert in_flight("gpipe", 0, 1, 1, micro_batches) == (1, 1)


@given(st.integers(2, 16), st.integers(2, 8), st.integers(1, 64))
def test_interleaved_chunks_in_flight(pp, virtual, micro_batches):
    # Megatron-Core: warm-up of (pp - stage - 1) * 2 + (virtual - 1) * pp chunks, plus the one that runs
    for stage in range(pp):
        flights, per = in_flight("interleaved", stage, pp, virtual, micro_batches)
        assert per == virtual
        assert flights == min(micro_batches * virtual, (pp - stage - 1) * 2 + (virtual - 1) * pp + 1)


@given(st.integers(1, 60), st.integers(1, 8), st.sampled_from(SCHEDULES), st.integers(1, 3))
def test_the_stages_left_out_are_equal_to_one_that_stays(layers, pp, schedule, virtual):
    layout = [i % 3 == 0 for i in range(layers)]
    found = stages(layers, pp=pp, schedule=schedule, virtual=virtual, micro_batches=8)
    kept = distinct(found, layout)
    for stage in found:
        twins = [
            k
            for k in kept
            if [layout[i] for i in k.indices()] == [layout[i] for i in stage.indices()]
            and (k.first, k.last) == (stage.first, stage.last)
        ]
        assert any(twin.in_flight >= stage.in_flight for twin in twins)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_stage_weights_make_up_the_model(schedule, pp):
    job = {"model": "qwen2.5-7b", "framework": "torch", "precision": "bf16", "pp": pp, "pp_schedule": schedule}
    found = models_of(**job, grad_accum=8)
    copies = 2 if schedule == "dualpipe" else 1
    assert sum(m.weights_bytes()[0] for m in found) == 2 * catalog.lookup("qwen2.5-7b").params * copies


def test_a_tied_head_stands_on_the_last_stage_too():
    found = models_of(model="llama-3.2-1b", framework="torch", precision="bf16", pp=4)
    assert sum(m.weights_bytes()[0] for m in found) == 2 * (catalog.lookup("llama-3.2-1b").params + 128256 * 2048)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble"])
def test_only_the_last_stage_makes_logits(schedule):
    found = stage_peaks(
        model="llama-3.1-8b", framework="megatron", pp=4, pp_schedule=schedule, grad_accum=8, precision="bf16"
    )
    logits = [max(m.parts.get("logits", 0) for m in p.moments) for p in found]
    assert logits[:-1] == [0, 0, 0]
    assert logits[-1] > 0


def test_earlier_stages_hold_more_micro_batches_under_1f1b():
    job = {"model": "llama-3.1-8b", "framework": "megatron", "pp": 4, "grad_accum": 16}
    kept = [max(m.parts.get("kept", 0) for m in p.moments) for p in stage_peaks(**job)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 3.5 * kept[-1]


def test_gpipe_holds_what_1f1b_holds_when_there_is_one_micro_batch():
    job = {"model": "llama-3.1-8b", "framework": "megatron", "pp": 4}
    one = [estimate(**job, pp_schedule=s, grad_accum=1).reserved_bytes for s in ("gpipe", "1f1b")]
    many = [estimate(**job, pp_schedule=s, grad_accum=16).reserved_bytes for s in ("gpipe", "1f1b")]
    assert one[0] == one[1]
    assert many[0] > many[1]


@pytest.mark.parametrize("pp", [16, 24])
def test_stages_without_layers_are_no_fault(pp):
    found = estimate(model="gpt2", framework="torch", pp=pp, optimizer_in_backward=True)
    assert len(found.stages) == pp
    assert all(ledger.allocated_bytes > 0 for ledger in found.stages)
    sharded = estimate(model="gpt2", framework="torch", pp=pp, zero=3, dp=2, gpu="a100")
    assert all(ledger.allocated_bytes > 0 for ledger in sharded.stages)
    assert step_time(sharded.resolved).step_s > 0


def test_a_stage_that_trains_nothing_still_has_a_peak():
    found = estimate(
        model="llama-3.2-1b", framework="torch", method="freeze", trainable=2, pp=4, optimizer_in_backward=True
    )
    assert all(reading.parts["weights"] > 0 for reading in found.readings)


@pytest.mark.parametrize("every", [3, 5, 11])
def test_arrays_know_the_fullest_stage_when_every_nth_layer_is_recomputed(every):
    """Stages of equal layers differ in how many of them are recomputed."""
    fields = {"pp": 8, "virtual_pp": 2, "grad_accum": 16, "dp": 2, "tp": 2, "checkpointing": every, "zero": 1}
    job = from_kwargs(model="llama-3.1-70b", gpu="32xh100", framework="megatron", **fields)
    one = estimate(job)
    assert int(evaluate(job, micro_batch=[1]).reserved[0]) == one.reserved_bytes


# ---- layers that are stated for each rank, and what frameworks make of them ------------------------------------------

SPLITS = [(16, 0), (7, 9), (3, 5, 5, 3), (0, 8, 8, 0), (5, 4, 3, 4)]
ranks_of = st.lists(st.integers(0, 40), min_size=2, max_size=12).filter(any)


@given(ranks_of, st.integers(1, 4))
def test_chunks_of_the_ranks_cover_all_layers(layers, chunks):
    found = split_ranks(layers, chunks)
    ranges_cover(found, sum(layers))
    for rank, total in enumerate(layers):
        sizes = [stop - start for start, stop in found[rank :: len(layers)]]
        assert sum(sizes) == total
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=rank > 0 or len(layers) == 1)


@given(ranks_of, st.sampled_from(SCHEDULES), st.integers(1, 3))
def test_stages_hold_the_layers_that_are_stated(layers, schedule, virtual):
    found = stages(sum(layers), pp=len(layers), schedule=schedule, virtual=virtual, micro_batches=8, layers=layers)
    counts = [len(stage.indices()) for stage in found]
    assert counts == ([a + b for a, b in zip(layers, layers[::-1], strict=True)] if schedule == "dualpipe" else layers)


@given(st.integers(1, 200), st.integers(2, 16), st.integers(0, 3), st.integers(0, 3))
def test_ends_that_count_as_layers(layers, parts, first, last):
    found = split_layers(layers, parts, (first, last))
    ranges_cover(found, layers)
    sizes = [stop - start for start, stop in found]
    if (layers + first + last) // parts >= max(first, last):
        whole = [sizes[0] + first, *sizes[1:-1], sizes[-1] + last]
        assert max(whole) - min(whole) <= 1
        assert whole == sorted(whole, reverse=True)
    else:
        assert found == split_layers(layers, parts)


def split_of(**fields):
    return rank_layers(resolve(from_kwargs(**{"grad_accum": 16, **fields})))


def test_the_frameworks_own_splits():
    deep = {"model": "llama-3.1-405b", "pp": 16}
    assert split_of(**deep, framework="torchtitan") == (7, *[8] * 14, 7)
    assert split_of(**deep, framework="torchtitan", framework_version="0.2.1") == (7, *[8] * 14, 7)
    assert split_of(**deep, framework="megatron") == (*[8] * 14, 7, 7)
    # torchtitan 0.3.0: _generate_llm_fqn_per_model_part(16, 80) and (8, 80), the chunks of a rank added
    assert split_of(model="llama-3.1-70b", pp=16, framework="torchtitan") == (5, 6, *[5] * 13, 4)
    looped = {"pp": 4, "virtual_pp": 2, "framework": "torchtitan"}
    assert split_of(model="llama-3.1-70b", **looped) == (20, 21, 20, 19)
    assert profiles.profile("megatron").pipeline_ends == (0, 0)


@pytest.mark.parametrize("layers", SPLITS)
@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved", "zero-bubble"])
def test_a_split_never_changes_the_weights_of_the_model(layers, schedule):
    job = {"model": "llama-3.2-1b", "framework": "megatron", "precision": "bf16", "pp_schedule": schedule}
    even, stated = (models_of(**job, **more, grad_accum=8) for more in ({"pp": len(layers)}, {"pp_layers": layers}))
    assert [len(m.indices) for m in stated] == list(layers)
    for position in range(3):  # weights, trained dense elements, trained expert elements
        one, other = (sum(m.weights_bytes()[position] for m in models) for models in (even, stated))
        assert one == other


def test_fewer_layers_on_the_first_rank_lower_its_peak():
    job = {"model": "llama-3.1-8b", "framework": "megatron", "seq_len": 8192, "grad_accum": 16}
    peaks = [stage_peaks(**job, pp_layers=(first, 16 - first, 8, 8))[0].reserved for first in range(1, 16)]
    assert peaks == sorted(peaks)
    assert len(set(peaks)) == len(peaks)


@given(st.sampled_from(SPLITS), st.sampled_from(["1f1b", "interleaved"]), st.sampled_from(["none", "full", 2]))
def test_arrays_equal_single_answers_with_stated_layers(layers, schedule, checkpointing):
    job = {"model": "llama-3.2-1b", "framework": "torchtitan", "pp_layers": layers, "pp_schedule": schedule}
    rows = {"micro_batch": [1, 2, 4], "grad_accum": [8, 1, 16], "dp": [1, 4, 2]}
    found = evaluate(from_kwargs(**job, checkpointing=checkpointing), **rows)
    for index in range(3):
        one = estimate(**job, checkpointing=checkpointing, **{name: column[index] for name, column in rows.items()})
        assert (found.allocated[index], found.reserved[index]) == (one.allocated_bytes, one.reserved_bytes)


def test_layers_that_are_not_the_models_are_an_error():
    with pytest.raises(JobError, match="the ranks have 31 layers together, the model has 32"):
        estimate(model="llama-3.1-8b", framework="megatron", pp_layers=(7, 8, 8, 8))
    with pytest.raises(JobError, match="32 layers on 4 ranks do not split 32 over pp 8"):
        evaluate(from_kwargs(model="llama-3.1-8b", framework="megatron", pp_layers=(7, 9, 9, 7)), pp=[8])


def test_a_first_stage_without_logits_has_no_room_for_the_embeddings_reduction():
    fields = {"model": "llama-3.1-8b", "framework": "torch", "precision": "bf16-mixed", "zero": 3, "dp": 4, "pp": 2}
    first, last = models_of(**fields)
    embedding = 128256 * 4096
    assert embedding_hole(first) == embedding * 4
    assert embedding_hole(last) == 0
    assert embedding_hole(models_of(**{**fields, "pp": 1})[0]) == 0
