"""llama4: the text model of that family with its vision tower (the text part alone is ``llama4_text``)."""

from __future__ import annotations

from dataclasses import replace

from memfit.models.architecture import Architecture, Mlp, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, linear, norms, uniform
from memfit.models.families._vision import bidirectional, grid, join, language, part, plain_block

TOWER = "vision_model"


def read(c: Config) -> Architecture:
    """llama4: patches are unfolded and projected; pixel shuffle and a two-layer adapter follow the tower."""
    text = language(c, "llama4_text", owner="language_model.model")
    text = replace(text, head=tuple(replace(t, name=f"language_model.{t.name}") for t in text.head))
    if not c.has("vision_config"):
        c.note("no `vision_config`: read as the language model alone")
        return join(c, text, ())
    vision = part(c, "vision_config", "llama4_vision_model")
    projector = linear(
        "multi_modal_projector.linear_1", vision.size("vision_output_dim"), text.hidden_size, "projector"
    )
    return join(c, text, (_tower(vision, projector),))


def _tower(c: Config, projector: Tensors) -> Stack:
    hidden = c.size("hidden_size")
    inner = c.size("intermediate_size")
    a = bidirectional(c, hidden, c.size("num_attention_heads", high=1 << 16), bias=True, rotary=True)
    m = Mlp(intermediate=inner, gated=False, act=c.text("hidden_act"), bias=True)
    patches, size = grid(c)
    rows = patches + 1
    adapter_in, adapter_out = c.size("projector_input_dim"), c.size("projector_output_dim")
    block = plain_block(a, m, hidden, norm_names=("input_layernorm", "post_attention_layernorm"))
    blocks, layers = uniform(block, c.layers())
    return Stack(
        name="vision",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{TOWER}.model.layers.{{}}",
        extra=(
            Tensor(name=f"{TOWER}.class_embedding", shape=(hidden,), part="embedding"),
            Tensor(name=f"{TOWER}.positional_embedding_vlm", shape=(rows, hidden), part="embedding"),
            *linear(f"{TOWER}.patch_embedding.linear", c.size("num_channels") * size[0] * size[1], hidden, "embedding"),
            *norms((f"{TOWER}.layernorm_pre", f"{TOWER}.layernorm_post"), hidden, bias=True),
            *linear(f"{TOWER}.vision_adapter.mlp.fc1", inner, adapter_in, "projector"),
            *linear(f"{TOWER}.vision_adapter.mlp.fc2", adapter_out, adapter_out, "projector"),
            *projector,
        ),
        tokens=rows,
    )
