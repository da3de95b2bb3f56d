"""internvl (the -hf conversions of InternVL 2.5 and 3): InternViT, pixel shuffle, a two-layer projector."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Block, Mlp, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, attention, linear, mlp, norm, norms, uniform
from memfit.models.families._vision import bidirectional, grid, join, kernel, language, part

PROJECTOR = "model.multi_modal_projector"
TOWER = "model.vision_tower"


def read(c: Config) -> Architecture:
    """internvl: ``downsample_ratio`` 0.5 folds four patches into one token."""
    vision = part(c, "vision_config", "internvl_vision")
    text = language(c, "qwen2")
    hidden = vision.size("hidden_size")
    ratio = c.number("downsample_ratio", low=1 / 64, high=1.0)
    wide = hidden * int(1 / ratio) ** 2
    projector = (
        *norm(f"{PROJECTOR}.layer_norm", wide, bias=True),
        *linear(f"{PROJECTOR}.linear_1", wide, text.hidden_size, "projector", bias=True),
        *linear(f"{PROJECTOR}.linear_2", text.hidden_size, text.hidden_size, "projector", bias=True),
    )
    c.note("the tower's tokens are those of one crop; the processor decides how many crops a picture gives")
    return join(c, text, (_tower(vision, hidden, projector),))


def _tower(c: Config, hidden: int, projector: Tensors) -> Stack:
    a = bidirectional(
        c,
        hidden,
        c.size("num_attention_heads", high=1 << 16),
        bias=c.flag("attention_bias"),
        out_bias=True,
    )
    m = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=c.text("hidden_act"), bias=True)
    rms = c.text("norm_type") == "rms_norm"
    qk_norms = norms(("attention.q_norm", "attention.k_norm"), hidden) if c.flag("use_qk_norm") else ()
    block = Block(
        kind="vision",
        attention=a,
        ffn=m,
        norm="rms" if rms else "layer",
        dropout=c.number("hidden_dropout_prob"),
        tensors=(
            *attention("attention", a, hidden, o="projection_layer"),
            *qk_norms,
            *mlp("mlp", m, hidden, up="fc1", down="fc2"),
            *norms(("layernorm_before", "layernorm_after"), hidden, bias=not rms),
            Tensor(name="lambda_1", shape=(hidden,), part="other"),
            Tensor(name="lambda_2", shape=(hidden,), part="other"),
        ),
    )
    patches, size = grid(c)
    front = f"{TOWER}.embeddings"
    extra = (
        Tensor(name=f"{front}.cls_token", shape=(1, 1, hidden), part="embedding"),
        *kernel(f"{front}.patch_embeddings.projection", hidden, c.size("num_channels"), size, bias=True),
    )
    if c.flag("use_mask_token"):
        extra += (Tensor(name=f"{front}.mask_token", shape=(1, 1, hidden), part="embedding"),)
    if c.flag("use_absolute_position_embeddings", default=True):
        extra += (Tensor(name=f"{front}.position_embeddings", shape=(1, patches + 1, hidden), part="embedding"),)
    if not c.flag("use_mean_pooling", default=True):
        extra += norm(f"{TOWER}.layernorm", hidden, bias=True)
    blocks, layers = uniform(block, c.layers())
    return Stack(
        name="vision",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{TOWER}.encoder.layer.{{}}",
        extra=(*extra, *projector),
        tokens=patches + 1,
    )
