import pytest

from memfit import estimate
from memfit.errors import JobErrors, MemfitError
from memfit.job import complete, from_kwargs
from memfit.trace import Gpu, trace_job
from memfit.trace.job import target, training_of

CONFIG = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip

ROUNDING = 512
"""What the allocator rounds a block to."""


def training(**fields):
    job = complete(from_kwargs(config=CONFIG, gpu="h100-sxm-80gb", **{"gpus": 1, "seq_len": 128, **fields})).job
    return training_of(job)[0]


def test_mixed_precision_is_autocast_alone_and_a_policy_when_sharded():
    alone = training(precision="bf16-mixed")
    assert (alone.params, alone.autocast, alone.compute, alone.engine) == ("fp32", "bf16", None, "fake-cuda")
    sharded = training(precision="bf16-mixed", gpus=8, zero=3, framework="torchtitan")
    assert (sharded.params, sharded.autocast, sharded.compute, sharded.reduce) == ("fp32", None, "bf16", "fp32")
    assert (sharded.ranks, sharded.shard, sharded.no_sync) == (8, True, False)
    trainer = training(precision="bf16-mixed", gpus=8, zero=3, framework="transformers", framework_version="5.24 fsdp")
    assert (trainer.reduce, trainer.no_sync) == ("bf16", True)
    plain = training(precision="bf16")
    assert (plain.params, plain.autocast, plain.engine) == ("bf16", None, "meta")


def test_adapters_keep_the_stored_type_of_the_base():
    lora = training(method="lora", precision="bf16-mixed")
    assert (lora.params, lora.autocast) == ("bf16", "bf16")
    assert lora.lora["r"] == 16
    qlora = training(method="qlora", precision="bf16-mixed")
    assert qlora.nf4
    assert qlora.params == "bf16"


@pytest.mark.parametrize(("stated", "every"), [("none", 0), ("full", 1), (3, 3)])
def test_checkpointing_by_word_or_by_number(stated, every):
    assert training(checkpointing=stated).checkpointing == every


@pytest.mark.parametrize(("framework", "optimizer"), [("transformers", "adamw-fused"), ("torch", "adamw-foreach")])
def test_adamw_is_the_one_that_the_framework_takes(framework, optimizer):
    assert training(framework=framework, precision="bf16").optimizer == optimizer


def test_what_is_not_traced_is_refused_with_every_reason_at_once():
    job = from_kwargs(
        config=CONFIG, gpu="h100-sxm-80gb", gpus=8, cp=2, zero=1, dp=4, precision="fp8", offload=["optimizer"]
    )
    with pytest.raises(JobErrors) as caught:
        trace_job(job)
    paths = {error.path for error in caught.value.errors}
    assert paths == {"strategy.cp", "strategy.zero", "strategy.precision", "strategy.offload"}
    assert "estimate" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"ep": 2}, "strategy.ep"),
        ({"pp": 2, "pp_schedule": "zero-bubble", "grad_accum": 4}, "strategy.pp_schedule"),
        ({"pp": 2, "pp_schedule": "interleaved", "virtual_pp": 2, "grad_accum": 4}, "strategy.virtual_pp"),
        ({"zero": 2, "framework": "torch"}, "strategy.zero"),
        ({"zero": 1, "framework": "transformers"}, "strategy.zero"),
        ({"loss": "fused"}, "strategy.loss"),
        ({"loss": "chunked"}, "strategy.loss"),
    ],
)
def test_each_refusal_names_its_field(fields, path):
    model = {**CONFIG, "num_hidden_layers": 4}
    job = from_kwargs(config=model, gpu="h100-sxm-80gb", gpus=8, seq_len=128, precision="bf16", **fields)
    with pytest.raises(JobErrors) as caught:
        training_of(complete(job).job)
    assert path in {error.path for error in caught.value.errors}


def test_stage_one_of_a_plain_loop_is_a_share_of_the_states():
    assert training(framework="torch", precision="bf16", gpus=4, zero=1).partition
    assert not training(framework="torch", precision="bf16", gpus=4).partition


def test_an_unknown_type_is_read_as_the_family_that_is_named():
    strange = {**CONFIG, "model_type": "strange", "architectures": ["StrangeForCausalLM"]}
    job = from_kwargs(config=strange, gpu="h100-sxm-80gb", seq_len=128, extra={"as": "llama"}, precision="bf16")
    made, warnings = training_of(complete(job).job)
    assert made.config["model_type"] == "llama"
    assert any("llama" in text for text in warnings)


def test_the_target_card_brings_its_multiprocessors():
    assert target("h100-sxm-80gb").multiprocessors == 132
    assert target("a100-sxm-80gb").multiprocessors == 108
    assert target("rtx-4090").threads_per_multiprocessor == 1536
    assert target(None) == Gpu()


def test_stages_follow_the_layers_that_the_job_states():
    config = {**CONFIG, "num_hidden_layers": 9}
    job = {"config": config, "gpu": "h100-sxm-80gb", "seq_len": 128, "precision": "bf16", "grad_accum": 4}

    def layers(stage, **fields):
        return training_of(complete(from_kwargs(**{**job, **fields})).job, stage=stage)[0].stage_layers

    assert [layers(stage, pp_layers=(2, 4, 3)) for stage in range(3)] == [2, 4, 3]
    assert [layers(stage, pp=3, framework="torchtitan") for stage in range(3)] == [3, 4, 2]
    assert [layers(stage, pp=2, framework="torch") for stage in range(2)] == [5, 4]
    with pytest.raises(MemfitError, match="there is no pipeline stage 3"):
        layers(3, pp_layers=(2, 4, 3))
    with pytest.raises(MemfitError, match="stage 1 has no layers"):
        layers(1, pp_layers=(5, 0, 4))


@pytest.mark.filterwarnings("ignore")
def test_formula_and_trace_agree_on_uneven_stages():
    """A layer that moves to another stage moves the same bytes in both: what they differ by is no matter of layers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config = {**CONFIG, "num_hidden_layers": 9, "hidden_size": 512, "intermediate_size": 1024}
    job = {"config": config, "gpu": "h100-sxm-80gb", "seq_len": 2048, "precision": "bf16", "grad_accum": 4,
           "framework": "torch"}  # fmt: skip

    def differences(**fields):
        predicted = estimate(**job, **fields)
        for stage, reading in enumerate(predicted.readings):
            trace = trace_job(predicted.job, stage=stage)
            held = sum(b.bytes for b in trace.live(trace.peak()[0]) if b.component in ("parameters", "optimizer"))
            assert abs(held - reading.parts["weights"] - reading.parts["states"]) <= ROUNDING
            yield reading.allocated - trace.peak_allocated

    even = list(differences(pp=3))
    for layers in ((2, 4, 3), (4, 1, 4)):
        moved = [a - b for a, b in zip(differences(pp_layers=layers), even, strict=True)]
        assert max(map(abs, moved)) <= 16 * ROUNDING  # a few small tensors of each layer
