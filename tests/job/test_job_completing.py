"""Completing a job: arithmetic, origins, profiles, contradictions, warnings."""

import dataclasses

import pytest

from memfit import job
from memfit.errors import JobErrors
from memfit.job import FIELDS, Lora, Strategy


def done(defaults=None, **kwargs):
    return job.complete(job.from_kwargs(**kwargs), defaults)


def shape(completed):
    s = completed.job.strategy
    return completed.job.hardware.gpus, s.dp, s.tp, s.pp, s.cp


def batch(completed):
    s = completed.job.strategy
    return completed.job.task.global_batch, s.micro_batch, s.grad_accum, s.dp


def fault(path, defaults=None, **kwargs):
    with pytest.raises(JobErrors) as caught:
        done(defaults, **kwargs)
    assert [error.path for error in caught.value.errors] == [path]
    return caught.value.errors[0]


@pytest.mark.parametrize("kind", ["train", "serve"])
def test_every_field_is_filled_and_has_an_origin(kind):
    completed = done(kind=kind)
    assert set(completed.origins) == {f.path for f in FIELDS}
    assert set(completed.origins.values()) <= {"stated", "default", "derived"}
    for f in FIELDS:
        if not f.optional and f.section in {"task", "strategy", "hardware"}:
            assert getattr(getattr(completed.job, f.section), f.name) is not None, f.path
    assert completed.warnings == ()


def test_what_is_completed_is_a_fixed_point():
    for kwargs in ({"gpu": "8xh100", "zero": 3}, {"framework": "vllm", "gpus": 4}, {"method": "qlora"}):
        first = done(**kwargs)
        again = job.complete(first.job)
        assert again.job == first.job


def test_stated_values_are_never_changed():
    stated = job.from_kwargs(gpus=16, tp=2, pp=2, micro_batch=4, global_batch=64, checkpointing="full", loss="fused")
    final = job.complete(stated).job
    for section in ("model", "task", "strategy", "hardware"):
        for field in dataclasses.fields(getattr(stated, section)):
            value = getattr(getattr(stated, section), field.name)
            if value is not None:
                assert getattr(getattr(final, section), field.name) == value


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, (1, 1, 1, 1, 1)),
        ({"gpus": 8}, (8, 8, 1, 1, 1)),
        ({"gpu": "8xh100", "tp": 2}, (8, 4, 2, 1, 1)),
        ({"dp": 4, "tp": 2, "cp": 2}, (16, 4, 2, 1, 2)),
        ({"pp": 4}, (4, 1, 1, 4, 1)),
        ({"gpus": 64, "tp": 8, "pp": 2, "cp": 2}, (64, 2, 8, 2, 2)),
        ({"framework": "vllm", "gpus": 4}, (4, 1, 4, 1, 1)),
        ({"framework": "vllm", "gpus": 8, "pp": 2}, (8, 1, 4, 2, 1)),
        ({"framework": "vllm", "gpus": 8, "tp": 4}, (8, 2, 4, 1, 1)),
        ({"framework": "llama.cpp", "gpus": 3}, (3, 1, 1, 3, 1)),
        ({"framework": "sglang", "tp": 8}, (8, 1, 8, 1, 1)),
        ({"framework": "tensorrt-llm", "dp": 8, "ep": 8}, (8, 8, 1, 1, 1)),
    ],
)
def test_gpus_and_degrees(kwargs, wanted):
    assert shape(done(**kwargs)) == wanted


def test_a_profile_says_how_an_engine_splits():
    assert shape(done({"split": "pp"}, framework="vllm", gpus=4)) == (4, 1, 1, 4, 1)


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, (1, 1, 1, 1)),
        ({"gpus": 8}, (8, 1, 1, 8)),
        ({"gpus": 8, "global_batch": 64}, (64, 1, 8, 8)),
        ({"gpus": 8, "global_batch": 64, "micro_batch": 4}, (64, 4, 2, 8)),
        ({"gpus": 8, "global_batch": 64, "grad_accum": 2}, (64, 4, 2, 8)),
        ({"gpus": 8, "micro_batch": 4}, (32, 4, 1, 8)),
        ({"gpus": 8, "grad_accum": 4}, (32, 1, 4, 8)),
        ({"gpus": 8, "grad_accum": 4, "micro_batch": 2}, (64, 2, 4, 8)),
    ],
)
def test_batches(kwargs, wanted):
    assert batch(done(**kwargs)) == wanted


def test_origins_say_what_was_stated_and_what_followed():
    origins = done({"strategy.zero": 3, "strategy.loss": "fused"}, gpu="8xh100", loss="eager", global_batch=16).origins
    assert origins["hardware.gpus"] == origins["hardware.gpu"] == origins["strategy.loss"] == "stated"
    assert origins["strategy.dp"] == origins["strategy.grad_accum"] == origins["strategy.dp_shard"] == "derived"
    assert origins["strategy.zero"] == "profile"
    assert origins["strategy.optimizer"] == origins["model.name"] == "default"


def test_profile_stands_between_stated_and_default():
    profile = {"strategy.zero": 3, "strategy.micro_batch": 4, "task.lora.rank": 8, "model.name": "x", "unknown.path": 1}
    final = done(profile, gpus=2, method="lora", zero=1).job
    assert (final.strategy.zero, final.strategy.micro_batch, final.task.global_batch) == (1, 4, 8)
    assert final.task.lora == Lora(rank=8, targets="all-linear", train_also=(), dropout=0.0)
    assert final.model.name is None


@pytest.mark.parametrize(
    ("own", "job", "weights"),
    [
        ({"lora": "trained"}, {"method": "lora"}, "fp32"),
        ({"lora": "trained"}, {"method": "lora", "precision": "bf16"}, "bf16"),
        ({"lora": "trained"}, {"method": "lora", "precision": "fp8"}, "fp32"),
        ({"lora": "computed"}, {"method": "lora", "precision": "fp16-mixed"}, "fp16"),
        ({"lora": "computed"}, {"method": "lora", "precision": "fp8"}, "bf16"),
        ({"lora": "trained"}, {"method": "lora", "weights": "fp16"}, "fp16"),
        ({"lora": "trained"}, {"method": "dora"}, "bf16"),
        ({"lora": "trained"}, {"method": "full"}, "bf16"),
        ({"qlora": "nf4-dq"}, {"method": "qlora"}, "nf4-dq"),
        ({"lora": "trained"}, {"method": "qlora"}, "nf4"),
        ({"reference": "trained"}, {"method": "dpo"}, "fp32"),
        ({"reference": "trained"}, {"method": "dpo", "lora": {"rank": 8}}, "bf16"),
        ({"freeze": "computed"}, {"method": "freeze", "precision": "fp32"}, "fp32"),
    ],
)
def test_frozen_weights_are_stored_as_the_profile_says(own, job, weights):
    profile = {f"strategy.weights.{kind}": value for kind, value in own.items()}
    found = done({"strategy.precision": "bf16-mixed", **profile}, **job)
    assert found.values["weights"] == weights
    said = found.origins["strategy.weights"]
    assert (said == "profile") == (job["method"] in own or (job["method"] == "dpo" and "lora" not in job)) or (
        "weights" in job and said == "stated"
    )


@pytest.mark.parametrize(
    ("job", "precision"),
    [
        ({}, "bf16"), ({"zero": 0, "gpus": 8}, "bf16"), ({"zero": 3}, "bf16-mixed"), ({"gpus": 8}, "bf16-mixed"),
        ({"method": "lora"}, "bf16-mixed"), ({"precision": "fp32"}, "fp32"),
    ],
)  # fmt: skip
def test_a_profile_may_have_another_precision_where_nothing_is_sharded(job, precision):
    profile = {"strategy.precision": "bf16-mixed", "strategy.precision.alone": "bf16"}
    assert done(profile, **job).values["precision"] == precision


def test_profile_batches_give_way_to_a_stated_global_batch():
    assert batch(done({"strategy.micro_batch": 4}, global_batch=6)) == (6, 1, 6, 1)
    assert batch(done({"strategy.micro_batch": 4}, global_batch=8)) == (8, 4, 2, 1)
    assert batch(done({"strategy.grad_accum": 1}, global_batch=8, micro_batch=2)) == (8, 2, 4, 1)


def test_a_profile_alone_never_warns():
    profile = {"strategy.zero": 3, "strategy.sequence_parallel": True, "strategy.reshard": False, "strategy.kv": "fp8"}
    assert done(profile).warnings == ()


def test_lora_completes_and_adapters_come_only_where_they_belong():
    assert done(method="lora").job.task.lora == Lora(rank=16, targets="all-linear", train_also=(), dropout=0.0)
    assert done(method="full").job.task.lora is None
    assert done(method="dpo").job.task.lora is None
    assert done(method="dpo", lora=8).job.task.lora.rank == 8
    assert done(method="dpo", lora=8).warnings == ()


def test_method_and_weights_follow():
    assert done(lora=8).job.task.method == "lora"
    assert done(lora=8, weights="nf4").job.task.method == "qlora"
    assert done(lora=8, weights="4.5bpw").job.task.method == "qlora"
    assert done(trainable=2).job.task.method == "freeze"
    qlora = done(method="qlora")
    assert (qlora.job.strategy.weights, qlora.origins["strategy.weights"]) == ("nf4", "derived")
    assert done({"strategy.weights": "nf4-dq"}, method="qlora").job.strategy.weights == "nf4-dq"


@pytest.mark.parametrize(
    ("kwargs", "kind"),
    [({}, "train"), ({"framework": "vllm"}, "serve"), ({"context": 10}, "serve"), ({"kv": "fp8"}, "serve"),
     ({"context": 10, "optimizer": "adamw"}, "train"), ({"framework": "transformers"}, "train")],
)  # fmt: skip
def test_kind_follows_from_what_is_stated(kwargs, kind):
    assert done(**kwargs).job.task.kind == kind


def test_lengths_of_serving():
    def lengths(**kwargs):
        task = done(kind="serve", **kwargs).job.task
        return task.context, task.prompt, task.output

    assert lengths() == (4096, 4096, 0)
    assert lengths(context="8k", output=1024) == (8192, 7168, 1024)
    assert lengths(prompt=1000, output=24) == (1024, 1000, 24)
    assert lengths(prompt=1024) == (4096, 1024, 3072)
    assert lengths(prompt=100_000) == (100_000, 100_000, 0)
    assert lengths(output=5000) == (5000, 0, 5000)


def test_serving_has_neutral_training_values():
    s = done(kind="serve").job.strategy
    assert (s.zero, s.optimizer, s.micro_batch, s.grad_accum, s.checkpointing) == (0, "none", 1, 1, "none")
    assert s.framework == "transformers"


def test_node_and_pipeline_defaults():
    assert done(gpus=4).job.hardware.gpus_per_node == 4
    assert done(gpus=64).job.hardware.gpus_per_node == 8
    assert done({"hardware.gpus_per_node": 4}, gpus=64).job.hardware.gpus_per_node == 4
    assert done(pp=4, virtual_pp=2).job.strategy.pp_schedule == "interleaved"
    assert done(pp=4, pp_schedule="interleaved").job.strategy.virtual_pp == 2
    assert done(pp=4).job.strategy.virtual_pp == 1


@pytest.mark.parametrize(
    ("path", "hint", "kwargs"),
    [
        ("hardware.gpus", "dp = 2 would do", {"kind": "train", "gpus": 8, "dp": 4, "tp": 4}),
        ("hardware.gpus", "gpus = 3 would do", {"gpus": 8, "tp": 3}),
        ("hardware.gpus", "dp = 2 would do", {"framework": "vllm", "gpus": 8, "dp": 1, "tp": 4, "pp": 1}),
        ("task.global_batch", "global_batch = 8 or 16 would do", {"gpus": 8, "global_batch": 12}),
        ("task.global_batch", "global_batch = 8 would do", {"gpus": 8, "global_batch": 4}),
        ("task.global_batch", "state a multiple of 3", {"gpus": 8, "global_batch": 32, "micro_batch": 3}),
        (
            "task.global_batch",
            "grad_accum = 2 would do",
            {"dp": 2, "global_batch": 8, "micro_batch": 2, "grad_accum": 4},
        ),
        ("strategy.dp_shard", "one of 1, 2, 4, 8", {"gpus": 8, "dp_shard": 3, "zero": 3}),
        ("strategy.ep", "one of 1, 2, 4, 8", {"gpus": 8, "ep": 16}),
        ("strategy.cp", "seq_len = 1002", {"cp": 3, "seq_len": 1000}),
        ("strategy.framework", 'kind = "serve"', {"kind": "train", "framework": "vllm"}),
        ("strategy.optimizer_in_backward", "grad_accum = 1", {"optimizer_in_backward": True, "global_batch": 8}),
        ("task.context", "context = 30", {"kind": "serve", "context": 20, "prompt": 20, "output": 10}),
    ],
)
def test_contradictions(path, hint, kwargs):
    assert hint in fault(path, **kwargs).hint


def test_ep_may_span_data_context_and_tensor_ranks():
    assert done(gpus=8, tp=4, ep=8).job.strategy.ep == 8
    fault("strategy.ep", gpus=8, pp=2, ep=8)


@pytest.mark.parametrize(
    ("words", "kwargs"),
    [
        ("`strategy.sequence_parallel` has no effect with tp = 1", {"sequence_parallel": True}),
        ("`strategy.virtual_pp` has no effect with pp = 1", {"virtual_pp": 2}),
        ("`strategy.virtual_pp` has no effect with pp_schedule", {"pp": 2, "virtual_pp": 2, "pp_schedule": "1f1b"}),
        ('is plain "1f1b"', {"pp": 2, "virtual_pp": 1, "pp_schedule": "interleaved"}),
        ("`strategy.pp_schedule` has no effect with pp = 1", {"pp_schedule": "dualpipe"}),
        ("`strategy.cpu_layers` is not counted", {"kind": "serve", "cpu_layers": 8}),
        ("`strategy.memory_fraction` is not counted", {"kind": "serve", "memory_fraction": 0.5}),
        ("`strategy.graphs` is not counted", {"kind": "serve", "graphs": True}),
        ('method "grpo" is the training step alone', {"method": "grpo"}),
        ("`strategy.zero` shards nothing with dp = 1", {"zero": 3}),
        ("`strategy.dp_shard` has no effect with zero = 0", {"gpus": 8, "dp_shard": 4}),
        ("`strategy.reshard` has no effect without zero = 3", {"reshard": False}),
        ('`task.lora` has no effect with method = "full"', {"method": "full", "lora": 8}),
        ('`task.trainable` has no effect with method = "full"', {"method": "full", "trainable": 8}),
        ("`task.trainable` is not stated: assumed that the last 2 layers", {"method": "freeze"}),
        ('`strategy.weights` has no effect with method = "full"', {"weights": "nf4"}),
        ('"qlora" with weights in bf16 is plain LoRA', {"method": "qlora", "weights": "bf16"}),
        ('`strategy.kv` has no effect when kind = "train"', {"kind": "train", "kv": "fp8"}),
        ('`strategy.optimizer` has no effect when kind = "serve"', {"kind": "serve", "optimizer": "adamw"}),
        ("`strategy.pp_layers` has no effect with pp = 1", {"pp": 1, "pp_layers": [32]}),
        ("12 GPUs do not fill nodes of 8", {"gpus": 12, "gpus_per_node": 8}),
        ("is not a multiple of tp 8", {"gpus": 8, "tp": 8, "sequence_parallel": True, "seq_len": 1001}),
    ],
)
def test_settings_without_effect_are_warnings(words, kwargs):
    warnings = done(**kwargs).warnings
    assert len(warnings) == 1
    assert words in warnings[0]


@pytest.mark.parametrize(
    "kwargs",
    [{"gpus": 2, "zero": 3}, {"cp": 2, "zero": 3}, {"gpus": 2, "tp": 2, "sequence_parallel": True},
     {"pp": 2, "virtual_pp": 2}, {"method": "lora", "weights": "nf4"}, {"pp": 1, "pp_schedule": "1f1b"},
     {"sequence_parallel": False}, {"gpus": 8, "zero": 3, "reshard": False, "dp_shard": 4}],
)  # fmt: skip
def test_settings_with_effect_do_not_warn(kwargs):
    assert done(**kwargs).warnings == ()


def test_completing_checks_jobs_that_were_made_by_hand():
    with pytest.raises(JobErrors):
        job.complete(job.Job(strategy=Strategy(dp=2, dp_shard=3)))


def test_the_layers_of_the_ranks_say_how_many_there_are():
    completed = done(gpus=8, pp_layers=(7, 9, 9, 7))
    assert shape(completed) == (8, 2, 1, 4, 1)
    assert completed.origins["strategy.pp"] == "derived"
    assert done(pp=2).job.strategy.pp_layers is None
    found = fault("strategy.pp_layers", pp=3, pp_layers=(7, 9, 9, 7))
    assert "pp_layers has 4 numbers for pp 3" in found.message
