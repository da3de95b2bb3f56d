"""Bytes that a token costs in the cache, exactly."""

import json
from pathlib import Path
from typing import Any

import pytest

from memfit.models import Architecture, architecture
from memfit.models.cache import kv_bytes, kv_bytes_per_token, kv_elements_per_token, state_elements

ROWS = json.loads((Path(__file__).parent / "golden_counts.json").read_text("utf-8"))["models"]
CONFIGS: dict[str, dict[str, Any]] = {row["model"]: row["config"] for row in ROWS}


def model(name: str) -> Architecture:
    return architecture(CONFIGS[name])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.1-8B", 131_072),
        ("Qwen/Qwen2.5-7B", 57_344),
        ("mistralai/Mixtral-8x7B-v0.1", 131_072),
        ("deepseek-ai/DeepSeek-V3", 576 * 2 * 61),
        ("deepseek-ai/DeepSeek-V2-Lite", 576 * 2 * 27),
        ("tiiuae/falcon-7b", 2 * 64 * 2 * 32),
        ("microsoft/phi-2", 2 * 32 * 80 * 2 * 32),
        ("openai/gpt-oss-20b", 2 * 8 * 64 * 2 * 24),
        ("google/gemma-3-27b-it (text)", 2 * 16 * 128 * 2 * 62),
    ],
)
def test_bytes_per_token_in_16_bit(name: str, expected: int) -> None:
    assert kv_bytes_per_token(model(name)) == expected
    assert kv_bytes_per_token(model(name), 1) * 2 == expected
    assert kv_bytes(model(name), 1) == expected


def test_sliding_layers_stop_at_their_window() -> None:
    gemma = model("google/gemma-3-27b-it (text)")
    per_layer = 2 * 16 * 128 * 2
    assert kv_bytes(gemma, 1024) == 1024 * per_layer * 62
    assert kv_bytes(gemma, 131_072) == per_layer * (10 * 131_072 + 52 * 1024)
    oss = model("openai/gpt-oss-120b")
    assert kv_bytes(oss, 8192) == 2 * 8 * 64 * 2 * (18 * 8192 + 18 * 128)


def test_shared_caches_cost_nothing() -> None:
    blocks = {b.kind: b for b in kv_elements_per_token(model("google/gemma-3n-E4B-it (text)"))}
    assert blocks["full+shared-kv"].per_token == 0
    assert blocks["full"].per_token == 2 * 2 * 256
    assert sum(b.layers for b in blocks.values()) == 35


def test_linear_layers_keep_a_state_instead() -> None:
    minimax = model("MiniMaxAI/MiniMax-Text-01-hf")
    assert kv_bytes_per_token(minimax) == 10 * 2 * 8 * 128 * 2
    assert state_elements(minimax) == (70 * 64 * 128 * 128, 0)


def test_gated_delta_net_hybrid() -> None:
    # Qwen/Qwen3-Next-80B-A3B-Instruct, config.json
    config = {
        "model_type": "qwen3_next",
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "intermediate_size": 5120,
        "vocab_size": 151936,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "full_attention_interval": 4,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
    }
    arch = architecture(config)
    assert kv_bytes_per_token(arch) == 12 * 2 * 2 * 256 * 2
    state, conv = state_elements(arch)
    assert state == 36 * 32 * 128 * 128
    assert conv == 36 * 3 * (2 * 16 * 128 + 32 * 128)
