"""Small configurations that turn every option and head of the hybrid, encoder and vision families."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA: dict[str, Any] = {**TEXT, "num_key_value_heads": 2}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "image_size": 28,
    "patch_size": 14,
}
SPEECH: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80,
    "vocab_size": 120,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
DISTIL: dict[str, Any] = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 120}
DEBERTA: dict[str, Any] = {
    **TEXT,
    "embedding_size": 32,
    "type_vocab_size": 2,
    "relative_attention": True,
    "share_att_key": False,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 0,
    "max_relative_positions": -1,
}
MODERN: dict[str, Any] = {
    **TEXT,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "classifier_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "norm_bias": True,
    "decoder_bias": False,
}
CLASSES = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")
ENCODERS: tuple[tuple[str, str, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "bert",
        "Bert",
        {**TEXT, "num_labels": 5},
        (*CLASSES, "ForPreTraining", "ForMultipleChoice"),
    ),
    ("bert", "Bert", TEXT, ("ForNextSentencePrediction",)),
    ("bert", "Bert", {**TEXT, "is_decoder": True}, ("LMHeadModel",)),
    ("bert", "Bert", {**TEXT, "tie_word_embeddings": False}, ("ForMaskedLM",)),
    ("roberta", "Roberta", TEXT, (*CLASSES, "ForMultipleChoice")),
    ("roberta", "Roberta", {**TEXT, "tie_word_embeddings": False}, ("ForMaskedLM",)),
    ("camembert", "Camembert", TEXT, CLASSES),
    ("distilbert", "DistilBert", DISTIL, (*CLASSES, "ForMultipleChoice")),
    ("distilbert", "DistilBert", {**DISTIL, "tie_word_embeddings": False}, ("ForMaskedLM",)),
    ("electra", "Electra", {**TEXT, "embedding_size": 32}, (*CLASSES, "ForPreTraining", "ForMultipleChoice")),
    ("deberta-v2", "DebertaV2", DEBERTA, (*CLASSES, "ForMultipleChoice")),
    ("modernbert", "ModernBert", MODERN, CLASSES),
)
OTHERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "jamba",
        "JambaForSequenceClassification",
        {**GQA, "num_experts": 4, "mamba_conv_bias": False, "mamba_proj_bias": True, "num_labels": 3},
    ),
    ("jamba", "JambaForCausalLM", {**GQA, "num_experts": 1, "mamba_dt_rank": "auto"}),
    (
        "mamba",
        "MambaForCausalLM",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "use_bias": True,
            "use_conv_bias": False,
            "tie_word_embeddings": False,
        },
    ),
    (
        "falcon_h1",
        "FalconH1ForCausalLM",
        {
            **GQA,
            "mamba_d_ssm": None,
            "mamba_n_heads": 8,
            "mamba_d_state": 16,
            "mamba_n_groups": 2,
            "mamba_rms_norm": True,
            "projectors_bias": True,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    (
        "nemotron_h",
        "NemotronHForCausalLM",
        {
            **GQA,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 2,
            "moe_latent_size": 24,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 48,
            "use_bias": True,
            "mlp_bias": True,
        },
    ),
    (
        "qwen3_next",
        "Qwen3NextForCausalLM",
        {
            **GQA,
            "num_hidden_layers": 5,
            "head_dim": 32,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "mlp_only_layers": [1],
            "attention_bias": True,
        },
    ),
    (
        "bamba",
        "BambaForCausalLM",
        {
            **GQA,
            "mamba_n_heads": 8,
            "mamba_d_state": 16,
            "attn_layer_indices": [1],
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    (
        "zamba2",
        "Zamba2ForCausalLM",
        {
            **TEXT,
            "num_hidden_layers": 6,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "hybrid", "mamba"],
            "n_mamba_heads": 4,
            "mamba_d_state": 16,
            "num_mem_blocks": 2,
            "use_shared_attention_adapter": True,
            "adapter_rank": 8,
            "add_bias_linear": True,
        },
    ),
    (
        "lfm2",
        "Lfm2ForCausalLM",
        {**GQA, "conv_bias": True, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [0]},
    ),
    (
        "kimi_linear",
        "KimiLinearForCausalLM",
        {
            **GQA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 2,
            "moe_intermediate_size": 32,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
            "attention_bias": True,
            "linear_head_dim": 16,
            "linear_num_heads": 4,
        },
    ),
    ("t5", "T5EncoderModel", {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}),
    (
        "t5",
        "T5ForConditionalGeneration",
        {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4},
    ),
    ("bart", "BartForSequenceClassification", SPEECH),
    ("whisper", "WhisperForConditionalGeneration", SPEECH),
    (
        "llava",
        "LlavaForConditionalGeneration",
        {
            "text_config": {"model_type": "llama", **GQA},
            "vision_config": SIGLIP,
            "vision_feature_layer": [-1, -2],
            "multimodal_projector_bias": False,
        },
    ),
    (
        "internvl",
        "InternVLForConditionalGeneration",
        {
            "tie_word_embeddings": False,
            "text_config": {"model_type": "qwen2", **GQA},
            "vision_config": {
                "hidden_size": 32,
                "num_attention_heads": 2,
                "num_hidden_layers": 2,
                "intermediate_size": 48,
                "image_size": [28, 56],
                "patch_size": [14, 14],
                "use_qk_norm": True,
                "norm_type": "rms_norm",
                "use_mask_token": True,
                "use_mean_pooling": False,
            },
        },
    ),
)
GEMMA4: dict[str, Any] = {"model_type": "gemma4_text", **GQA, "num_hidden_layers": 8, "head_dim": 16}
GEMMA4_MODELS: tuple[dict[str, Any], ...] = (
    {"text_config": GEMMA4},
    {"text_config": {**GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}, "vision_config": {}},
    {
        "text_config": {
            **GEMMA4,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 40,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "global_head_dim": 32,
            "attention_bias": True,
        },
        "vision_config": {"standardize": True, "use_clipped_linears": True, "num_hidden_layers": 2},
        "audio_config": {"num_hidden_layers": 2},
    },
)
VARIANTS: tuple[dict[str, Any], ...] = (
    *(
        {"model_type": kind, "architectures": [stem + tail], **base}
        for kind, stem, base, tails in ENCODERS
        for tail in tails
    ),
    *({"model_type": kind, "architectures": [name], **config} for kind, name, config in OTHERS),
    *(
        {"model_type": "gemma4", "architectures": ["Gemma4ForConditionalGeneration"], **config}
        for config in GEMMA4_MODELS
    ),
)
