"""What the memory model reads from an architecture: layouts, windows, biases, norms, ties, fused projections."""

import json
from pathlib import Path
from typing import Any

from memfit.models import Architecture, Attention, Mlp, Moe, Tensor, architecture

ROWS = json.loads((Path(__file__).parent / "golden_counts.json").read_text("utf-8"))["models"]
CONFIGS: dict[str, dict[str, Any]] = {row["model"]: row["config"] for row in ROWS}


def model(name: str, **changes: Any) -> Architecture:
    return architecture({**CONFIGS[name], **changes})


def kinds(arch: Architecture) -> list[str]:
    return [arch.decoder.blocks[i].kind for i in arch.decoder.layout]


def attention(arch: Architecture, index: int = 0) -> Attention:
    a = arch.decoder.blocks[arch.decoder.layout[index]].attention
    assert a is not None
    return a


def windows(arch: Architecture) -> list[int | None]:
    return [attention(arch, i).window for i in range(arch.num_layers)]


def tensor(arch: Architecture, name: str) -> Tensor:
    return next(t for t in arch.tensors() if t.name == name)


def test_llama() -> None:
    arch = model("meta-llama/Llama-3.1-8B")
    a = attention(arch)
    assert (a.num_heads, a.num_kv_heads, a.head_dim, a.rotary_dim, a.window) == (32, 8, 128, 128, None)
    block = arch.decoder.blocks[0]
    assert isinstance(block.ffn, Mlp)
    assert (block.norm, block.num_norms, block.parallel, block.ffn.gated) == ("rms", 2, False, True)
    assert not arch.tied
    q = tensor(arch, "model.layers.31.self_attn.q_proj.weight")
    assert (q.shape, q.tp_dim, q.linear, q.role) == ((4096, 4096), 0, True, "q_proj")
    assert tensor(arch, "model.layers.0.mlp.down_proj.weight").tp_dim == 1
    assert tensor(arch, "lm_head.weight").part == "head"


def test_gemma3_slides_in_five_layers_of_six() -> None:
    arch = model("google/gemma-3-27b-it (text)")
    expected = [None if (i + 1) % 6 == 0 else 1024 for i in range(62)]
    assert windows(arch) == expected
    assert arch.decoder.blocks[0].num_norms == 4
    assert attention(arch).qk_norm == "head"
    assert arch.tied
    assert arch.head == ()


def test_gemma2_caps_logits_and_attention() -> None:
    arch = model("google/gemma-2-9b")
    assert windows(arch) == [4096, None] * 21
    assert arch.logit_softcap
    assert attention(arch).softcap
    assert not model("google/gemma-2-9b", final_logit_softcapping=None).logit_softcap


def test_stated_layer_types_win() -> None:
    arch = model("google/gemma-2-9b", layer_types=["full_attention"] * 40 + ["sliding_attention"] * 2)
    assert windows(arch) == [None] * 40 + [4096] * 2


def test_gpt_oss_has_sinks_biases_and_fused_experts() -> None:
    arch = model("openai/gpt-oss-20b")
    assert windows(arch) == [128, None] * 12
    assert attention(arch).sinks
    assert attention(arch).qkv_bias
    gate_up = tensor(arch, "model.layers.0.mlp.experts.*.gate_up_proj.weight")
    assert (gate_up.count, gate_up.shape, gate_up.expert) == (32, (5760, 2880), True)
    assert gate_up.splits == (("gate_proj", 2880), ("up_proj", 2880))


def test_mistral_window_null_absent_and_stated() -> None:
    assert windows(model("mistralai/Mistral-7B-v0.1"))[0] == 4096
    assert windows(model("mistralai/Mistral-7B-v0.1", sliding_window=None))[0] is None
    trimmed = {k: v for k, v in CONFIGS["mistralai/Mistral-7B-v0.1"].items() if k != "sliding_window"}
    arch = architecture(trimmed)
    assert windows(arch)[0] is None
    assert any("sliding_window" in note for note in arch.unknowns)


def test_qwen2_window_counts_only_when_switched_on() -> None:
    assert windows(model("Qwen/Qwen2.5-7B", sliding_window=4096)) == [None] * 28
    arch = model("Qwen/Qwen2.5-7B", sliding_window=4096, use_sliding_window=True, max_window_layers=20)
    assert windows(arch) == [None] * 20 + [4096] * 8
    assert attention(arch).qkv_bias
    assert not attention(arch).out_bias


def test_llama4_alternates_chunks_and_routes_every_other_layer_in_maverick() -> None:
    scout = model("meta-llama/Llama-4-Scout-17B-16E (text)")
    assert windows(scout) == [8192, 8192, 8192, None] * 12
    assert attention(scout, 3).rotary_dim == 0
    maverick = model("meta-llama/Llama-4-Maverick-17B-128E (text)")
    assert kinds(maverick)[:4] == ["chunked+dense", "chunked+moe", "chunked+dense", "full+nope+moe"]


def test_deepseek_latent_attention_and_dense_first_layers() -> None:
    arch = model("deepseek-ai/DeepSeek-V3")
    assert kinds(arch) == ["full+dense"] * 3 + ["full+moe"] * 58
    a = attention(arch)
    assert (a.kind, a.head_dim, a.v_head_dim, a.kv_lora_rank, a.rotary_dim) == ("mla", 192, 128, 512, 64)
    ffn = arch.decoder.blocks[1].ffn
    assert isinstance(ffn, Moe)
    assert (ffn.num_experts, ffn.top_k, ffn.intermediate, ffn.shared_intermediate) == (256, 8, 2048, 2048)
    lite = model("deepseek-ai/DeepSeek-V2-Lite")
    assert attention(lite).q_lora_rank == 0
    assert tensor(lite, "model.layers.0.self_attn.q_proj.weight").shape == (3072, 2048)


def test_parallel_blocks_and_their_norms() -> None:
    cases = {
        "tiiuae/falcon-7b": (True, 1),
        "tiiuae/falcon-40b": (True, 2),
        "EleutherAI/gpt-j-6b": (True, 1),
        "EleutherAI/gpt-neox-20b": (True, 2),
        "microsoft/phi-2": (True, 1),
        "CohereForAI/c4ai-command-r-v01": (True, 1),
        "openai-community/gpt2": (False, 2),
        "THUDM/GLM-4-32B-0414": (False, 4),
    }
    for name, expected in cases.items():
        block = model(name).decoder.blocks[0]
        assert (block.parallel, block.num_norms) == expected, name


def test_rotary_part_of_the_head() -> None:
    assert attention(model("microsoft/phi-2")).rotary_dim == 32
    assert attention(model("EleutherAI/gpt-neox-20b")).rotary_dim == 24
    assert attention(model("THUDM/glm-4-9b-hf")).rotary_dim == 64
    assert attention(model("EleutherAI/gpt-j-6b")).rotary_dim == 64
    assert attention(model("openai-community/gpt2")).rotary_dim == 0
    nested = model("THUDM/glm-4-9b-hf", rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.25})
    assert attention(nested).rotary_dim == 32


def test_fused_projections_say_their_roles() -> None:
    phi = tensor(model("microsoft/phi-4"), "model.layers.0.self_attn.qkv_proj.weight")
    assert phi.splits == (("q_proj", 5120), ("k_proj", 1280), ("v_proj", 1280))
    gpt2 = tensor(model("openai-community/gpt2"), "transformer.h.0.attn.c_attn.weight")
    assert (gpt2.shape, gpt2.tp_dim) == ((768, 2304), 1)
    falcon = tensor(model("tiiuae/falcon-7b"), "transformer.h.0.self_attention.query_key_value.weight")
    assert falcon.splits == (("q_proj", 4544), ("k_proj", 64), ("v_proj", 64))


def test_dropout_comes_from_the_class_defaults() -> None:
    gpt2 = model("openai-community/gpt2")
    assert (gpt2.decoder.blocks[0].dropout, gpt2.embed_dropout, attention(gpt2).dropout) == (0.1, 0.1, 0.1)
    assert model("openai-community/gpt2", resid_pdrop=0.0).decoder.blocks[0].dropout == 0.0
    assert model("meta-llama/Llama-3.1-8B").decoder.blocks[0].dropout == 0.0


def test_minimax_mixes_linear_and_softmax_layers() -> None:
    arch = model("MiniMaxAI/MiniMax-Text-01-hf")
    assert kinds(arch) == (["linear"] * 7 + ["full"]) * 10
    recurrent = arch.decoder.blocks[0].recurrent
    assert recurrent is not None
    assert recurrent.state_elements == 64 * 128 * 128


def test_dtype_quantization_and_positions_are_carried() -> None:
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    arch = model(
        "Qwen/Qwen3-8B", torch_dtype="bfloat16", max_position_embeddings=40960, quantization_config=quantization
    )
    assert (arch.dtype, arch.max_positions, arch.quantization) == ("bfloat16", 40960, quantization)
    assert model("Qwen/Qwen3-8B", dtype="float16").dtype == "float16"
    assert model("Qwen/Qwen3-8B").dtype is None


def test_classifier_and_bare_model_heads() -> None:
    classifier = model("Qwen/Qwen2.5-0.5B", architectures=["Qwen2ForSequenceClassification"], num_labels=3)
    assert classifier.labels == 3
    assert [t.shape for t in classifier.head] == [(3, 896)]
    bare = model("mistralai/Mistral-7B-v0.1", architectures=["MistralModel"])
    assert bare.head == ()
    assert bare.num_params == 7_241_732_096 - 32000 * 4096
