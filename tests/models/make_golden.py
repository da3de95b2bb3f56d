"""Writes golden_counts.json: parameter counts of real model sizes as the transformers classes build them.

Needs torch and transformers. Models are built on the meta device, so no weights are made. The configurations hold the
keys of the public config.json of the named repositories that shape the model; run from the repository root:
``python tests/models/make_golden.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("golden_counts.json")


def cfg(
    model_type: str, layers: int, hidden: int, heads: int, kv: int, ffn: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": False,
        **more,
    }


TIED = {"tie_word_embeddings": True}
MODELS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b": cfg("llama", 32, 4096, 32, 32, 11008, 32000),
    "meta-llama/Llama-2-70b": cfg("llama", 80, 8192, 64, 8, 28672, 32000),
    "meta-llama/Llama-3.1-8B": cfg("llama", 32, 4096, 32, 8, 14336, 128256),
    "meta-llama/Llama-3.1-405B": cfg("llama", 126, 16384, 128, 8, 53248, 128256),
    "meta-llama/Llama-3.2-1B": cfg("llama", 16, 2048, 32, 8, 8192, 128256, head_dim=64, **TIED),
    "01-ai/Yi-34B": cfg("llama", 60, 7168, 56, 8, 20480, 64000),
    "HuggingFaceTB/SmolLM3-3B": cfg("smollm3", 36, 2048, 16, 4, 11008, 128256, **TIED),
    "arcee-ai/AFM-4.5B": cfg("arcee", 36, 2560, 20, 4, 18432, 128004, head_dim=128),
    "swiss-ai/Apertus-8B-2509": cfg("apertus", 32, 4096, 32, 8, 21504, 131072),
    "ByteDance-Seed/Seed-OSS-36B-Base": cfg(
        "seed_oss", 64, 5120, 80, 8, 27648, 155136, head_dim=128, attention_bias=True
    ),
    "tencent/Hunyuan-7B-Instruct": cfg("hunyuan_v1_dense", 32, 4096, 32, 8, 14336, 128167, head_dim=128, **TIED),
    "tencent/Hunyuan-A13B-Instruct": cfg(
        "hunyuan_v1_moe", 32, 4096, 32, 8, 3072, 128167, head_dim=128, num_experts=64, moe_topk=8, **TIED
    ),
    "mistralai/Mistral-7B-v0.1": cfg("mistral", 32, 4096, 32, 8, 14336, 32000, sliding_window=4096),
    "mistralai/Mistral-Nemo-Base-2407": cfg(
        "mistral", 40, 5120, 32, 8, 14336, 131072, head_dim=128, sliding_window=None
    ),
    "mistralai/Mixtral-8x7B-v0.1": cfg("mixtral", 32, 4096, 32, 8, 14336, 32000, num_local_experts=8),
    "mistralai/Mixtral-8x22B-v0.1": cfg("mixtral", 56, 6144, 48, 8, 16384, 32768, num_local_experts=8),
    "Qwen/Qwen2.5-0.5B": cfg("qwen2", 24, 896, 14, 2, 4864, 151936, **TIED),
    "Qwen/Qwen2.5-7B": cfg("qwen2", 28, 3584, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-72B": cfg("qwen2", 80, 8192, 64, 8, 29568, 152064),
    "Qwen/Qwen1.5-MoE-A2.7B": cfg(
        "qwen2_moe",
        24,
        2048,
        16,
        16,
        5632,
        151936,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
        shared_expert_intermediate_size=5632,
    ),
    "Qwen/Qwen2-57B-A14B": cfg(
        "qwen2_moe",
        28,
        3584,
        28,
        4,
        18944,
        151936,
        num_experts=64,
        num_experts_per_tok=8,
        moe_intermediate_size=2560,
        shared_expert_intermediate_size=20480,
    ),
    "Qwen/Qwen3-8B": cfg("qwen3", 36, 4096, 32, 8, 12288, 151936, head_dim=128),
    "Qwen/Qwen3-0.6B": cfg("qwen3", 28, 1024, 16, 8, 3072, 151936, head_dim=128, **TIED),
    "Qwen/Qwen3-30B-A3B": cfg(
        "qwen3_moe",
        48,
        2048,
        32,
        4,
        6144,
        151936,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    "Qwen/Qwen3-235B-A22B": cfg(
        "qwen3_moe",
        94,
        4096,
        64,
        4,
        12288,
        151936,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=1536,
    ),
    "google/gemma-2b": cfg("gemma", 18, 2048, 8, 1, 16384, 256000, head_dim=256, **TIED),
    "google/gemma-2-9b": cfg("gemma2", 42, 3584, 16, 8, 14336, 256000, head_dim=256, sliding_window=4096, **TIED),
    "google/gemma-2-27b": cfg("gemma2", 46, 4608, 32, 16, 36864, 256000, head_dim=128, sliding_window=4096, **TIED),
    "google/gemma-3-1b-it": cfg("gemma3_text", 26, 1152, 4, 1, 6912, 262144, head_dim=256, sliding_window=512, **TIED),
    "google/gemma-3-27b-it (text)": cfg(
        "gemma3_text", 62, 5376, 32, 16, 21504, 262208, head_dim=128, sliding_window=1024, **TIED
    ),
    "google/gemma-3n-E4B-it (text)": cfg(
        "gemma3n_text", 35, 2048, 8, 2, 16384, 262400, head_dim=256, num_kv_shared_layers=15, sliding_window=512, **TIED
    ),
    "microsoft/phi-2": cfg("phi", 32, 2560, 32, 32, 10240, 51200, partial_rotary_factor=0.4),
    "microsoft/Phi-3-mini-4k-instruct": cfg("phi3", 32, 3072, 32, 32, 8192, 32064, sliding_window=2047),
    "microsoft/phi-4": cfg("phi3", 40, 5120, 40, 10, 17920, 100352),
    "microsoft/Phi-3.5-MoE-instruct": cfg(
        "phimoe", 32, 4096, 32, 8, 6400, 32064, num_local_experts=16, attention_bias=True, lm_head_bias=True
    ),
    "openai-community/gpt2": {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "openai-community/gpt2-xl": {
        "model_type": "gpt2",
        "n_layer": 48,
        "n_embd": 1600,
        "n_head": 25,
        "vocab_size": 50257,
    },
    "EleutherAI/gpt-j-6b": {"model_type": "gptj", "n_layer": 28, "n_embd": 4096, "n_head": 16, "vocab_size": 50400},
    "EleutherAI/gpt-neo-2.7B": {
        "model_type": "gpt_neo",
        "num_layers": 32,
        "hidden_size": 2560,
        "num_heads": 20,
        "vocab_size": 50257,
        "attention_types": [[["global", "local"], 16]],
    },
    "EleutherAI/gpt-neox-20b": {
        "model_type": "gpt_neox",
        "num_hidden_layers": 44,
        "hidden_size": 6144,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "vocab_size": 50432,
        "tie_word_embeddings": False,
    },
    "EleutherAI/pythia-1.4b": {
        "model_type": "gpt_neox",
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "intermediate_size": 8192,
        "vocab_size": 50304,
        "tie_word_embeddings": False,
    },
    "bigcode/starcoder": {
        "model_type": "gpt_bigcode",
        "n_layer": 40,
        "n_embd": 6144,
        "n_head": 48,
        "n_inner": 24576,
        "n_positions": 8192,
        "vocab_size": 49152,
        "multi_query": True,
    },
    "bigcode/starcoder2-3b": cfg("starcoder2", 30, 3072, 24, 2, 12288, 49152, sliding_window=4096, **TIED),
    "Salesforce/codegen-2B-mono": {
        "model_type": "codegen",
        "n_layer": 32,
        "n_embd": 2560,
        "n_head": 32,
        "rotary_dim": 64,
        "vocab_size": 51200,
    },
    "tiiuae/falcon-7b": {
        "model_type": "falcon",
        "num_hidden_layers": 32,
        "hidden_size": 4544,
        "num_attention_heads": 71,
        "vocab_size": 65024,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "bias": False,
    },
    "tiiuae/falcon-40b": {
        "model_type": "falcon",
        "num_hidden_layers": 60,
        "hidden_size": 8192,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "vocab_size": 65024,
        "ffn_hidden_size": 32768,
        "new_decoder_architecture": True,
        "tie_word_embeddings": False,
    },
    "mosaicml/mpt-7b": {"model_type": "mpt", "n_layers": 32, "d_model": 4096, "n_heads": 32, "vocab_size": 50432},
    "bigscience/bloom-7b1": {
        "model_type": "bloom",
        "n_layer": 30,
        "hidden_size": 4096,
        "n_head": 32,
        "vocab_size": 250880,
    },
    "facebook/opt-350m": {
        "model_type": "opt",
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "ffn_dim": 4096,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
        "vocab_size": 50272,
    },
    "facebook/opt-6.7b": {
        "model_type": "opt",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "ffn_dim": 16384,
        "word_embed_proj_dim": 4096,
        "vocab_size": 50272,
    },
    "allenai/OLMo-7B-hf": cfg("olmo", 32, 4096, 32, 32, 11008, 50304),
    "allenai/OLMo-2-1124-7B": cfg("olmo2", 32, 4096, 32, 32, 11008, 100352),
    "allenai/Olmo-3-1025-7B": cfg("olmo3", 32, 4096, 32, 32, 11008, 100278, sliding_window=4096),
    "allenai/OLMoE-1B-7B-0924": cfg("olmoe", 16, 2048, 16, 16, 1024, 50304, num_experts=64, num_experts_per_tok=8),
    "ibm-granite/granite-3.1-8b-base": cfg("granite", 40, 4096, 32, 8, 12800, 49155, **TIED),
    "ibm-granite/granite-3.1-3b-a800m-base": cfg(
        "granitemoe", 32, 1536, 24, 8, 512, 49155, num_local_experts=40, num_experts_per_tok=8, **TIED
    ),
    "stabilityai/stablelm-3b-4e1t": cfg("stablelm", 32, 2560, 32, 32, 6912, 50304),
    "stabilityai/stablelm-2-12b": cfg(
        "stablelm", 40, 5120, 32, 8, 13824, 100352, qk_layernorm=True, use_parallel_residual=True
    ),
    "THUDM/glm-4-9b-hf": cfg("glm", 40, 4096, 32, 2, 13696, 151552, head_dim=128, attention_bias=True),
    "THUDM/GLM-4-32B-0414": cfg("glm4", 61, 6144, 48, 2, 23040, 151552, head_dim=128, attention_bias=False),
    "zai-org/GLM-4.5-Air": cfg(
        "glm4_moe",
        46,
        4096,
        96,
        8,
        10944,
        151552,
        head_dim=128,
        attention_bias=True,
        use_qk_norm=False,
        n_routed_experts=128,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
    ),
    "zai-org/GLM-4.5": cfg(
        "glm4_moe",
        92,
        5120,
        96,
        8,
        12288,
        151552,
        head_dim=128,
        attention_bias=True,
        use_qk_norm=True,
        n_routed_experts=160,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=1536,
        first_k_dense_replace=3,
    ),
    "CohereForAI/c4ai-command-r-v01": cfg("cohere", 40, 8192, 64, 64, 22528, 256000, **TIED),
    "CohereForAI/c4ai-command-r-plus": cfg("cohere", 64, 12288, 96, 8, 33792, 256000, use_qk_norm=True, **TIED),
    "CohereForAI/c4ai-command-r7b-12-2024": cfg(
        "cohere2", 32, 4096, 32, 8, 14336, 256000, head_dim=128, sliding_window=4096, **TIED
    ),
    "databricks/dbrx-base": {
        "model_type": "dbrx",
        "d_model": 6144,
        "n_heads": 48,
        "n_layers": 40,
        "vocab_size": 100352,
        "tie_word_embeddings": False,
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500000},
        "ffn_config": {"ffn_hidden_size": 10752, "hidden_size": 6144, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "deepseek-ai/DeepSeek-V2-Lite": cfg(
        "deepseek_v2",
        27,
        2048,
        16,
        16,
        10944,
        102400,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
    ),
    "deepseek-ai/DeepSeek-V2": cfg(
        "deepseek_v2",
        60,
        5120,
        128,
        128,
        12288,
        102400,
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=160,
        n_shared_experts=2,
        num_experts_per_tok=6,
        moe_intermediate_size=1536,
        first_k_dense_replace=1,
    ),
    "deepseek-ai/DeepSeek-V3": cfg(
        "deepseek_v3",
        61,
        7168,
        128,
        128,
        18432,
        129280,
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        first_k_dense_replace=3,
        num_nextn_predict_layers=1,
    ),
    "openai/gpt-oss-20b": cfg(
        "gpt_oss", 24, 2880, 64, 8, 2880, 201088, head_dim=64, num_local_experts=32, num_experts_per_tok=4
    ),
    "openai/gpt-oss-120b": cfg(
        "gpt_oss", 36, 2880, 64, 8, 2880, 201088, head_dim=64, num_local_experts=128, num_experts_per_tok=4
    ),
    "meta-llama/Llama-4-Scout-17B-16E (text)": cfg(
        "llama4_text",
        48,
        5120,
        40,
        8,
        8192,
        202048,
        head_dim=128,
        intermediate_size_mlp=16384,
        num_local_experts=16,
        interleave_moe_layer_step=1,
    ),
    "meta-llama/Llama-4-Maverick-17B-128E (text)": cfg(
        "llama4_text",
        48,
        5120,
        40,
        8,
        8192,
        202048,
        head_dim=128,
        intermediate_size_mlp=16384,
        num_local_experts=128,
        interleave_moe_layer_step=2,
    ),
    "MiniMaxAI/MiniMax-Text-01-hf": cfg(
        "minimax",
        80,
        6144,
        64,
        8,
        9216,
        200064,
        head_dim=128,
        num_local_experts=32,
        num_experts_per_tok=2,
        layer_types=(["linear_attention"] * 7 + ["full_attention"]) * 10,
    ),
    "MiniMaxAI/MiniMax-M2": cfg(
        "minimax_m2", 62, 3072, 48, 8, 1536, 200064, head_dim=128, num_local_experts=256, num_experts_per_tok=8
    ),
    "nvidia/Minitron-8B-Base": cfg("nemotron", 32, 4096, 48, 8, 16384, 256000, head_dim=128),
    "nvidia/Nemotron-4-340B (hf)": cfg("nemotron", 96, 18432, 96, 8, 73728, 256000, head_dim=192),
    "baidu/ERNIE-4.5-0.3B-PT": cfg("ernie4_5", 18, 1024, 16, 2, 3072, 103424, head_dim=128, **TIED),
    "baidu/ERNIE-4.5-21B-A3B-PT": cfg(
        "ernie4_5_moe",
        28,
        2560,
        20,
        4,
        12288,
        103424,
        moe_num_experts=64,
        moe_k=6,
        moe_num_shared_experts=2,
        moe_intermediate_size=1536,
        moe_layer_start_index=1,
        moe_layer_end_index=27,
        moe_layer_interval=1,
        **TIED,
    ),
    "LGAI-EXAONE/EXAONE-4.0-32B": cfg(
        "exaone4", 64, 5120, 40, 8, 27392, 102400, head_dim=128, sliding_window=4096, sliding_window_pattern=4
    ),
    "rednote-hilab/dots.llm1.base": cfg(
        "dots1",
        62,
        4096,
        32,
        32,
        10944,
        152064,
        head_dim=128,
        n_routed_experts=128,
        n_shared_experts=2,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        first_k_dense_replace=1,
    ),
    "internlm/internlm3-8b-instruct": cfg("internlm3", 48, 4096, 32, 2, 10240, 128512, head_dim=128),
    "kyutai/helium-1-preview-2b": cfg("helium", 24, 2560, 20, 20, 7040, 48000, head_dim=128),
    "openbmb/MiniCPM3-4B": cfg(
        "minicpm3",
        62,
        2560,
        40,
        40,
        6400,
        73448,
        kv_lora_rank=256,
        q_lora_rank=768,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        **TIED,
    ),
}


def build(config: dict[str, Any]) -> Any:
    """The transformers module of a configuration on the meta device."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    stated = {k: v for k, v in config.items() if k != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]](**stated))


def main() -> None:
    import transformers

    rows = []
    for model, config in MODELS.items():
        params = sum(p.numel() for p in build(config).parameters())
        rows.append({"model": model, "params": params, "config": config})
        print(f"{params:>16,}  {model}")  # noqa: T201
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    source = f"transformers {transformers.__version__} classes on the meta device"
    OUT.write_text(f'{{\n"source": {json.dumps(source)},\n"models": [\n{lines}\n]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
