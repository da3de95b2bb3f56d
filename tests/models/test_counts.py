"""Parameter counts: real sizes against the transformers classes' counts (golden data), totals that owners published."""

import json
from pathlib import Path
from typing import Any

import pytest

from memfit.models import Architecture, Moe, architecture

HERE = Path(__file__).parent


def rows(name: str) -> list[Any]:
    models = json.loads((HERE / name).read_text("utf-8"))["models"]
    return [pytest.param(row["config"], row["params"], id=row["model"]) for row in models]


GOLDEN = rows("golden_counts.json")
PUBLISHED = rows("published_counts.json")


def config_of(model: str) -> dict[str, Any]:
    return next(p.values[0] for p in GOLDEN if p.id == model)


@pytest.mark.parametrize(("config", "params"), GOLDEN)
def test_count_equals_the_transformers_class(config: dict[str, Any], params: int) -> None:
    assert architecture(config).num_params == params


@pytest.mark.parametrize(("config", "params"), PUBLISHED)
def test_count_equals_the_published_total(config: dict[str, Any], params: int) -> None:
    assert architecture(config).num_params == params


@pytest.mark.parametrize(("config", "params"), GOLDEN + PUBLISHED)
def test_tensors_blocks_and_total_are_one_account(config: dict[str, Any], params: int) -> None:
    arch = architecture(config)
    tensors = list(arch.tensors())
    assert sum(t.numel for t in tensors if not t.buffer) == params
    names = [t.name for t in tensors]
    assert len(set(names)) == len(names)
    stack = arch.decoder
    kinds = [b.kind for b in stack.blocks]
    assert len(set(kinds)) == len(kinds)
    assert set(stack.layout) == set(range(len(kinds)))
    for t in tensors:
        assert min(t.shape) >= 1
        assert ("*" in t.name) == (t.count > 1)
        assert t.expert == (t.part == "expert")
        if t.splits:
            assert sum(size for _, size in t.splits) in t.shape
        if t.linear:
            assert len(t.shape) == 2
            assert t.name.endswith(".weight")
        if t.tp_dim is not None:
            assert t.tp_dim < len(t.shape)
    for block in stack.blocks:
        moe = block.ffn if isinstance(block.ffn, Moe) else None
        assert {t.count for t in block.tensors if t.expert} == ({moe.num_experts} if moe else set())


def test_deepseek_v3_with_and_without_what_transformers_leaves_out() -> None:
    arch = architecture(config_of("deepseek-ai/DeepSeek-V3"))
    buffers = sum(t.numel for t in arch.tensors() if t.buffer)
    assert arch.num_params == 671_026_404_352
    assert arch.num_params + buffers == 671_026_419_200  # with the routing biases, as checkpoints count
    assert arch.mtp is not None
    # the checkpoint's 685B: main model, one more routed layer with projection and norms, copies of embedding and head
    routed = arch.decoder.blocks[1].num_params
    assert arch.mtp.num_params == routed + 2 * 7168 * 7168 + 3 * 7168
    copies = 2 * 129280 * 7168
    assert round((arch.num_params + arch.mtp.num_params + copies) / 1e9, 1) == 684.5
    assert arch.mtp.num_layers == 1


def test_mimo_with_its_stored_next_token_layer() -> None:
    config = {
        "model_type": "mimo",
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 11008,
        "vocab_size": 151680,
        "num_nextn_predict_layers": 1,
    }
    arch = architecture(config)
    assert arch.mtp is not None
    assert arch.num_params + arch.mtp.num_params == 7_833_409_536  # safetensors index of XiaomiMiMo/MiMo-7B-Base


def without_embedding(arch: Architecture) -> int:
    return arch.active_params - sum(t.numel for t in arch.embeddings)


@pytest.mark.parametrize(
    ("model", "billions", "embedding"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", 12.9, True),  # Mixtral paper: 13B active of 47B
        ("mistralai/Mixtral-8x22B-v0.1", 39.2, True),  # release note: 39B active of 141B
        ("deepseek-ai/DeepSeek-V3", 36.6, False),  # report: 37B active
        ("deepseek-ai/DeepSeek-V2", 20.9, False),  # report: 21B active
        ("Qwen/Qwen3-30B-A3B", 3.4, True),  # model card: 3.3B active
        ("Qwen/Qwen3-235B-A22B", 22.2, True),  # model card: 22B active
        ("openai/gpt-oss-120b", 5.1, False),  # model card: 5.13B active, embedding not counted
        ("openai/gpt-oss-20b", 3.6, False),  # model card: 3.61B active, embedding not counted
        ("databricks/dbrx-base", 36.5, True),  # release note: 36B active of 132B
        ("zai-org/GLM-4.5-Air", 13.4, True),  # report: 12B active of 106B, without embeddings 12.2B
    ],
)
def test_active_parameters(model: str, billions: float, embedding: bool) -> None:
    arch = architecture(config_of(model))
    active = arch.active_params if embedding else without_embedding(arch)
    assert round(active / 1e9, 1) == billions


def test_dense_models_use_all_their_parameters() -> None:
    arch = architecture(config_of("meta-llama/Llama-3.1-8B"))
    assert arch.active_params == arch.num_params == 8_030_261_248
