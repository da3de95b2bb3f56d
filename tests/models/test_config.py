"""Configurations as people have them: files, folders, missing keys, other names, and every way to be wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from memfit.errors import ConfigError, InputFileError, MemfitError, UnknownNameError
from memfit.models import architecture, model_type_of
from memfit.models.config import MAX_FILE_BYTES, class_defaults
from memfit.models.families import FAMILIES, reader

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
}
DEEPSEEK: dict[str, Any] = {"model_type": "deepseek_v3"}


def test_file_folder_text_and_mapping_agree(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA), encoding="utf-8")
    expected = architecture(LLAMA)
    assert architecture(file) == architecture(tmp_path) == architecture(str(tmp_path)) == expected
    assert architecture(json.dumps(LLAMA)) is expected  # read once


def test_every_family_in_the_table_can_be_imported() -> None:
    for model_type in FAMILIES:
        assert callable(reader(model_type))


def test_stated_nothing_is_the_class_default_and_said() -> None:
    arch = architecture({"model_type": "llama"})
    assert arch.num_params == 6_738_415_616
    assert any("`hidden_size` is not stated: 4096" in note for note in arch.unknowns)
    assert architecture(LLAMA).unknowns == ()


def test_family_without_class_names_the_missing_key() -> None:
    with pytest.raises(ConfigError, match=r"`chatglm` lacks `hidden_size`"):
        architecture({"model_type": "chatglm"})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["LlamaForCausalLM"], "llama"),
        (["GPT2LMHeadModel"], "gpt2"),
        (["GPTNeoXForCausalLM"], "gpt_neox"),
        (["Qwen3MoeForCausalLM"], "qwen3_moe"),
        (["DeepseekV3ForCausalLM"], "deepseek_v3"),
        (["HunYuanDenseV1ForCausalLM"], "hunyuan_v1_dense"),
        (["Gemma3ForCausalLM"], "gemma3_text"),
        (["RWForCausalLM"], "falcon"),
        (["ChatGLMModel"], "chatglm"),
        (["Grok1ModelForCausalLM"], "grok-1"),
    ],
)
def test_architectures_stand_in_for_model_type(names: list[str], expected: str) -> None:
    assert model_type_of({"architectures": names}) == expected


def test_old_names_of_a_family() -> None:
    for name in ("RefinedWeb", "RefinedWebModel"):
        assert architecture({"model_type": name, "n_layer": 4, "n_head": 71}).model_type == "falcon"
    assert architecture({**LLAMA, "model_type": "Yi"}).num_params == architecture(LLAMA).num_params


def test_unknown_model_type_names_the_nearest_and_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"`qwen9_moe`.*nearest are `qwen") as caught:
        architecture({"model_type": "qwen9_moe"})
    assert caught.value.hint is not None
    assert "--as llama" in caught.value.hint
    own = {**LLAMA, "model_type": "my_own"}
    assert architecture(own, as_family="llama").num_params == architecture(LLAMA).num_params
    with pytest.raises(UnknownNameError, match="did you mean `llama`"):
        architecture(own, as_family="lama")


def test_nothing_follows_auto_map() -> None:
    mapped = {**LLAMA, "auto_map": {"AutoModelForCausalLM": "os--system.Model"}}
    assert architecture(mapped).num_params == architecture(LLAMA).num_params


BAD_KEYS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": -1}, "`hidden_size`: must be from 1"),
    ({"hidden_size": 0}, "`hidden_size`: must be from 1"),
    ({"hidden_size": True}, "whole number"),
    ({"hidden_size": "4096"}, "whole number"),
    ({"hidden_size": 4096.0}, "whole number"),
    ({"hidden_size": math.nan}, "whole number"),
    ({"hidden_size": math.inf}, "whole number"),
    ({"hidden_size": [4096]}, "a list of 1"),
    ({"hidden_size": {"a": 1}}, "an object"),
    ({"hidden_size": 10**30}, "must be from 1 to"),
    ({"hidden_size": 10**400}, "a number of 1329 bits"),
    ({"hidden_size": 2050}, "does not divide the hidden size"),
    ({"num_hidden_layers": 10**6}, "`num_hidden_layers`: must be from 1 to 4096"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"num_key_value_heads": 7}, "`num_key_value_heads`: 7 does not divide"),
    ({"num_key_value_heads": 64}, "`num_key_value_heads`: 64 does not divide"),
    ({"head_dim": -64}, "head_dim"),
    ({"intermediate_size": "wide"}, "`intermediate_size`"),
    ({"vocab_size": 1 << 40}, "vocab_size"),
    ({"attention_dropout": 1.5}, "`attention_dropout`: must be from 0 to 1"),
    ({"attention_dropout": "none"}, "must be a number"),
    ({"attention_bias": 1}, "true or false"),
    ({"tie_word_embeddings": "yes"}, "true or false"),
    ({"hidden_act": 3}, "short text"),
    ({"hidden_act": "x" * 1000}, "short text"),
    ({"rope_parameters": {"partial_rotary_factor": 7}}, "`rope_parameters.partial_rotary_factor`"),
    ({"model_type": 7}, "`model_type`"),
    ({"model_type": "gemma2", "layer_types": "sliding"}, "list of names"),
    ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "must have 16 entries"),
    ({"model_type": "gpt_neo", "attention_types": [["global", 3]]}, "attention_types"),
    ({"model_type": "gpt_neo", "num_layers": 4, "attention_types": [[["global"], 3]]}, "describes 3 layers"),
    ({"model_type": "gpt_neo", "attention_types": [[["odd"], 16]]}, "known are global and local"),
    ({"model_type": "gpt_neo", "attention_types": [[[[]], 16]]}, "known are global and local"),
    ({**DEEPSEEK, "num_experts_per_tok": 300}, "`num_experts_per_tok`: must be from 1 to 256"),
    ({**DEEPSEEK, "n_routed_experts": -2}, "n_routed_experts"),
    ({**DEEPSEEK, "mlp_layer_types": ["dense"] * 15 + ["odd"]}, "known are dense, sparse"),
    ({"model_type": "dbrx", "ffn_config": 3}, "`ffn_config`: must be an object"),
    ({"model_type": "dbrx", "ffn_config": {"moe_num_experts": "4"}}, "`ffn_config.moe_num_experts`"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "must have 16 entries"),
    ({"model_type": "smollm3", "no_rope_layers": [5] * 16}, "from 0 to 1"),
    ({"model_type": "llama4_text", "moe_layers": [99]}, "moe_layers"),
    ({"model_type": "mpt", "attn_config": []}, "`attn_config`: must be an object"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_KEYS)
def test_bad_key_is_one_clear_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        architecture({**LLAMA, **changes})
    assert message in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"model_type": None},
        {"model_type": ""},
        {"architectures": []},
        {"architectures": "Llama"},
        {"architectures": [3]},
    ],
)
def test_configuration_without_a_family(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="neither"):
        architecture(data)


def test_values_that_are_no_json() -> None:
    with pytest.raises(ConfigError, match="JSON"):
        architecture({**LLAMA, "extra": object()})
    with pytest.raises(ConfigError, match="JSON"):
        architecture({**LLAMA, 3: 4, "x": 1})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="mapping or a path"):
        architecture(42)  # type: ignore[arg-type]


def test_depth_and_number_of_values_are_capped() -> None:
    deep: Any = 1
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match="deeper than"):
        architecture({**LLAMA, "extra": deep})
    with pytest.raises(ConfigError, match="more than"):
        architecture({**LLAMA, "extra": [0] * 300_000})
    deeper: Any = 1
    for _ in range(100_000):
        deeper = [deeper]
    with pytest.raises(ConfigError, match="deeper than"):
        architecture({**LLAMA, "extra": deeper})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1, 2]", "not an object"),
        (b'"llama"', "not an object"),
        (b"null", "not an object"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "not JSON"),
        (b" " * (MAX_FILE_BYTES + 1), "larger than 4 MiB"),
    ],
)
def test_file_that_is_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(InputFileError, match=message):
        architecture(file)


def test_missing_file_and_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        architecture(tmp_path / "nothing.json")
    with pytest.raises(InputFileError, match="No such file"):
        architecture(tmp_path)
    with pytest.raises(InputFileError):
        architecture("\0")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("poison", ["x", -3, math.nan, [], {}, True])
def test_poisoned_keys_never_leave_the_error_tree(family: str, poison: Any) -> None:
    keys = [k for k in class_defaults().get(family, LLAMA) if k != "aliases"]
    for key in keys:
        try:
            architecture({"model_type": family, key: poison})
        except MemfitError:
            continue
