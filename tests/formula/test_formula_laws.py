"""Laws of the training memory model: more work never needs less, more sharing never needs more."""

from __future__ import annotations

import numpy as np
import pytest
from formula_jobs import at_step, config_of, kept_of_layers, models_of, stage_peaks
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import estimate
from memfit.formula.arrays import evaluate
from memfit.job import from_kwargs
from strategies import MODELS, jobs

few = settings(max_examples=25)


def needs(job, **changes):
    return estimate(**{**job, **changes}).allocated_bytes


def no_less(more, less):
    # allocated bytes: slack belongs to the moment of the peak, so reserved may dip where the peak moves to another one
    assert more >= less


@few
@given(jobs())
def test_a_larger_micro_batch_never_needs_less(job):
    no_less(needs(job, micro_batch=job["micro_batch"] + 1), needs(job))


@few
@given(jobs())
def test_a_longer_sequence_never_needs_less(job):
    no_less(needs(job, seq_len=job["seq_len"] + job["cp"] * job["tp"]), needs(job))


@pytest.mark.parametrize("framework", ["torch", "transformers", "deepspeed", "litgpt", "torchtitan"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt2"])
def test_reserved_memory_grows_with_the_tokens(model, framework, checkpointing):
    job = from_kwargs(model=model, framework=framework, checkpointing=checkpointing, precision="bf16")
    lengths = evaluate(job, seq_len=np.arange(64, 8192, 32)).reserved
    batches = evaluate(job, micro_batch=np.arange(1, 40)).reserved
    assert (np.diff(lengths) >= 0).all()
    assert (np.diff(batches) >= 0).all()


@few
@given(jobs(method=st.sampled_from(("lora", "qlora", "dora"))), st.integers(1, 64))
def test_a_larger_rank_never_needs_less(job, more):
    bigger = {**job["lora"], "rank": job["lora"]["rank"] + more}
    no_less(needs(job, lora=bigger), needs(job))


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full", 2])
@pytest.mark.parametrize(("model", "key"), [("llama-3.2-1b", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_more_layers_need_more(model, key, checkpointing):
    found = [
        needs({"model": config_of(model, **{key: n}), "checkpointing": checkpointing, "precision": "bf16"})
        for n in (2, 3, 4, 8, 9)
    ]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


@few
@given(jobs())
def test_more_tensor_parallel_ranks_never_need_more(job):
    no_less(needs(job), needs(job, tp=job["tp"] * 2))


@few
@given(jobs(dp=st.sampled_from((2, 4)), ep=1))
def test_more_data_parallel_ranks_never_need_more(job):
    no_less(needs(job), needs(job, dp=job["dp"] * 2))


@few
@given(jobs())
def test_more_context_parallel_ranks_hold_no_more_activations(job):
    more = stage_peaks(**{**job, "cp": job["cp"] * 2})
    for few_ranks, many in zip(stage_peaks(**job), more, strict=True):
        kept = [max(m.parts.get("kept", 0) for m in p.moments) for p in (few_ranks, many)]
        assert kept[1] <= kept[0]


@few
@given(jobs(), st.sampled_from(("optimizer", "parameters", "gradients", "activations")))
def test_offloading_never_needs_more_of_the_card(job, what):
    no_less(needs(job), needs(job, offload=(what,)))


@few
@given(jobs(grad_accum=1, pp=1))
def test_a_step_inside_the_backward_never_needs_more(job):
    no_less(needs(job, optimizer_in_backward=False), needs(job, optimizer_in_backward=True))


@few
@given(jobs())
def test_no_entry_is_negative_and_all_are_whole_numbers(job):
    found = estimate(**job)
    for reading in found.readings:
        assert all(type(value) is int and value >= 0 for value in reading.parts.values()), reading.parts
        assert type(reading.slack) is int
        assert reading.slack >= 0
        assert reading.host >= 0


@few
@given(jobs(gpu="h100", others_gib=st.sampled_from((0, 3))))
def test_the_ledger_closes(job):
    found = estimate(**job)
    for ledger, reading in zip(found.stages, found.readings, strict=True):
        assert ledger.allocated_bytes == reading.allocated == sum(reading.parts.values())
        assert ledger.reserved_bytes == reading.reserved
        assert ledger.device_bytes == reading.device
        assert ledger.device_bytes + ledger.free_bytes == found.capacity_bytes
    assert found.reserved_bytes == max(reading.reserved for reading in found.readings)


@few
@given(jobs())
def test_the_peak_is_the_largest_moment(job):
    found = stage_peaks(**job)
    for stage in found:
        assert stage.allocated == max(m.total for m in stage.moments)
        assert stage.allocated == stage.peak.total


# -- sharding ---------------------------------------------------------------------------------------------------------


@few
@given(jobs(dp=8, pp=1, grad_accum=1, method="full", optimizer=st.sampled_from(("adamw", "lion", "sgd"))))
def test_each_zero_stage_keeps_no_more_than_the_one_before(job):
    # one micro-batch: frameworks that reduce only at the last one accumulate whole gradients
    # one precision scheme: frameworks that switch schemes with the stage (an engine with master weights) are told apart
    schemes = [models_of(**{**job, "zero": zero})[0].s.scheme for zero in (0, 1, 2, 3)]
    resident = []
    for zero in (0, 1, 2, 3):
        found = at_step(**{**job, "zero": zero})
        resident.append([found[name] for name in ("weights", "master", "states", "grads")])
    for zero in (1, 2, 3):
        if schemes[zero] == schemes[zero - 1]:
            assert all(a <= b for a, b in zip(resident[zero], resident[zero - 1], strict=True))


@pytest.mark.parametrize("framework", ["torch", "torchtitan", "litgpt", "axolotl", "internevo"])
@pytest.mark.parametrize("precision", ["bf16", "bf16-mixed"])
def test_the_peak_falls_with_each_zero_stage(framework, precision):
    job = {"model": "llama-3.1-8b", "framework": framework, "precision": precision, "dp": 8, "checkpointing": "full"}
    found = [needs({**job, "loss": "fused"}, zero=zero) for zero in (0, 1, 2, 3)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("model", ["llama-3.2-1b", "olmoe-1b-7b", "gpt2"])
@pytest.mark.parametrize("shard", [2, 4, 8])
def test_shards_make_up_the_whole(model, shard):
    job = {"model": model, "framework": "torch", "precision": "bf16", "dp": 8}
    whole, part = at_step(**job), at_step(**job, zero=3, dp_shard=shard)
    for name in ("weights", "states", "grads"):
        assert whole[name] <= part[name] * shard < whole[name] + shard * 64


def test_a_rank_that_owns_whole_tensors_has_at_least_the_largest():
    job = {"model": "llama-3.2-1b", "framework": "torch", "precision": "bf16", "zero": 1}
    embedding = 128256 * 2048
    assert at_step(**job, dp=64)["states"] == 2 * 2 * embedding
    assert at_step(**job, dp=2)["states"] > 2 * 2 * embedding


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_what_a_stage_does_not_shard_stays_whole(zero):
    job = {"model": "llama-3.2-1b", "framework": "torchtune", "precision": "bf16", "dp": 8}
    whole, part = at_step(**job), at_step(**job, zero=zero)
    shares = [round(whole[name] / part[name]) for name in ("states", "grads", "weights")]
    assert shares == [8 if zero >= stage else 1 for stage in (1, 2, 3)]


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_tensor_parallel_ranks_split_the_blocks_and_share_the_norms(ways):
    alone, split = (models_of(model="llama-3.2-1b", framework="torch", precision="bf16", tp=tp)[0] for tp in (1, ways))
    norms = (2 * 16 + 1) * 2048
    whole, part = alone.weights_bytes()[0] // 2, split.weights_bytes()[0] // 2
    assert (part - norms) * ways == whole - norms


def test_key_and_value_projections_are_not_split_below_a_head():
    # 8 key/value heads: 16 ranks hold one whole head each
    eight, sixteen = (
        models_of(model="llama-3.2-1b", framework="torch", precision="bf16", tp=tp)[0].weights_bytes()[0] // 2
        for tp in (8, 16)
    )
    hidden, head, layers = 2048, 64, 16
    kv = 2 * hidden * head * layers
    norms = (2 * layers + 1) * hidden
    assert (sixteen - norms - kv) * 2 == eight - norms - kv


def test_expert_parallel_ranks_split_the_experts_alone():
    job = {"model": "olmoe-1b-7b", "framework": "megatron", "dp": 8, "zero": 0, "precision": "bf16"}
    alone, split = (models_of(**job, ep=ep)[0].weights_bytes() for ep in (1, 8))
    assert alone[1] == split[1]
    assert alone[2] == split[2] * 8
    assert split[2] > 0


def test_a_fuller_expert_rank_holds_more():
    job = {"model": "olmoe-1b-7b", "framework": "megatron", "dp": 8, "ep": 8}
    even, uneven = (needs(job, extra={"moe_imbalance": x}) for x in (1.0, 2.0))
    assert uneven > even


# -- checkpointing ----------------------------------------------------------------------------------------------------


@few
@given(st.sampled_from(MODELS), st.booleans(), st.sampled_from(("torch", "megatron", "torchtune")))
def test_checkpointed_layers_keep_less(model, compiled, framework):
    job = {"model": model, "framework": framework, "precision": "bf16", "compile": compiled, "method": "full"}
    full, some, none = (kept_of_layers(**job, checkpointing=c) for c in ("full", "selective", "none"))
    for a, b in zip(full, some, strict=True):
        assert a <= b
    for a, b in zip(full, none, strict=True):
        assert a <= b


@pytest.mark.parametrize("model", ["llama-3.2-1b", "qwen2.5-7b", "mixtral-8x7b", "gemma-2b"])
def test_selective_checkpointing_lies_between(model):
    job = {"model": model, "framework": "torchtitan", "precision": "bf16", "compile": False, "attention": "flash"}
    full, some, none = (kept_of_layers(**job, checkpointing=c)[0] for c in ("full", "selective", "none"))
    assert full < some < none


def test_every_second_layer_keeps_half():
    job = {"model": "llama-3.2-1b", "framework": "torch", "precision": "bf16"}
    none, two, full = (at_loss(**job, checkpointing=c) for c in ("none", 2, "full"))
    assert none + full == 2 * two


def at_loss(**job):
    return next(m.parts["kept"] for m in stage_peaks(**job)[0].moments if m.phase == "loss")
