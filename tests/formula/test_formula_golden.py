"""Figures that stand on their own: traced byte counts, published parameter counts, arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from formula_jobs import at, at_step, models_of, parts_of, trained_elements

from memfit import estimate
from memfit.formula.setup import setup
from memfit.formula.training import peaks
from memfit.models import catalog
from memfit.units import GIB


@pytest.mark.parametrize(
    ("checkpointing", "implementation", "traced"),
    [("none", "foreach", 82_064_287_744), ("full", "foreach", 81_420_428_800), ("full", "fused", 65_467_621_376)],
)
def test_llama_8b_in_a_plain_loop(checkpointing, implementation, traced):
    # torch 2.13 and transformers 5.23, two steps of AdamW, bf16, one sequence of 4096 tokens, counted by the allocator
    s, d = parts_of(
        model="llama-3.1-8b", framework="torch", precision="bf16", seq_len=4096, checkpointing=checkpointing
    )
    s = setup(s.arch, replace(s.choices, optimizer_impl=implementation))
    (stage,) = peaks(s, d, every=True)
    assert stage.allocated == pytest.approx(traced, rel=0.0005)


QV = ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("model", "rank", "targets", "published"),
    [
        ("llama-3.2-3b", 32, QV, 9_175_040),
        ("llama-3.1-8b", 16, "all-linear", 41_943_040),
        ("mistral-7b-v0.1", 16, "all-linear", 41_943_040),
        ("llama-2-7b", 8, QV, 4_194_304),
        ("llama-2-7b", 64, "all-linear", 159_907_840),
        ("qwen2.5-7b", 16, "all-linear", 40_370_176),
        ("gpt2", 8, ("c_attn",), 294_912),
        ("falcon-7b", 16, ("query_key_value",), 4_718_592),
        ("flan-t5-large", 8, ("q", "v"), 2_359_296),
        ("phi-3-mini", 16, "all-linear", 25_165_824),
    ],
)
def test_adapters_count_what_peft_prints(model, rank, targets, published):
    # the count that `print_trainable_parameters` shows: rank * (in + out) of every adapted projection
    lora = {"rank": rank, "targets": targets}
    assert trained_elements(model=model, framework="transformers", method="lora", lora=lora) == published


def test_adapters_by_hand():
    # Llama-3.2-1B: hidden 2048, 8 kv heads of 64, feed-forward 8192, 16 layers
    d, kv, f, layers, rank = 2048, 512, 8192, 16, 4
    each = (d + d) + 2 * (d + kv) + (d + d) + 2 * (d + f) + (f + d)
    job = {"model": "llama-3.2-1b", "framework": "transformers"}
    plain = trained_elements(**job, method="lora", lora={"rank": rank, "targets": "all-linear"})
    assert plain == layers * rank * each
    # DoRA adds one magnitude for each output
    outputs = d + 2 * kv + d + 2 * f + d
    assert (
        trained_elements(**job, method="dora", lora={"rank": rank, "targets": "all-linear"}) - plain == layers * outputs
    )
    # a module that is trained in full beside the adapters
    also = trained_elements(**job, method="lora", lora={"rank": rank, "train_also": ["embed_tokens"]})
    assert also - plain == 128256 * d


@pytest.mark.parametrize(
    "model", ["llama-3.1-8b", "llama-3.2-1b", "olmoe-1b-7b", "gpt2", "deepseek-v2-lite", "t5-base", "mamba2-130m"]
)
def test_full_training_trains_every_parameter(model):
    assert trained_elements(model=model, framework="torch", method="full") == catalog.lookup(model).params


@pytest.mark.parametrize(
    ("weights", "bits"), [("nf4", 4 + 32 / 64), ("nf4-dq", 4 + 8 / 64 + 32 / (64 * 256)), ("int8", 8)]
)
def test_quantised_weights_take_their_bits(weights, bits):
    # Llama-2-7B: the linear layers of the blocks are quantised; embedding, head and norms stay 16 bit, which the
    # preparation for k-bit training raises to fp32
    d, f, layers, vocab = 4096, 11008, 32, 32000
    linear = layers * (4 * d * d + 3 * d * f)
    outer = 2 * vocab * d + (2 * layers + 1) * d
    job = {"model": "llama-2-7b", "method": "qlora", "weights": weights, "lora": {"rank": 8, "targets": QV}}
    adapters = 4_194_304
    found = models_of(**job, framework="swift")[0].weights_bytes()[0]
    assert found == pytest.approx(linear * bits / 8 + outer * 2 + adapters * 4, abs=layers)
    raised = models_of(**job, framework="transformers")[0].weights_bytes()[0]
    assert raised - found == pytest.approx(2 * 2 * vocab * d, rel=0.002)


ELEMENTS = 1_235_814_400


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        ("adamw", 2 * 4 * ELEMENTS),
        ("lion", 4 * ELEMENTS),
        ("momentum", 4 * ELEMENTS),
        ("sgd", 0),
        ("none", 0),
        ("adamw-8bit", 2 * (ELEMENTS + 4 * -(-ELEMENTS // 256))),
        ("adamw-4bit", 2 * (ELEMENTS // 2 + 4 * -(-ELEMENTS // 128))),
    ],
)
def test_optimizer_states_by_hand(optimizer, states):
    # Llama-3.2-1B with fp32 parameters
    assert (
        at_step(model="llama-3.2-1b", framework="torch", precision="bf16-mixed", optimizer=optimizer)["states"]
        == states
    )


@pytest.mark.parametrize("optimizer", ["adafactor", "galore", "muon"])
def test_frugal_optimizers_keep_less_than_adamw(optimizer):
    job = {"model": "llama-3.2-1b", "framework": "torch", "precision": "bf16"}
    assert at_step(**job, optimizer=optimizer)["states"] < at_step(**job, optimizer="adamw")["states"]


@pytest.mark.parametrize(
    ("framework", "precision", "zero", "per_parameter"),
    [
        ("torch", "fp32", 0, (4, 4, 0, 8)),
        ("torch", "bf16", 0, (2, 2, 0, 4)),
        ("torch", "bf16-mixed", 0, (4, 4, 0, 8)),
        ("deepspeed", "bf16-mixed", 1, (2, 2, 4, 8)),
        ("megatron", "bf16-mixed", 0, (2, 4, 4, 8)),
        ("nanotron", "bf16-mixed", 0, (2, 4, 4, 8)),
    ],
)
def test_bytes_per_parameter_of_a_precision(framework, precision, zero, per_parameter):
    found = at_step(model="llama-3.2-1b", framework=framework, precision=precision, zero=zero)
    assert tuple(found[n] / ELEMENTS for n in ("weights", "grads", "master", "states")) == per_parameter


def test_autocast_copies_do_not_outlive_a_checkpointed_block():
    job = {"model": "llama-3.2-1b", "framework": "torch", "precision": "bf16-mixed", "loss": "eager"}
    head = 2 * 128256 * 2048  # kept for its own backward, which comes first
    assert at("gradient of the logits", **job, checkpointing="full")["casts"] == head
    linear = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert at("gradient of the logits", **job)["casts"] == 2 * linear + head
    assert at("loss", **job, checkpointing="full")["casts"] == 2 * linear + head  # the cache of the forward


@pytest.mark.parametrize("images", [0, 4])
def test_images_cost_activations_of_the_tower(images):
    # without images the tower holds weights but keeps nothing
    job = {"model": "qwen2.5-vl-3b", "framework": "torch", "precision": "bf16", "extra": {"images": images}}
    plain = {"model": "qwen2.5-vl-3b", "framework": "torch", "precision": "bf16"}
    more = at("loss", **job)["kept"] - at("loss", **plain)["kept"]
    assert more > images * 0.1 * GIB if images else more == 0


def test_the_published_question():
    # Llama-3.1-8B, ZeRO-3 over 8 GPUs, full checkpointing, 4096 tokens: 16 bytes a parameter / 8 is 14.96 GiB resident
    job = {"model": "llama-3.1-8b", "framework": "deepspeed", "gpu": "8xh100", "zero": 3, "checkpointing": "full"}
    parts = at_step(**job)
    resident = sum(parts[n] for n in ("weights", "grads", "master", "states"))
    assert resident == pytest.approx(16 * 8_030_261_248 / 8, abs=64)
    assert estimate(**job).allocated_bytes > resident
