"""Settings that make no sense for the model, the card or the framework are said, and only those."""

from __future__ import annotations

import pytest

from memfit import estimate
from memfit.errors import JobError
from memfit.formula.profile import profile
from memfit.models import resolve

LLAMA = {"model": "llama-3.1-8b"}
LORA = {**LLAMA, "method": "lora"}


def warned(**job):
    return " | ".join(estimate(**job).warnings)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({**LORA, "lora_targets": "q_prj,v_proj"}, "no layer of the model is called `q_prj` (did you mean `q_proj`?)"),
        (
            {**LLAMA, "gpu": "3xh100", "tp": 3},
            "tp 3 does not divide the model's 32 attention heads: 1, 2, 4, 8, 16 and 32 do",
        ),
        ({**LLAMA, "gpu": "3xh100", "kind": "serve", "tp": 3}, "tp 3 does not divide the model's 32 attention heads"),
        ({**LLAMA, "gpu": "8xh100", "ep": 8}, "ep 8 has no effect: the model has no experts"),
        ({**LLAMA, "method": "freeze", "trainable": 1000}, "1000 layers are more than the 32 of the model"),
        ({**LLAMA, "framework_version": "99"}, "no variant of transformers is known by `99`"),
        ({"model": "bert-large-uncased"}, "seq_len 4096 is more than the 512 positions"),
        ({"model": "gpt2", "seq_len": 1025}, "seq_len 1025 is more than the 1024 positions"),
        ({"model": "gpt2", "kind": "serve", "context": 2048}, "context 2048 is more than the 1024 positions"),
        ({"model": "opt-350m", "seq_len": 4096}, "seq_len 4096 is more than the 2048 positions"),
        ({**LLAMA, "gpu": "t4", "attention": "flash"}, "FlashAttention does not run on NVIDIA Tesla T4"),
        ({**LLAMA, "gpu": "t4", "framework": "axolotl"}, "FlashAttention does not run on NVIDIA Tesla T4"),
        ({**LLAMA, "gpu": "m3-max-128gb", "attention": "flash"}, "FlashAttention does not run on"),
        ({**LLAMA, "gpu": "v100-32gb"}, "does not multiply in bf16: precision = fp16-mixed"),
        ({**LLAMA, "gpu": "t4", "precision": "bf16"}, "does not multiply in bf16: precision = fp16"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_sentence(job, words):
    (warning,) = [w for w in estimate(**job).warnings if words in w]
    assert ". " not in warning


@pytest.mark.parametrize(
    "job",
    [
        {**LORA, "lora_targets": "q_proj,v_proj"},
        {**LORA, "lora_targets": "self_attn.q_proj,model.layers.*.mlp.up_proj"},
        {**LORA, "lora_targets": "wq,w1,linear_qkv"},
        LORA,
        {**LLAMA, "gpu": "4xh100", "tp": 4},
        {"model": "qwen3-30b-a3b", "gpu": "8xh100", "ep": 8},
        {**LLAMA, "method": "freeze", "trainable": 32},
        {**LLAMA, "framework_version": "5.23.0"},
        {**LLAMA, "framework_version": "2025"},
        {**LLAMA, "framework_version": "HF Trainer"},
        {**LLAMA, "seq_len": 1 << 18},
        {"model": "bert-large-uncased", "seq_len": 512},
        {"model": "modernbert-base", "seq_len": 16384},
        {**LLAMA, "gpu": "t4", "attention": "sdpa", "precision": "fp16-mixed"},
        {**LLAMA, "gpu": "t4", "precision": "fp16-mixed"},
        {**LLAMA, "gpu": "t4", "kind": "serve"},
        {**LLAMA, "gpu": "a100-80gb", "attention": "flash"},
        {**LLAMA, "gpu": "mi300x", "attention": "flash"},
    ],
)
def test_what_makes_sense_is_not_warned_of(job):
    assert warned(**job) == ""


@pytest.mark.parametrize(("target", "near"), [("foo_proj", "o_proj"), ("q_prj", "q_proj"), ("zzz", "it has q_proj")])
def test_adapters_that_reach_nothing_are_refused(target, near):
    with pytest.raises(JobError, match="no layer of the model is called") as caught:
        estimate(**LORA, lora_targets=target)
    assert caught.value.path == "task.lora.targets"
    assert near in caught.value.hint


def test_a_frameworks_own_targets_are_never_refused():
    assert profile("litgpt").defaults["lora.targets"] == ["q_proj", "v_proj"]
    assert warned(model="mamba2-130m", method="lora", framework="litgpt") == ""


def test_the_last_name_of_a_target_counts():
    plain, long = (
        estimate(**LORA, lora_targets=t).allocated_bytes for t in ("q_proj", "model.layers.*.self_attn.q_proj")
    )
    assert plain == long


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "qwen3-30b-a3b", "gpt-neox-20b", "phi-2", "mamba2-130m", "bloom-560m"]
)
def test_models_without_a_table_of_positions_are_not_bound_by_one(name):
    arch, _ = resolve(name)
    assert warned(model=name, seq_len=max(arch.max_positions, 4096) * 2) == ""
