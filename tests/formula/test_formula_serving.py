"""Plain inference: weights, cache and logits by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit import estimate
from memfit.job.fields import BY_NAME
from memfit.models import catalog, resolve
from memfit.models.cache import kv_bytes, kv_bytes_per_token, state_elements
from strategies import MODELS


def serve(**fields):
    return estimate(kind="serve", **fields)


@pytest.mark.parametrize("model", [m for m in MODELS if m != "bert-base-uncased"])
@pytest.mark.parametrize("context", [100, 4096, 40_000])
def test_the_cache_is_that_of_the_model(model, context):
    arch, _ = resolve(model)
    found = serve(model=model, context=context, concurrency=3)
    assert found.serving.kv == 3 * kv_bytes(arch, context)
    assert found.serving.kv_per_token == kv_bytes_per_token(arch)
    recurrent, convolution = state_elements(arch)
    assert found.serving.state == 3 * (4 * recurrent + 2 * convolution)


@pytest.mark.parametrize(
    ("kv", "bits"), [("bf16", 16), ("fp16", 16), ("fp32", 32), ("fp8", 8), ("int8", 8), ("q8_0", 8.5), ("q4_0", 4.5)]
)
def test_cache_dtypes(kv, bits):
    # Llama-3.1-8B: 32 layers of 8 heads of 128, keys and values
    assert serve(model="llama-3.1-8b", context=1000, kv=kv).serving.kv == 1000 * 32 * 2 * 8 * 128 * bits / 8


@pytest.mark.parametrize("kv", BY_NAME["kv"].choices)
def test_narrow_caches_are_narrower(kv):
    found = serve(model="llama-3.1-8b", kv=kv).serving.kv
    wide = serve(model="llama-3.1-8b", kv="bf16").serving.kv
    assert found == 2 * wide if kv == "fp32" else found <= wide
    assert (found < wide) == (kv not in ("fp32", "bf16", "fp16"))


@pytest.mark.parametrize("model", ["llama-3.1-8b", "gpt2", "olmoe-1b-7b", "mamba2-130m", "qwen2.5-vl-3b"])
def test_weights_in_16_bit_are_two_bytes_a_parameter(model):
    assert serve(model=model, weights="bf16").serving.weights == 2 * catalog.lookup(model).params


def test_tensor_parallel_ranks_split_heads_and_hold_no_fewer_than_one():
    # 8 key/value heads: 16 ranks hold one each; the latent of MLA is held by every rank
    alone, eight, sixteen = (serve(model="llama-3.1-8b", context=1000, tp=tp).serving.kv for tp in (1, 8, 16))
    assert alone == 8 * eight == 8 * sixteen
    latent = [serve(model="deepseek-v2-lite", context=1000, tp=tp).serving.kv for tp in (1, 8)]
    assert latent[0] == latent[1]


@settings(max_examples=25)
@given(st.sampled_from(MODELS), st.integers(1, 8), st.sampled_from((128, 1000, 8192)), st.sampled_from((1, 2, 4)))
def test_parts_are_positive_and_more_needs_more(model, concurrency, context, tp):
    job = {"model": model, "concurrency": concurrency, "context": context, "tp": tp, "gpu": "h100"}
    found = serve(**job)
    assert all(value >= 0 for value in found.reading.parts.values())
    assert found.serving.total == found.allocated_bytes
    assert found.capacity_bytes == found.ledger.device_bytes + found.ledger.free_bytes
    assert serve(**{**job, "concurrency": concurrency + 1}).allocated_bytes >= found.allocated_bytes
    assert serve(**{**job, "context": context * 2}).allocated_bytes >= found.allocated_bytes


def test_the_document_carries_the_parts():
    found = serve(model="llama-3.2-1b", context=2048, gpu="rtx-4090")
    document = found.to_dict("a")
    assert document["serving"]["weights_bytes"] == found.serving.weights
    assert document["serving"]["kv_bytes"] == found.serving.kv
    assert document["serving"]["kv_bytes_per_token"] * 2048 == document["serving"]["kv_bytes"]
    assert sum(c["bytes"] for c in document["components"]) == document["peak_bytes"]["device"]
