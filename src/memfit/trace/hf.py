"""Models of the transformers library on a device without data, from the content of a ``config.json``."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from memfit.errors import ConfigError, MissingError


def config_of(raw: dict[str, Any], *, num_layers: int | None = None, attention: str = "sdpa") -> Any:
    """The configuration object that transformers makes of a ``config.json``.

    Args:
        raw: its content.
        num_layers: shorten the model.
        attention: ``sdpa``, ``eager``, or ``flash`` for the memory of the flash-attention package.

    Raises:
        ConfigError: transformers does not know the model type or refuses the values.
        MissingError: transformers is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # building a model from its config needs no network
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingError("tracing a named model needs transformers", hint="pip install memfit[torch]") from error
    fields = dict(raw)
    kind = fields.pop("model_type", None)
    if not isinstance(kind, str):
        raise ConfigError("the configuration has no `model_type`")
    for name in ("auto_map", "quantization_config", "dtype", "torch_dtype", "transformers_version"):
        fields.pop(name, None)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        fields.setdefault(name, 0 if name == "decoder_start_token_id" else None)
    try:
        config = AutoConfig.for_model(kind, **fields)
    except Exception as error:  # transformers raises what it likes for a bad config
        raise ConfigError(f"transformers cannot read this `{kind}` configuration: {error}") from error
    if num_layers is not None:
        set_layers(config, num_layers)
    if attention == "flash":
        from memfit.trace.sdpa import register_flash

        config._attn_implementation = register_flash()
    elif attention != "sdpa":  # sdpa is transformers' own default, with a fallback where a model has none
        config._attn_implementation = attention
    if getattr(config, "is_encoder_decoder", False) and config.pad_token_id is None:
        config.pad_token_id = 0  # shifts the labels of T5 and its kin
    return config


def set_layers(config: Any, num_layers: int) -> None:
    """Shorten a model to its first ``num_layers`` layers."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    text.num_hidden_layers = num_layers
    if hasattr(text, "num_decoder_layers"):
        text.num_decoder_layers = num_layers
    for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
        kinds = getattr(text, name, None)
        if isinstance(kinds, list):
            with contextlib.suppress(AttributeError):  # some configurations compute the list from the number of layers
                setattr(text, name, kinds[:num_layers])


def build(config: Any, *, device: str, dtype: Any, train: bool = True) -> Any:
    """An uninitialised model of a configuration, on ``device``, in ``dtype``; language models first.

    Raises:
        ConfigError: transformers has no trainable model class for the configuration.
    """
    import torch
    from transformers.initialization import no_init_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = model_class(config)(config)
            if hasattr(model, "tie_weights"):  # a construction without initialisation leaves tied weights apart
                model.tie_weights()
    finally:
        torch.set_default_dtype(before)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for part in (model.config, text):
        if train and hasattr(part, "use_cache"):
            part.use_cache = False
    return model.train(train)


def model_class(config: Any) -> Any:
    """The class that transformers trains this kind of configuration with."""
    from transformers.models.auto import modeling_auto as auto

    first = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    composite = hasattr(config, "get_text_config") and config.get_text_config() is not config
    for mapping in (
        *(reversed(first) if composite else first),
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_MASKED_LM_MAPPING,
        auto.MODEL_MAPPING,
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, (tuple, list)) else found
    raise ConfigError(f"transformers has no model class for `{config.model_type}`")


def checkpoint(model: Any, *, every: int = 1, selective: bool = False) -> None:
    """Activation checkpointing of every ``every``-th layer, not re-entrant, as transformers does it.

    Args:
        model: a transformers model.
        every: checkpoint one layer in so many.
        selective: keep the results of attention and of every second matrix product of a layer, recompute the rest.
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if selective:
        arguments["context_fn"] = _selective_contexts
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments, every_n_layers=every)
    elif every > 1:
        raise ConfigError("this transformers checkpoints all layers or none", hint="transformers 5 or later")
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)


def _selective_contexts() -> Any:
    """The choice that torchtitan's per-operation mode makes (distributed/activation_checkpoint.py, 2025)."""
    import torch
    from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    kept = {
        aten.mm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    }
    products = {"forward": 0, "recompute": 0}

    def policy(context: Any, func: Any, *_args: Any, **_kwargs: Any) -> Any:
        if func is aten.mm.default:
            products["recompute" if context.is_recompute else "forward"] += 1
        count = products["recompute" if context.is_recompute else "forward"]
        keep = func in kept and not (func is aten.mm.default and count % 2 == 0)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def num_layers(config: Any) -> int:
    """Layers of the language model."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.num_hidden_layers)


def num_experts(config: Any) -> int:
    """Routed experts of a layer, 1 for a dense model."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return 1


def add_lora(model: Any, arguments: dict[str, Any]) -> Any:
    """The model with LoRA adapters, as peft makes them.

    Raises:
        MissingError: peft is not installed.
        ConfigError: peft refuses the targets.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingError("tracing adapters needs peft", hint="pip install peft") from error
    try:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **arguments))
    except ValueError as error:
        raise ConfigError(f"peft refuses these adapters: {error}") from error
