"""Models: config.json -> Architecture with exact parameter counts; families and catalog."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from memfit.errors import ConfigError, InputFileError, UnknownNameError, nearest
from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe, Recurrent, Stack, Tensor
from memfit.models.code import with_code
from memfit.models.config import Config, check_shape, load_file, load_text
from memfit.models.families import FAMILIES, reader

__all__ = [
    "Architecture",
    "Attention",
    "Block",
    "Mlp",
    "Moe",
    "Recurrent",
    "Stack",
    "Tensor",
    "architecture",
    "model_type_of",
    "resolve",
]

# What ``architectures`` is called where its spelling does not lead to the model_type by itself.
_CLASS_NAMES = {
    "HunYuanDenseV1": "hunyuan_v1_dense",
    "HunYuanMoEV1": "hunyuan_v1_moe",
    "HunYuan": "hunyuan_v1_dense",
    "RW": "falcon",
    "Gemma3": "gemma3_text",
    "Gemma3n": "gemma3n_text",
    "Llama4": "llama4_text",
    "Qwen3_5": "qwen3_5_text",
    "Qwen3_5Moe": "qwen3_5_moe_text",
    "Grok1Model": "grok-1",
    "Mistral3": "mistral3",
    "ChatGLMModel": "chatglm",
}
# Names that configurations use (or used) for a family that is listed under another.
_SYNONYMS = {
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "Yi": "llama",
    "InternLM": "internlm",
    "grok": "grok-1",
    "grok_1": "grok-1",
    "mixformer-sequential": "phi",
    "phi-msft": "phi",
    "phi4": "phi3",
    "hunyuan": "hunyuan_v1_dense",
}
_TAILS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForSequenceClassification", "ForMaskedLM", "Model")
_WAY_OUT = "`--as llama` reads it as the nearest family, or trace the module"


def architecture(config: Mapping[str, Any] | Path | str, *, as_family: str | None = None) -> Architecture:
    """The architecture that a Hugging Face configuration describes, with exact parameter counts.

    Args:
        config: the content of a config.json, its path, a folder that holds it, or its text (starts with ``{``).
        as_family: read it as this model_type instead of its own.

    Raises:
        ConfigError: an unknown model_type, or a key of the wrong type or out of bounds.
        InputFileError: the file is missing, too large or not a JSON object.
    """
    if isinstance(config, str) and config.lstrip()[:1] == "{":
        data: Mapping[str, Any] = load_text(config)
    elif isinstance(config, str | Path):
        data = load_file(Path(config))
    elif isinstance(config, Mapping):
        data = config
    else:
        raise ConfigError(f"a model configuration is a mapping or a path, not {type(config).__name__}")
    try:
        key = json.dumps(data, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        check_shape(data)
        raise ConfigError(f"the configuration does not consist of JSON values: {error}") from None
    return _read(key, as_family)


@lru_cache(maxsize=512)
def _read(text: str, as_family: str | None) -> Architecture:
    data = load_text(text)
    check_shape(data)
    if as_family is not None and _canonical(as_family) not in FAMILIES:
        raise UnknownNameError("model family", as_family, FAMILIES, hint=f"known: {', '.join(sorted(FAMILIES))}")
    model_type = _canonical(as_family) if as_family is not None else model_type_of(data)
    read = reader(model_type)
    if read is None:
        raise unknown_model_type(model_type)
    return with_code(read(Config(data, model_type)))


def unknown_model_type(model_type: str) -> ConfigError:
    """The error for a model_type that no family reads, with the nearest families."""
    near = nearest(model_type, FAMILIES)
    guess = f"; the nearest are {', '.join(f'`{n}`' for n in near)}" if near else ""
    return ConfigError(f"no family reads the model_type `{model_type[:80]}`{guess}", hint=_WAY_OUT)


def model_type_of(data: Mapping[str, Any]) -> str:
    """The family of a configuration: ``model_type``, else guessed from ``architectures``.

    Raises:
        ConfigError: neither key says anything.
    """
    stated = data.get("model_type")
    if stated is not None and not isinstance(stated, str):
        raise ConfigError("configuration key `model_type`: must be a text")
    if stated:
        return _canonical(stated)
    names = data.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    if not isinstance(first, str) or not first:
        raise ConfigError("the configuration has neither `model_type` nor `architectures`", hint=_WAY_OUT)
    stem = next((first.removesuffix(tail) for tail in _TAILS if first.endswith(tail)), first)
    if first in _CLASS_NAMES or stem in _CLASS_NAMES:
        return _CLASS_NAMES.get(first) or _CLASS_NAMES[stem]
    squeezed = _squeeze(stem)
    return next((family for family in FAMILIES if _squeeze(family) == squeezed), stem)


def _squeeze(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(".", "")


def _canonical(model_type: str) -> str:
    if model_type in FAMILIES:
        return model_type
    if model_type in _SYNONYMS:
        return _SYNONYMS[model_type]
    lower = model_type.lower()
    return lower if lower in FAMILIES else model_type


def resolve(model: Mapping[str, Any] | Path | str, *, as_family: str | None = None) -> tuple[Architecture, str]:
    """Find a model by catalog name, path or configuration.

    Args:
        model: a catalog name, a folder or file with a config.json, or the configuration itself.
        as_family: read it as this model_type.

    Returns:
        The architecture, and where it came from in words.

    Raises:
        UnknownNameError: neither a catalog name nor a path that exists.
        ConfigError, InputFileError: as ``architecture``.
    """
    if isinstance(model, Mapping):
        return architecture(model, as_family=as_family), "config given"
    if isinstance(model, Path):
        return architecture(model, as_family=as_family), f"file {model}"
    from memfit.models import catalog

    entry = catalog.lookup(model)
    if entry is not None:
        return architecture(entry.config, as_family=as_family), f"catalog {entry.name}"
    if model.lstrip()[:1] == "{":
        return architecture(model, as_family=as_family), "config given"
    try:
        exists = Path(model).exists()
    except (OSError, ValueError):
        exists = False
    if exists:
        return architecture(Path(model), as_family=as_family), f"file {model}"
    if model.endswith(".json") or model.startswith((".", "/", "~")):
        raise InputFileError(f"cannot read the configuration `{model[:200]}`: No such file or directory")
    hint = (
        "give a catalog name (a fine-tune has the shape of its base), a folder with config.json, or the config itself"
    )
    raise UnknownNameError("model", model[:200], near=catalog.nearest(model), hint=hint)
