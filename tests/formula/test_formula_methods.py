"""What a method of training, an offload or a setting does to single entries."""

from __future__ import annotations

import pytest
from formula_jobs import at_step, models_of, stage_peaks, trained_elements
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import estimate
from strategies import DENSE, MOE

BASE = {"model": DENSE, "framework": "torch", "precision": "bf16"}


def entry(name, **fields):
    return max(m.parts.get(name, 0) for p in stage_peaks(**fields) for m in p.moments)


@settings(max_examples=20)
@given(
    st.sampled_from((DENSE, MOE, "gpt2")), st.sampled_from((1, 2, 5)), st.sampled_from(("none", "full", "selective"))
)
def test_preference_pairs_double_the_batch_and_add_a_frozen_model(model, micro_batch, checkpointing):
    job = {"model": model, "framework": "torch", "precision": "bf16", "checkpointing": checkpointing}
    pair = stage_peaks(**job, method="dpo", micro_batch=micro_batch)[0]
    double = stage_peaks(**job, method="full", micro_batch=2 * micro_batch)[0]
    weights = models_of(**job)[0].weights_bytes()[0]
    for a, b in zip(pair.moments, double.moments, strict=True):
        assert a.parts["reference"] == weights
        assert {**a.parts, "reference": 0} == {**b.parts, "reference": 0}


def test_adapters_need_no_reference_model():
    assert entry("reference", **BASE, method="dpo", lora={"rank": 8}) == 0


@pytest.mark.parametrize("framework", ["torch", "deepspeed", "megatron", "transformers"])
def test_offloaded_optimizers_move_to_the_host(framework):
    job = {"model": DENSE, "framework": framework, "dp": 2, "zero": 1}
    here, there = at_step(**job), at_step(**job, offload=("optimizer",))
    assert there["master"] == there["states"] == 0
    host = stage_peaks(**job, offload=("optimizer",))[0].host
    assert host >= here["master"] + here["states"] > 0
    assert stage_peaks(**job)[0].host == 0


def test_offloaded_gradients_leave_the_card():
    job = {**BASE, "offload": ("gradients",)}
    assert entry("grads", **job) == 0
    assert stage_peaks(**job)[0].host == at_step(**BASE)["grads"]


def test_offloaded_parameters_leave_the_card_when_they_are_sharded():
    job = {**BASE, "dp": 4, "zero": 3}
    assert at_step(**job, offload=("parameters",))["weights"] == 0
    assert stage_peaks(**job, offload=("parameters",))[0].host == at_step(**job)["weights"]


def test_offloaded_checkpoints_leave_the_card():
    job = {**BASE, "checkpointing": "full", "loss": "fused", "seq_len": 8192}
    away = {**job, "offload": ("activations",)}
    stream = 8192 * 2048 * 2
    assert entry("kept", **job) - entry("kept", **away) == 16 * stream
    assert stage_peaks(**away)[0].host == 16 * stream


def test_paged_states_live_outside_the_card():
    paged = {**BASE, "optimizer": "paged-adamw-8bit"}
    assert entry("states", **paged) == 0
    assert stage_peaks(**paged)[0].host == at_step(**BASE, optimizer="adamw-8bit")["states"]


@pytest.mark.parametrize("framework", ["torch", "torchtune", "litgpt"])
def test_a_step_inside_the_backward_keeps_no_gradients(framework):
    job = {"model": DENSE, "framework": framework, "precision": "bf16"}
    assert entry("grads", **job, optimizer_in_backward=True) == 0
    assert entry("grads", **job) > 0
    assert entry("fresh", **job, optimizer_in_backward=True) > 0


def test_gradients_that_are_kept_stand_in_the_forward_pass():
    def loss(**fields):
        return next(m.parts["grads"] for m in stage_peaks(**BASE, **fields)[0].moments if m.phase == "loss")

    assert loss() == 0
    assert loss(set_to_none=False) == loss(grad_accum=4) == at_step(**BASE)["grads"]


@pytest.mark.parametrize("layers", [1, 2, 4, 16])
def test_freezing_trains_the_last_layers(layers):
    block = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048
    assert trained_elements(**BASE, method="freeze", trainable=layers) == layers * block


def test_a_fraction_is_that_share_of_the_layers():
    assert trained_elements(**BASE, method="freeze", trainable=0.25) == trained_elements(
        **BASE, method="freeze", trainable=4
    )


def test_named_modules_are_trained_everywhere():
    found = trained_elements(**BASE, method="freeze", trainable=("*down_proj*",))
    assert found == 16 * 2048 * 8192


def test_freezing_less_needs_more():
    found = [estimate(**BASE, method="freeze", trainable=n).allocated_bytes for n in (1, 2, 8, 16)]
    assert found == sorted(found)
    assert estimate(**BASE).allocated_bytes > found[-1]


def test_adapters_train_a_fraction_of_full():
    full, lora = (estimate(**BASE, method=m) for m in ("full", "lora"))
    assert lora.reading.parts["states"] < full.reading.parts["states"] / 50
    assert lora.allocated_bytes < full.allocated_bytes


def test_fused_losses_hold_no_logits():
    full = entry("logits", **BASE, loss="eager")
    assert full > 4096 * 128256 * 4
    fused = entry("logits", **{**BASE, "framework": "torchtune"}, loss="fused")
    assert fused < full / 4


def test_eager_attention_keeps_scores():
    scores = 32 * 4096 * 4096 * 2
    flash, eager = (entry("kept", **BASE, attention=a) for a in ("flash", "eager"))
    assert eager - flash >= 16 * scores
