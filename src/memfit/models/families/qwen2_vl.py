"""Qwen's language and vision models: qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, qwen3_5, qwen3_5_moe."""

from __future__ import annotations

from dataclasses import replace

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Block, Mlp, Stack
from memfit.models.config import Config
from memfit.models.families._common import Tensors, embedding, layout, linear, norm
from memfit.models.families._vision import bidirectional, join, kernel, language, part, plain_block, rectangle

TOWER = "model.visual"
# Resolution is free. The model cards of Qwen2-VL and Qwen2.5-VL give 1280 language tokens as the upper bound of an
# ordinary picture (max_pixels = 1280 * 28 * 28, https://huggingface.co/Qwen/Qwen2-VL-7B-Instruct).
LANGUAGE_TOKENS = 1280


def read(c: Config) -> Architecture:
    """All of them; configurations of the first two may hold the text keys at the top."""
    text_type = f"{c.model_type}_text"
    text = language(c, text_type, flat=True)
    vision = part(c, "vision_config", f"{c.model_type}_vision")
    c.note(f"image resolution is free: {LANGUAGE_TOKENS} language tokens an image assumed")
    make = {"qwen2_vl": _tower2, "qwen2_5_vl": _tower2_5}.get(c.model_type, _tower3)
    return join(c, text, (make(vision),))


def _patch(c: Config, hidden: int, *, bias: bool) -> Tensors:
    size = (c.size("temporal_patch_size", high=64), *rectangle(c, "patch_size"))
    return kernel(f"{TOWER}.patch_embed.proj", hidden, c.size("in_channels", "in_chans"), size, bias=bias)


def _merge(c: Config) -> int:
    return c.size("spatial_merge_size", high=64) ** 2


def _stack(c: Config, hidden: int, blocks: tuple[Block, ...], layers: tuple[int, ...], extra: Tensors) -> Stack:
    return Stack(
        name="vision",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{TOWER}.blocks.{{}}",
        extra=extra,
        tokens=LANGUAGE_TOKENS * _merge(c),
    )


def _merger_mlp(wide: int, out: int) -> Tensors:
    return (
        *linear(f"{TOWER}.merger.mlp.0", wide, wide, "projector", bias=True),
        *linear(f"{TOWER}.merger.mlp.2", wide, out, "projector", bias=True),
    )


def _tower2(c: Config) -> Stack:
    """qwen2_vl: layer norms, plain MLP; ``hidden_size`` is the language model's."""
    hidden = c.size("embed_dim")
    a = bidirectional(c, hidden, c.size("num_heads", high=1 << 16), bias=True, rotary=True, fused=True)
    ratio = c.number("mlp_ratio", high=64.0)
    m = Mlp(intermediate=int(hidden * ratio), gated=False, act=c.text("hidden_act"), bias=True)
    block = plain_block(
        a, m, hidden, attn="attn", attn_names={"qkv": "qkv", "o": "proj"}, norm_names=("norm1", "norm2")
    )
    wide = hidden * _merge(c)
    extra = (
        *_patch(c, hidden, bias=False),
        *norm(f"{TOWER}.merger.ln_q", hidden, bias=True),
        *_merger_mlp(wide, c.size("hidden_size")),
    )
    return _stack(c, hidden, (block,), (0,) * c.layers("depth"), extra)


def _tower2_5(c: Config) -> Stack:
    """qwen2_5_vl: RMS norms, gated MLP, attention inside windows except at ``fullatt_block_indexes``."""
    hidden = c.size("hidden_size")
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_act"), bias=True)
    heads = c.size("num_heads", high=1 << 16)
    patch = rectangle(c, "patch_size")
    # the window is stated in pixels and rounded to whole groups of merged patches
    unit = patch[0] * c.size("spatial_merge_size", high=64)
    window = max(c.size("window_size") // unit, 1) ** 2 * _merge(c)

    def make(full: bool) -> Block:
        a = bidirectional(c, hidden, heads, bias=True, rotary=True, fused=True)
        return plain_block(
            a if full else replace(a, window=window),
            m,
            hidden,
            attn="attn",
            attn_names={"qkv": "qkv", "o": "proj"},
            mlp_names={},
            norm_names=("norm1", "norm2"),
            rms=True,
            kind="vision" if full else "vision+window",
        )

    full_at = set(c.sizes("fullatt_block_indexes") or ())
    blocks, layers = layout([i in full_at for i in range(c.layers("depth"))], make)
    wide = hidden * _merge(c)
    extra = (
        *_patch(c, hidden, bias=False),
        *norm(f"{TOWER}.merger.ln_q", hidden),
        *_merger_mlp(wide, c.size("out_hidden_size")),
    )
    return _stack(c, hidden, blocks, layers, extra)


def _tower3(c: Config) -> Stack:
    """qwen3_vl and qwen3_5: learned positions; qwen3_vl also feeds inner layers to the language model (deepstack)."""
    hidden = c.size("hidden_size")
    a = bidirectional(c, hidden, c.size("num_heads", high=1 << 16), bias=True, rotary=True, fused=True)
    m = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=c.text("hidden_act"), bias=True)
    block = plain_block(
        a,
        m,
        hidden,
        attn="attn",
        attn_names={"qkv": "qkv", "o": "proj"},
        mlp_names={"up": "linear_fc1", "down": "linear_fc2"},
        norm_names=("norm1", "norm2"),
    )
    wide = hidden * _merge(c)
    depth = c.layers("depth")
    out = c.size("out_hidden_size")

    def merger(owner: str, normed: int) -> Tensors:
        return (
            *norm(f"{owner}.norm", normed, bias=True),
            *linear(f"{owner}.linear_fc1", wide, wide, "projector", bias=True),
            *linear(f"{owner}.linear_fc2", wide, out, "projector", bias=True),
        )

    extra = (
        *_patch(c, hidden, bias=True),
        *embedding(f"{TOWER}.pos_embed", c.size("num_position_embeddings"), hidden, split=False),
        *merger(f"{TOWER}.merger", hidden),
    )
    if c.model_type.startswith("qwen3_vl"):
        inner = c.sizes("deepstack_visual_indexes", high=depth - 1) or ()
        if len(inner) > depth:
            raise ConfigError(f"configuration key `{c.path}deepstack_visual_indexes`: more entries than layers")
        for index in range(len(inner)):
            extra += merger(f"{TOWER}.deepstack_merger_list.{index}", wide)
    return _stack(c, hidden, (block,), (0,) * depth, extra)
