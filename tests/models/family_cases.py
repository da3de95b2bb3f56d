"""Small configurations of each family for the comparison with the transformers classes; the rest is default."""

from __future__ import annotations

from typing import Any

GQA = {"num_key_value_heads": 8}
FALCON_40B = {"new_decoder_architecture": True, "num_attention_heads": 64, "hidden_size": 4096, "num_kv_heads": 8}
# Families whose class defaults build as they are, with this many layers.
PLAIN = [
    "arcee",
    "jais2",
    "apertus",
    "seed_oss",
    "smollm3",
    "helium",
    "cwm",
    "bitnet",
    "diffllama",
    "ernie4_5",
    "nanochat",
    "mistral",
    "ministral3",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "vaultgemma",
    "phi3",
    "olmo",
    "olmo2",
    "olmo3",
    "granite",
    "exaone4",
    "glm",
    "glm4",
    "cohere2",
    "internlm3",
    "minicpm3",
    "youtu",
    "gpt2",
    "gptj",
    "codegen",
    "starcoder2",
    "gpt_neox",
    "persimmon",
    "bloom",
    "mpt",
    "mixtral",
    "minimax",
    "minimax_m2",
    "qwen3_moe",
    "olmoe",
    "flex_olmo",
    "granitemoe",
    "exaone_moe",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "solar_open",
    "hy_v3",
    "gpt_oss",
]
SMALL: dict[str, list[dict[str, Any]]] = {
    "llama": [{"attention_bias": True, "mlp_bias": True, **GQA}, {"tie_word_embeddings": True, "head_dim": 96}],
    "gemma3_text": [{"num_hidden_layers": 7}],
    "hunyuan_v1_dense": [{"head_dim": 128}],
    "hunyuan_v1_moe": [{"head_dim": 128, "num_experts": 4, "moe_topk": 2}],
    "nemotron": [{"head_dim": 128, **GQA}],
    "ministral": [{"head_dim": 128, **GQA}],
    "dbrx": [
        {
            "n_layers": 2,
            "attn_config": {"kv_n_heads": 8, "rope_theta": 1e4, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 2048},
        }
    ],
    "gpt_neo": [{"num_layers": 4, "attention_types": [[["global", "local"], 2]]}],
    "gemma3n_text": [{"num_hidden_layers": 10, "num_kv_shared_layers": 5}],
    "deepseek_v2": [
        {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
        {"num_experts_per_tok": 6, "q_lora_rank": None, "attention_bias": True},
    ],
    "deepseek_v3": [{"num_hidden_layers": 5}],
    "dots1": [{"n_shared_experts": 2, "n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1}],
    "falcon": [
        {},
        FALCON_40B,
        {**FALCON_40B, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False},
        {"parallel_attn": False, "multi_query": False, "bias": True, "hidden_size": 1024, "num_attention_heads": 16},
    ],
    "opt": [
        {},
        {"word_embed_proj_dim": 512, "do_layer_norm_before": False},
        {"enable_bias": False, "layer_norm_elementwise_affine": False},
    ],
    "stablelm": [
        {},
        {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True, "num_key_value_heads": 4},
    ],
    "cohere": [{}, {"use_qk_norm": True, "attention_bias": True, **GQA}],
    "phi": [{}, {"qk_layernorm": True}],
    "phimoe": [{"lm_head_bias": True, "attention_bias": True}],
    "gpt_bigcode": [{}, {"multi_query": False}],
    "gpt_neox": [{"attention_bias": False}],
    "granitemoeshared": [{}, {"shared_intermediate_size": 1024}],
    "ernie4_5_moe": [{}, {"use_bias": True, "tie_word_embeddings": False}],
    "llama4_text": [{}, {"interleave_moe_layer_step": 2}],
    "glm4_moe": [{"use_qk_norm": True, "head_dim": 128, "attention_bias": True}],
    "qwen2_moe": [{"decoder_sparse_step": 2}, {"mlp_only_layers": [0]}],
}


def cases() -> list[tuple[str, dict[str, Any]]]:
    """(model_type, keys) of every case."""
    plain = {name: [{}] for name in PLAIN}
    return [(family, keys) for family, variants in {**plain, **SMALL}.items() for keys in variants]
