"""gemma4: the text model with its vision tower and, in the small sizes, its audio tower."""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, attention, dotted, linear, mlp, norm, norms, uniform, vector
from memfit.models.families._decoder import GEMMA_NORMS
from memfit.models.families._vision import bidirectional, join, language, part

VISION, AUDIO = "model.vision_tower", "model.audio_tower"
# Default of the image processor in transformers 5.23 (image_processing_gemma4.py): pooled tokens of one picture.
LANGUAGE_TOKENS = 280
VISION_NAMES: dict[str, Any] = {side: f"{side}_proj.linear" for side in "qkvo"}
MLP_NAMES: dict[str, Any] = {side: f"{side}_proj.linear" for side in ("gate", "up", "down")}


def read(c: Config) -> Architecture:
    """gemma4: towers whose part of the configuration is missing or null are not there."""
    text = language(c, "gemma4_text")
    towers = []
    if c.raw("vision_config") is not None:
        towers.append(_vision(part(c, "vision_config", "gemma4_vision"), text.hidden_size))
    if c.raw("audio_config") is not None:
        towers.append(_audio(part(c, "audio_config", "gemma4_audio"), text.hidden_size))
    return join(c, text, towers)


def _vision(c: Config, text_hidden: int) -> Stack:
    """Patches of any shape with a learned position table an axis, pooled k x k before the language model."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.size("head_dim")
    bias = c.flag("attention_bias")
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        causal=False,
        rotary_dim=head_dim,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        dropout=c.number("attention_dropout"),
    )
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_activation"))
    block = Block(
        kind="vision",
        attention=a,
        ffn=m,
        num_norms=4,
        tensors=(
            *attention("self_attn", a, hidden, **VISION_NAMES),
            *mlp("mlp", m, hidden, **MLP_NAMES),
            *norms(GEMMA_NORMS, hidden),
        ),
    )
    rows = c.size("position_embedding_size")
    front = f"{VISION}.patch_embedder"
    extra: Tensors = (
        *linear(f"{front}.input_proj", 3 * c.size("patch_size", high=1 << 12) ** 2, hidden, "embedding"),
        Tensor(name=f"{front}.position_embedding_table", shape=(2, rows, hidden), part="embedding"),
    )
    if c.flag("standardize"):
        for name in ("std_bias", "std_scale"):
            extra += vector(f"{VISION}.{name}", hidden, buffer=True)
    extra += linear("model.embed_vision.embedding_projection", hidden, text_hidden, "projector")
    blocks, layers = uniform(block, c.layers())
    return Stack(
        name="vision",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{VISION}.encoder.layers.{{}}",
        extra=extra,
        tokens=LANGUAGE_TOKENS * c.size("pooling_kernel_size", high=64) ** 2,
    )


def _audio(c: Config, text_hidden: int) -> Stack:
    """A conformer: two half-step MLPs around chunked local attention and a depthwise convolution.

    ``Block.ffn`` states one MLP of the summed width, which has the same parameters and keeps the same activations.
    """
    hidden = c.size("hidden_size")
    a = bidirectional(c, hidden, c.size("num_attention_heads", high=1 << 16), bias=False)
    a = Attention(
        num_heads=a.num_heads,
        num_kv_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        v_head_dim=a.v_head_dim,
        causal=False,
        window=c.size("attention_chunk_size")
        + c.size("attention_context_left")
        - 1
        + c.size("attention_context_right", low=0),
        softcap=True,
    )
    half = Mlp(intermediate=4 * hidden, gated=False, act=c.text("hidden_act"))
    names: dict[str, Any] = {**VISION_NAMES, "o": "post.linear"}
    tensors: list[Tensor] = [
        *attention("self_attn", a, hidden, **names),
        *linear("self_attn.relative_k_proj", hidden, hidden, "attention", tp="column"),
        *vector("self_attn.per_dim_scale", a.head_dim, "attention"),
        *linear("lconv1d.linear_start.linear", hidden, 2 * hidden, "mixer", tp="column"),
        *linear("lconv1d.linear_end.linear", hidden, hidden, "mixer", tp="row"),
        Tensor(
            name="lconv1d.depthwise_conv1d.weight",
            shape=(hidden, 1, c.size("conv_kernel_size", high=1 << 12)),
            part="mixer",
        ),
        *norms(("lconv1d.pre_layer_norm", "lconv1d.conv_norm"), hidden),
        *norms(("norm_pre_attn", "norm_post_attn", "norm_out"), hidden),
    ]
    for owner in ("feed_forward1", "feed_forward2"):
        tensors += mlp(owner, half, hidden, up="ffw_layer_1.linear", down="ffw_layer_2.linear")
        tensors += norms((dotted(owner, "pre_layer_norm"), dotted(owner, "post_layer_norm")), hidden)
    block = Block(
        kind="audio",
        attention=a,
        ffn=Mlp(intermediate=2 * half.intermediate, gated=False, act=half.act),
        num_norms=9,
        tensors=tuple(tensors),
    )
    channels = c.sizes("subsampling_conv_channels", length=2, low=1) or (128, 32)
    front = f"{AUDIO}.subsample_conv_projection"
    extra: list[Tensor] = []
    for index, (inside, outside) in enumerate(((1, channels[0]), channels)):
        extra.append(Tensor(name=f"{front}.layer{index}.conv.weight", shape=(outside, inside, 3, 3), part="embedding"))
        extra += norm(f"{front}.layer{index}.norm", outside)
    extra += linear(f"{front}.input_proj_linear", channels[0] // 4 * channels[1], hidden, "embedding")
    out = c.size("output_proj_dims")
    extra += linear(f"{AUDIO}.output_proj", hidden, out, "projector", bias=True)
    extra += linear("model.embed_audio.embedding_projection", out, text_hidden, "projector")
    blocks, layers = uniform(block, c.layers())
    return Stack(
        name="audio",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{AUDIO}.layers.{{}}",
        extra=tuple(extra),
    )
