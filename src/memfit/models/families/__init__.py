"""Which function reads which ``model_type``: a table of "module:function" inside this package, imported on first use.

A reader is ``def read(c: Config) -> Architecture``. Adding a family is one function and one line here
(and, for its class defaults, a run of ``tests/models/make_defaults.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memfit.models.architecture import Architecture
    from memfit.models.config import Config

FAMILIES: dict[str, str] = {
    # llama-shaped decoders
    "llama": "llama:read",
    "yi": "llama:read",
    "aquila": "llama:read",
    "xverse": "llama:read",
    "minicpm": "llama:read",
    "arcee": "llama:arcee",
    "jais2": "llama:jais2",
    "apertus": "llama:apertus",
    "seed_oss": "llama:seed_oss",
    "hunyuan_v1_dense": "llama:hunyuan_dense",
    "mimo": "llama:mimo",
    "smollm3": "llama:smollm3",
    "helium": "llama:helium",
    "cwm": "llama:cwm",
    "bitnet": "llama:bitnet",
    "diffllama": "llama:diffllama",
    "ernie4_5": "llama:ernie",
    "nanochat": "llama:nanochat",
    "nemotron": "llama:nemotron",
    "stablelm": "llama:stablelm",
    "mistral": "mistral:mistral",
    "ministral": "mistral:mistral",
    "ministral3": "mistral:mistral",
    "qwen2": "qwen:qwen2",
    "qwen3": "qwen:qwen3",
    "gemma": "gemma:gemma",
    "gemma2": "gemma:gemma2",
    "gemma3_text": "gemma:gemma3_text",
    "gemma3n_text": "gemma3n:gemma3n_text",
    "vaultgemma": "gemma:vaultgemma",
    "phi": "phi:phi",
    "phi3": "phi:phi3",
    "olmo": "olmo:olmo",
    "olmo2": "olmo:olmo2",
    "olmo3": "olmo:olmo3",
    "granite": "olmo:granite",
    "exaone4": "olmo:exaone4",
    "glm": "glm:glm",
    "glm4": "glm:glm4",
    "cohere": "cohere:cohere",
    "cohere2": "cohere:cohere2",
    "internlm3": "remote:internlm3",
    "minicpm3": "deepseek:latent_dense",
    "youtu": "deepseek:latent_dense",
    # GPT-2's line
    "gpt2": "gpt2:gpt2",
    "gpt_bigcode": "gpt2:gpt_bigcode",
    "gptj": "gpt2:gptj",
    "codegen": "gpt2:codegen",
    "gpt_neo": "gpt2:gpt_neo",
    "starcoder2": "gpt2:starcoder2",
    "opt": "gpt2:opt",
    "gpt_neox": "neox:gpt_neox",
    "persimmon": "neox:persimmon",
    "bloom": "neox:bloom",
    "mpt": "neox:mpt",
    "falcon": "neox:falcon",
    # routed experts
    "mixtral": "mistral:mixtral",
    "phimoe": "mistral:phimoe",
    "minimax": "mistral:minimax",
    "minimax_text_01": "mistral:minimax",
    "minimax_m1": "mistral:minimax",
    "minimax_m2": "mistral:minimax_m2",
    "qwen2_moe": "qwen:qwen2_moe",
    "qwen3_moe": "qwen:qwen3_moe",
    "olmoe": "olmo:olmoe",
    "flex_olmo": "olmo:flex_olmo",
    "granitemoe": "olmo:granite_moe",
    "granitemoeshared": "olmo:granite_moe",
    "exaone_moe": "olmo:exaone_moe",
    "glm4_moe": "deepseek:glm4_moe",
    "dbrx": "cohere:dbrx",
    "deepseek": "deepseek:deepseek_v1",
    "deepseek_v2": "deepseek:deepseek_v2",
    "deepseek_v3": "deepseek:deepseek_v3",
    "deepseek_v32": "deepseek:deepseek_v32",
    "kimi_k2": "deepseek:deepseek_v3",
    "glm4_moe_lite": "deepseek:glm4_moe_lite",
    "glm_moe_dsa": "deepseek:deepseek_v32",
    "dots1": "deepseek:dots1",
    "solar_open": "deepseek:solar_open",
    "hy_v3": "deepseek:hy_v3",
    "gpt_oss": "experts:gpt_oss",
    "llama4_text": "experts:llama4_text",
    "ernie4_5_moe": "experts:ernie_moe",
    "hunyuan_v1_moe": "experts:hunyuan_moe",
    "grok-1": "experts:grok1",
    # code beside the checkpoint
    "internlm": "remote:internlm",
    "internlm2": "remote:internlm2",
    "baichuan": "remote:baichuan",
    "qwen": "remote:qwen1",
    "exaone": "remote:exaone3",
    "orion": "remote:orion",
    "chatglm": "glm:chatglm",
    # state-space models, linear attention and hybrids
    "mamba": "mamba:read",
    "falcon_mamba": "mamba:read",
    "mamba2": "mamba:read_mamba2",
    "jamba": "jamba:read",
    "falcon_h1": "falcon_h1:read",
    "nemotron_h": "nemotron_h:read",
    "qwen3_next": "qwen3_next:read",
    "qwen3_5_text": "qwen3_next:read",
    "qwen3_5_moe_text": "qwen3_next:read",
    "bamba": "bamba:read",
    "granitemoehybrid": "bamba:read_granite",
    "zamba2": "zamba2:read",
    "lfm2": "lfm2:read",
    "lfm2_moe": "lfm2:read",
    "kimi_linear": "kimi_linear:read",
    "olmo_hybrid": "olmo_hybrid:read",
    # encoders and encoder-decoders
    "bert": "bert:read",
    "roberta": "bert:read",
    "xlm-roberta": "bert:read",
    "camembert": "bert:read",
    "electra": "bert:read",
    "distilbert": "bert:read_distilbert",
    "deberta-v2": "deberta:read",
    "modernbert": "modernbert:read",
    "t5": "t5:read",
    "mt5": "t5:read",
    "umt5": "t5:read",
    "bart": "bart:read",
    "whisper": "bart:read_whisper",
    # language and vision
    "qwen2_vl": "qwen2_vl:read",
    "qwen2_5_vl": "qwen2_vl:read",
    "qwen3_vl": "qwen2_vl:read",
    "qwen3_vl_moe": "qwen2_vl:read",
    "qwen3_5": "qwen2_vl:read",
    "qwen3_5_moe": "qwen2_vl:read",
    "llava": "llava:read",
    "llava_next": "llava:read",
    "mistral3": "llava:read_mistral3",
    "paligemma": "llava:read_paligemma",
    "gemma3": "llava:read_gemma3",
    "gemma4_text": "gemma4:gemma4_text",
    "gemma4": "gemma4_towers:read",
    "idefics3": "idefics3:read",
    "smolvlm": "idefics3:read",
    "internvl": "internvl:read",
    "mllama": "mllama:read",
    "llama4": "llama4_vision:read",
}


def reader(model_type: str) -> Callable[[Config], Architecture] | None:
    """The function that reads ``model_type``, None when no family does."""
    target = FAMILIES.get(model_type)
    if target is None:
        return None
    module, _, name = target.partition(":")
    function: Callable[[Config], Architecture] = getattr(import_module(f"{__name__}.{module}"), name)
    return function
