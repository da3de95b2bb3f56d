"""Hybrids, encoders and vision models: parameter counts against the transformers classes, and what the fields say."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from memfit.errors import ConfigError
from memfit.models import Architecture, Moe, architecture

HERE = Path(__file__).parent
MODELS: dict[str, dict[str, Any]] = json.loads((HERE / "configs_hybrid.json").read_text("utf-8"))["models"]
GOLDEN: dict[str, int] = json.loads((HERE / "golden_counts_hybrid.json").read_text("utf-8"))["parameters"]
FIRST_OF_CLASS = {
    (e["config"]["model_type"], e["config"]["architectures"][0]): name for name, e in reversed(MODELS.items())
}
MIB = 1 << 20


def read(name: str) -> Architecture:
    return architecture(MODELS[name]["config"])


def state_bytes(model: Architecture, *, itemsize: int = 4) -> int:
    """Recurrent and convolution state of one sequence."""
    total = 0
    for index in model.decoder.layout:
        r = model.decoder.blocks[index].recurrent
        if r is not None:
            total += r.state_elements + max(r.conv_kernel - 1, 0) * r.conv_dim
    return total * itemsize


def kv_elements(model: Architecture) -> int:
    """Cached k and v elements of one token over all layers (latent attention: the latent)."""
    total = 0
    for index in model.decoder.layout:
        a = model.decoder.blocks[index].attention
        if a is None or a.cross:
            continue
        total += (
            a.kv_lora_rank + a.qk_rope_head_dim if a.kind == "mla" else a.num_kv_heads * (a.head_dim + a.v_head_dim)
        )
    return total


def test_every_model_has_its_golden_count() -> None:
    assert MODELS.keys() == GOLDEN.keys()


@pytest.mark.parametrize("name", MODELS)
def test_count_equals_the_transformers_class(name: str) -> None:
    model = read(name)
    assert model.num_params == GOLDEN[name]
    assert model.num_params == sum(t.numel for t in model.tensors() if not t.buffer)
    if (published := MODELS[name].get("published")) is not None:
        assert model.num_params == published


@pytest.mark.parametrize("name", MODELS)
def test_tensors_and_blocks_are_well_formed(name: str) -> None:
    model = read(name)
    names = [t.name for t in model.tensors()]
    assert len(names) == len(set(names))
    for stack in (model.decoder, *model.towers):
        assert set(stack.layout) == set(range(len(stack.blocks)))
        kinds = [b.kind for b in stack.blocks]
        assert len(kinds) == len(set(kinds))
        for block in stack.blocks:
            # a zamba2 hybrid layer runs norms of the shared block, which it does not hold
            held = sum(t.part == "norm" and math.prod(t.shape) == stack.hidden_size for t in block.tensors)
            assert held or block.kind == "full|mamba"
            assert block.attention or block.recurrent or block.ffn
    for tensor in model.tensors():
        assert not tensor.linear or len(tensor.shape) == 2
        assert tensor.tp_dim is None or tensor.tp_dim < len(tensor.shape)
        assert not tensor.splits or sum(n for _, n in tensor.splits) == tensor.shape[0]


def test_recurrent_state_matches_what_was_measured() -> None:
    # llama.cpp prints 149.62 MiB of f32 state for the 27B gated-delta-net hybrid, whatever the context
    model = read("Qwen/Qwen3.5-27B text")
    assert round(state_bytes(model) / MIB, 1) == 149.6
    block = model.decoder.blocks[0]
    assert block.recurrent is not None
    assert (block.recurrent.kind, block.recurrent.state_elements) == ("gdn", 48 * 128 * 128)
    assert block.recurrent.conv_dim == 2 * 16 * 128 + 48 * 128


@pytest.mark.parametrize(
    ("name", "kind", "state", "conv_dim"),
    [
        ("state-spaces/mamba-2.8b-hf", "mamba1", 5120 * 16, 5120),
        ("mistralai/Mamba-Codestral-7B-v0.1", "mamba2", 128 * 64 * 128, 8192 + 2 * 8 * 128),
        ("tiiuae/Falcon-H1-7B-Base", "mamba2", 24 * 128 * 256, 3072 + 2 * 256),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", "kda", 32 * 128 * 128, 3 * 32 * 128),
        ("LiquidAI/LFM2-1.2B", "conv", 0, 2048),
    ],
)
def test_state_sizes(name: str, kind: str, state: int, conv_dim: int) -> None:
    r = read(name).decoder.blocks[0].recurrent
    assert r is not None
    assert (r.kind, r.state_elements, r.conv_dim) == (kind, state, conv_dim)


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("ai21labs/Jamba-v0.1", 4 * 2 * 8 * 128),
        ("nvidia/Nemotron-H-8B-Base-8K", 4 * 2 * 8 * 128),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 12 * 2 * 2 * 256),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 7 * (512 + 64)),
        ("state-spaces/mamba-2.8b-hf", 0),
        ("Zyphra/Zamba2-1.2B", 6 * 2 * 32 * 128),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", 32 * 2 * 8 * 128),
        ("google/gemma-3-27b-it", 62 * 2 * 16 * 128),
    ],
)
def test_kv_elements_per_token(name: str, elements: int) -> None:
    assert kv_elements(read(name)) == elements


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 3.87),
        ("ai21labs/Jamba-v0.1", 12.11),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 3.58),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", 3.48),
        ("LiquidAI/LFM2-8B-A1B", 1.56),
    ],
)
def test_active_parameters(name: str, billions: float) -> None:
    assert round(read(name).active_params / 1e9, 2) == billions


def test_bert_for_classification_without_class_defaults() -> None:
    # the shape of a published benchmark: 335.1 M of BERT-large and a classifier of two
    model = architecture(
        {
            "architectures": ["BertForSequenceClassification"],
            "model_type": "bert",
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 64,
            "intermediate_size": 4096,
            "vocab_size": 30522,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
        }
    )
    assert model.num_params == 335_141_888 + 2 * 1024 + 2
    assert (model.labels, model.tied, model.causal) == (2, False, False)
    assert model.decoder.name == "encoder"
    assert model.decoder.blocks[0].dropout == 0.1


def test_encoder_without_a_class_is_bare_and_says_so() -> None:
    config = {k: v for k, v in MODELS["google-bert/bert-base-uncased"]["config"].items() if k != "architectures"}
    model = architecture(config)
    assert model.head == ()
    assert not model.tied
    assert any("architectures" in note for note in model.unknowns)


def test_t5_decides_tying_by_configuration() -> None:
    tied, own = read("google-t5/t5-base"), read("google/flan-t5-base")
    assert tied.tied
    assert not tied.head
    assert not own.tied
    assert own.head[0].shape == (32128, 768)
    (encoder,) = tied.towers
    assert encoder.name == "encoder"
    cross = tied.decoder.blocks[0].cross
    assert cross is not None
    assert cross.cross
    assert not cross.causal
    assert encoder.blocks[0].cross is None


def test_parallel_hybrid_has_both_mixers() -> None:
    (block,) = read("tiiuae/Falcon-H1-7B-Base").decoder.blocks
    assert block.attention is not None
    assert block.recurrent is not None


def test_nemotron_blocks_hold_one_mixer_each() -> None:
    model = read("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    for block in model.decoder.blocks:
        assert sum(x is not None for x in (block.attention, block.recurrent, block.ffn)) == 1
    assert model.decoder.counts() == (23, 23, 6)


def test_prediction_layers_are_kept_apart() -> None:
    model = read("Qwen/Qwen3.5-35B-A3B")
    assert model.mtp is not None
    assert model.mtp.num_layers == 1
    assert isinstance(model.mtp.blocks[0].ffn, Moe)
    without = architecture({**MODELS["Qwen/Qwen3-Next-80B-A3B-Instruct"]["config"]})
    assert without.mtp is None
    stated = architecture({**MODELS["Qwen/Qwen3-Next-80B-A3B-Instruct"]["config"], "mtp_num_hidden_layers": 1})
    assert stated.mtp is not None
    assert stated.num_params == without.num_params
    # the checkpoint on the hub holds 81.3 B parameters, prediction layer included
    assert round((stated.num_params + stated.mtp.num_params) / 1e9, 1) == 81.3


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("llava-hf/llava-1.5-7b-hf", 577),
        ("llava-hf/llava-v1.6-mistral-7b-hf", 5 * 577),
        ("google/gemma-3-4b-it", 64 * 64),
        ("google/paligemma-3b-pt-224", 256),
        ("OpenGVLab/InternVL3-8B-hf", 1025),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", 4 * 1608),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 577),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", 110 * 110),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 4 * 1280),
    ],
)
def test_tokens_of_a_tower(name: str, tokens: int) -> None:
    tower = read(name).towers[0]
    assert (tower.name, tower.tokens) == ("vision", tokens)
    assert all(b.attention is not None and not b.attention.causal for b in tower.blocks)


def test_vision_window_and_cross_attention_fields() -> None:
    blocks = {b.kind: b for b in read("Qwen/Qwen2.5-VL-7B-Instruct").towers[0].blocks}
    windowed = blocks["vision+window"].attention
    assert windowed is not None
    assert windowed.window == 64  # 112 pixels a side: 4 x 4 merged patches of 2 x 2
    crossing = next(b for b in read("meta-llama/Llama-3.2-11B-Vision").decoder.blocks if b.kind == "cross")
    assert crossing.attention is not None
    assert crossing.attention.cross


def test_text_part_decides_over_missing_top_keys() -> None:
    config = json.loads(json.dumps(MODELS["OpenGVLab/InternVL3-8B-hf"]["config"]))
    del config["tie_word_embeddings"]
    assert architecture(config).num_params == GOLDEN["OpenGVLab/InternVL3-8B-hf"]
    del config["text_config"]["tie_word_embeddings"]
    assert not architecture(config).tied
    config["dtype"] = "bfloat16"
    assert architecture(config).dtype == "bfloat16"


def test_gemma3_without_vision_part_is_the_text_model() -> None:
    config = {k: v for k, v in MODELS["google/gemma-3-4b-it"]["config"].items() if k != "vision_config"}
    model = architecture(config)
    assert model.towers == ()
    assert any("vision_config" in note for note in model.unknowns)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("nvidia/Nemotron-H-8B-Base-8K", {"hybrid_override_pattern": "MXM"}, "hybrid_override_pattern"),
        ("nvidia/Nemotron-H-8B-Base-8K", {"hybrid_override_pattern": None}, "hybrid_override_pattern"),
        ("ai21labs/Jamba-v0.1", {"attn_layer_period": 0}, "attn_layer_period"),
        ("ai21labs/Jamba-v0.1", {"mamba_dt_rank": "much"}, "mamba_dt_rank"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"layer_types": ["full_attention"]}, "layer_types"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"num_experts_per_tok": 513}, "num_experts_per_tok"),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", {"num_hidden_layers": 26}, "linear_attn_config"),
        ("moonshotai/Kimi-Linear-48B-A3B-Instruct", {"linear_attn_config": [1]}, "linear_attn_config"),
        ("llava-hf/llava-1.5-7b-hf", {"vision_config": {"model_type": "sam"}}, "sam"),
        ("llava-hf/llava-1.5-7b-hf", {"text_config": {"model_type": "abacus"}}, "abacus"),
        ("OpenGVLab/InternVL3-8B-hf", {"vision_config": {"num_attention_heads": 7}}, "7 heads"),
        ("google-t5/t5-base", {"num_heads": -1}, "num_"),
        ("google-t5/t5-base", {"num_decoder_layers": 1 << 27}, "num_decoder_layers"),
        ("facebook/bart-large", {"decoder_attention_heads": 7}, "7 heads"),
        ("openai/whisper-large-v3", {"encoder_layers": "many"}, "encoder_layers"),
        ("tiiuae/Falcon-H1-7B-Base", {"mamba_n_heads": 7}, "mamba_n_heads"),
        ("Zyphra/Zamba2-2.7B", {"layers_block_type": ["lion"]}, "layers_block_type"),
        ("Zyphra/Zamba2-2.7B", {"num_attention_heads": 7, "num_key_value_heads": 7}, "7 heads"),
    ],
)
def test_bad_values_name_the_key(name: str, change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        architecture({**MODELS[name]["config"], **change})


BAD: tuple[Any, ...] = (
    None, 0, -1, 1, 7, 2.5, True, False, "x", "", [], [1], [-1], ["a"], {}, {"a": 1}, 10**30, 1 << 27, [[1, 2]], "auto",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(FIRST_OF_CLASS.values()))
def test_any_bad_value_gives_a_reading_or_one_clear_error(name: str) -> None:
    config = MODELS[name]["config"]
    parts = [(), *((k,) for k, v in config.items() if isinstance(v, dict))]
    for path in parts:
        inner = config[path[0]] if path else config
        for key in (*inner, None):
            for bad in BAD:
                changed = {k: v for k, v in inner.items() if k != key}
                if key is not None and bad is not None:
                    changed[key] = bad
                whole = {**config, path[0]: changed} if path else changed
                try:
                    model = architecture(whole)
                except ConfigError:
                    pass  # any other exception fails the test
                else:
                    assert model.num_params > 0
                if key is None:
                    break


def normal(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n != 1))


def shapes(model: Architecture) -> Counter[tuple[int, ...]]:
    """As the golden script counts a class: fused expert projections taken apart, sizes of one dropped, sorted."""
    found: Counter[tuple[int, ...]] = Counter()
    for tensor in model.tensors():
        if tensor.buffer:
            continue
        if tensor.expert and tensor.splits:
            for _, rows in tensor.splits:
                found[normal((rows, *tensor.shape[1:]))] += tensor.count
        else:
            found[normal(tensor.shape)] += tensor.count
    return found


@pytest.fixture(scope="module")
def golden_script() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    sys.path.insert(0, str(HERE))
    try:
        import make_golden_hybrid
    finally:
        sys.path.remove(str(HERE))
    return make_golden_hybrid


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", sorted(FIRST_OF_CLASS.values()))
def test_real_sizes_against_the_class_on_meta(name: str, golden_script: Any) -> None:
    entry = MODELS[name]
    model = golden_script.build(entry["config"], untied=entry.get("untied", False))
    ours = read(name)
    assert ours.num_params == sum(p.numel() for p in model.parameters())
    assert shapes(ours) == golden_script.shapes(model)
    theirs = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    listed = {t.name for t in ours.tensors() if not t.buffer and "*" not in t.name}
    assert listed <= theirs


def variants() -> list[Any]:
    sys.path.insert(0, str(HERE))
    try:
        from variants_hybrid import VARIANTS
    finally:
        sys.path.remove(str(HERE))
    return [pytest.param(v, id=f"{i}-{v['architectures'][0]}") for i, v in enumerate(VARIANTS)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("config", variants())
def test_options_and_heads_against_the_class_on_meta(config: dict[str, Any], golden_script: Any) -> None:
    model = golden_script.build(config)
    ours = architecture(config)
    assert ours.num_params == sum(p.numel() for p in model.parameters())
    assert shapes(ours) == golden_script.shapes(model)


@pytest.mark.parametrize("config", variants())
def test_options_and_heads_read_without_torch(config: dict[str, Any]) -> None:
    model = architecture(config)
    assert model.num_params > 0
    assert model.model_type == config["model_type"]
