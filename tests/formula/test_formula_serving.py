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


GPT_OSS = {"gpt-oss-20b": (24, 32), "gpt-oss-120b": (36, 128)}


@pytest.mark.parametrize("name", GPT_OSS)
def test_quantised_checkpoints_are_served_as_they_are_stored(name):
    # experts of 2880 x (5760 + 2880) in mxfp4, 17 bytes for 32 elements; the rest in 16 bit
    layers, experts = GPT_OSS[name]
    packed = layers * experts * 2880 * (5760 + 2880)
    found = serve(model=name, gpu="h100")
    assert found.serving.weights == packed * 17 // 32 + 2 * (catalog.lookup(name).params - packed)
    assert found.job.strategy.weights == found.resolved.values["weights"] == "mxfp4"
    assert found.resolved.completed.origins["strategy.weights"] == "derived"
    (assumed,) = found.assumptions
    assert (assumed.field, assumed.value, assumed.alternative) == ("strategy.weights", "mxfp4", "bf16")
    assert assumed.reason == "as the checkpoint stores them"
    assert assumed.delta_bytes == serve(model=name, gpu="h100", weights="bf16").reserved_bytes - found.reserved_bytes
    assert found.to_dict()["assumptions"][0]["reason"] == assumed.reason
    assert serve(model=name, gpu="h100", weights="mxfp4").serving == found.serving


def test_fp8_checkpoints_keep_routers_norms_embeddings_and_head_in_16_bit():
    # 129280 x 7168 twice, 58 routers of 256 x 7168 with their bias, norms of 7168 twice, 1536 and 512 a layer, and one
    arch, _ = resolve("deepseek-v3")
    norms = 61 * (2 * 7168 + 1536 + 512) + 7168
    wide = 2 * 129280 * 7168 + 58 * 256 * 7168 + norms
    biases = 58 * 256  # correction biases are buffers
    assert serve(model="deepseek-v3").serving.weights == pytest.approx(
        arch.num_params + wide + 2 * biases, abs=2 * biases
    )
    assert serve(model="deepseek-v3", framework="llama.cpp").job.strategy.weights == "bf16"


LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "wide"),
    [
        ([], 0),
        (["lm_head", "model.norm"], 0),
        (["model.layers.*.self_attn"], 4 * 4 * 256 * 256),
        (["self_attn.q_proj"], 4 * 256 * 256),
        (["model.layers.1.self_attn.q_proj", "model.layers.3.mlp"], 256 * 256 + 3 * 256 * 512),
        (["layers.1"], 4 * 256 * 256 + 3 * 256 * 512),
        (["q_pro", "*", 7, "x" * 5000][:1], 0),
    ],
)
@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_modules_that_are_left_out_stay_in_16_bit(patterns, wide, key):
    def weights(found):
        return serve(model=LLAMA | {"quantization_config": {"quant_method": "fp8", key: found}}).serving.weights

    linear = 4 * (4 * 256 * 256 + 3 * 256 * 512)
    plain = serve(model=LLAMA).serving.weights
    assert weights(patterns) == plain - linear + wide


@pytest.mark.parametrize("patterns", [None, "lm_head", 3, {"a": 1}, [None, 5, "", "x" * 5000], ["*" * 200 + "a"] * 50])
def test_lists_of_any_kind_are_read(patterns):
    config = LLAMA | {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": patterns}}
    assert serve(model=config).serving.weights > 0


def test_a_quantisation_that_is_not_followed_is_said():
    found = serve(model=LLAMA | {"quantization_config": {"quant_method": "hqq", "bits": 3}})
    assert [w for w in found.warnings if "hqq" in w]
    assert found.serving.weights == serve(model=LLAMA).serving.weights
    assert not [w for w in serve(model=LLAMA).warnings if "quantised" in w]


def test_training_does_not_follow_the_quantisation_of_the_checkpoint():
    assert estimate(model="gpt-oss-20b", method="lora").job.strategy.weights == "bf16"
