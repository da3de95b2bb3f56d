"""What the language and vision models share: CLIP, SigLIP and Pixtral towers, and the joining of the parts.

``Stack.tokens`` of a tower counts the patches (and class tokens) that run through it for one image at the default
resolution, not the fewer tokens that the language model sees. Projector tensors stand with the tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Attention, Block, Mlp, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families import reader
from memfit.models.families._common import Tensors, attention, embedding, linear, mlp, norm, norms, uniform

# Text parts of language and vision models that are another family under another name.
TEXT_FAMILIES = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
}


def part(c: Config, key: str, model_type: str) -> Config:
    """The nested mapping ``key`` read with the defaults of ``model_type``, whatever it calls itself."""
    child = c.child(key, model_type)
    return Config(child.data, model_type, path=child.path, notes=c.notes)


def language(c: Config, default: str, *, owner: str = "model.language_model", flat: bool = False) -> Architecture:
    """The text part, read by its own family, with tensors named under ``owner``.

    Args:
        c: the whole configuration.
        default: model_type of the text part when it names none.
        owner: replaces ``model`` at the head of the tensor names.
        flat: the text keys may stand at the top, without ``text_config``.

    Raises:
        ConfigError: no family reads the text part.
    """
    inner = (
        Config(c.data, default, notes=c.notes)
        if flat and c.raw("text_config") is None
        else c.child("text_config", default)
    )
    family = TEXT_FAMILIES.get(inner.model_type, inner.model_type)
    read = reader(family)
    if read is None:
        raise ConfigError(f"no family reads the text part `{inner.model_type[:80]}` of `{c.model_type}`")
    data = {k: v for k, v in inner.data.items() if k != "architectures"}
    # Releases differ in where they state it; one that says so counts.
    stated = [v for v in (c.raw("tie_word_embeddings"), inner.raw("tie_word_embeddings")) if v is not None]
    if stated:
        data["tie_word_embeddings"] = stated[0] if stated[0] is not False else stated[-1]
    text = read(Config(data, inner.model_type, path=inner.path, notes=c.notes))

    def moved(name: str) -> str:
        return owner + name.removeprefix("model") if name.startswith("model.") else name

    def rename(tensors: Tensors) -> Tensors:
        return tuple(replace(t, name=moved(t.name)) for t in tensors)

    stack = text.decoder
    return replace(
        text,
        decoder=replace(stack, prefix=moved(stack.prefix), extra=rename(stack.extra)),
        embeddings=rename(text.embeddings),
        final_norm=rename(text.final_norm),
        head=rename(text.head),
    )


def join(c: Config, text: Architecture, towers: Sequence[Stack]) -> Architecture:
    """The whole model from its text part and its towers."""
    return replace(
        text,
        model_type=c.model_type,
        towers=(*towers, *text.towers),
        dtype=c.dtype() or text.dtype,
        quantization=c.quantization() or text.quantization,
        unknowns=tuple(c.notes),
    )


def rectangle(c: Config, key: str) -> tuple[int, int]:
    """An image or patch size in pixels: a number (a square) or height and width."""
    value = c.raw(key) or c.default(key)
    if isinstance(value, list | tuple):
        pair = c.sizes(key, length=2, low=1, high=1 << 16)
        assert pair is not None
        return pair[0], pair[1]
    size = c.size(key, high=1 << 16)
    return size, size


def grid(c: Config) -> tuple[int, tuple[int, int]]:
    """Patches of one image of ``image_size``, and the patch size."""
    image, patch = rectangle(c, "image_size"), rectangle(c, "patch_size")
    return max(image[0] // patch[0], 1) * max(image[1] // patch[1], 1), patch


def kernel(name: str, hidden: int, channels: int, size: Sequence[int], *, bias: bool) -> Tensors:
    """A patch embedding: a convolution whose stride is its size."""
    weight = Tensor(name=f"{name}.weight", shape=(hidden, channels, *size), part="embedding")
    return (weight, Tensor(name=f"{name}.bias", shape=(hidden,), part="embedding")) if bias else (weight,)


def bidirectional(
    c: Config,
    hidden: int,
    heads: int,
    *,
    bias: bool,
    out_bias: bool | None = None,
    rotary: bool = False,
    fused: bool = False,
) -> Attention:
    """The attention of a tower: every patch sees every patch of its image.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    if hidden % heads:
        raise ConfigError(
            f"configuration of `{c.path or c.model_type}`: {heads} heads do not divide the width {hidden}"
        )
    head_dim = hidden // heads
    return Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        causal=False,
        rotary_dim=head_dim if rotary else 0,
        fused_qkv=fused,
        qkv_bias=bias,
        out_bias=bias if out_bias is None else out_bias,
        dropout=c.number("attention_dropout"),
    )


def plain_block(
    a: Attention,
    m: Mlp,
    hidden: int,
    *,
    attn: str = "self_attn",
    attn_names: dict[str, Any] | None = None,
    mlp_owner: str = "mlp",
    mlp_names: dict[str, Any] | None = None,
    norm_names: tuple[str, str] = ("layer_norm1", "layer_norm2"),
    rms: bool = False,
    kind: str = "vision",
    extra: Tensors = (),
) -> Block:
    """A pre-norm transformer block of a tower."""
    names: dict[str, Any] = {"up": "fc1", "down": "fc2"} if mlp_names is None else mlp_names
    return Block(
        kind=kind,
        attention=a,
        ffn=m,
        norm="rms" if rms else "layer",
        tensors=(
            *attention(attn, a, hidden, **(attn_names or {})),
            *mlp(mlp_owner, m, hidden, **names),
            *norms(norm_names, hidden, bias=not rms),
            *extra,
        ),
    )


def clip(c: Config, owner: str, projector: Tensors, *, siglip: bool, images: int = 1) -> Stack:
    """A CLIP tower (class token, norms before and after) or a SigLIP one (no class token, optional pooling head).

    Args:
        c: the vision part.
        owner: name of the tower.
        projector: tensors to keep with it.
        siglip: SigLIP (also Idefics3's tower).
        images: crops that one picture is cut into.
    """
    hidden = c.size("hidden_size")
    a = bidirectional(c, hidden, c.size("num_attention_heads", high=1 << 16), bias=True)
    m = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=c.text("hidden_act"), bias=True)
    patches, size = grid(c)
    rows = patches if siglip else patches + 1
    front = f"{owner}.embeddings"
    extra = kernel(f"{front}.patch_embedding", hidden, c.size("num_channels"), size, bias=siglip)
    extra += embedding(f"{front}.position_embedding", rows, hidden, split=False)
    if not siglip:
        extra += (Tensor(name=f"{front}.class_embedding", shape=(hidden,), part="embedding"),)
        extra += norm(f"{owner}.pre_layrnorm", hidden, bias=True)
    extra += norm(f"{owner}.post_layernorm", hidden, bias=True)
    if siglip and c.model_type == "siglip_vision_model" and c.flag("vision_use_head", default=True):
        head = f"{owner}.head"
        extra += (
            Tensor(name=f"{head}.probe", shape=(1, 1, hidden), part="other"),
            Tensor(name=f"{head}.attention.in_proj_weight", shape=(3 * hidden, hidden), part="other"),
            Tensor(name=f"{head}.attention.in_proj_bias", shape=(3 * hidden,), part="other"),
            *linear(f"{head}.attention.out_proj", hidden, hidden, "other", bias=True),
            *norm(f"{head}.layernorm", hidden, bias=True),
            *mlp(f"{head}.mlp", m, hidden, up="fc1", down="fc2"),
        )
    block = plain_block(a, m, hidden, attn_names={"o": "out_proj"})
    blocks, layers = uniform(block, c.layers())
    return Stack(
        name="vision",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{owner}.encoder.layers.{{}}",
        extra=(*extra, *projector),
        tokens=rows * images,
    )


def pixtral(c: Config, owner: str, projector: Tensors) -> Stack:
    """Pixtral's tower: rotary positions in two dimensions, gated MLP, images of any shape up to ``image_size``."""
    hidden = c.size("hidden_size")
    a = bidirectional(c, hidden, c.size("num_attention_heads", high=1 << 16), bias=False, rotary=True)
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_act"))
    patches, size = grid(c)
    block = plain_block(
        a,
        m,
        hidden,
        attn="attention",
        mlp_owner="feed_forward",
        mlp_names={},
        norm_names=("attention_norm", "ffn_norm"),
        rms=True,
    )
    blocks, layers = uniform(block, c.layers())
    return Stack(
        name="vision",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"{owner}.transformer.layers.{{}}",
        extra=(
            *kernel(f"{owner}.patch_conv", hidden, c.size("num_channels"), size, bias=False),
            *norm(f"{owner}.ln_pre", hidden),
            *projector,
        ),
        tokens=patches,
    )


def tower(c: Config, owner: str, projector: Tensors, *, images: int = 1) -> Stack:
    """The tower that the vision part names: CLIP, SigLIP or Pixtral.

    Raises:
        ConfigError: another one.
    """
    if c.model_type == "pixtral":
        return pixtral(c, owner, projector)
    if c.model_type in ("clip_vision_model", "siglip_vision_model"):
        return clip(c, owner, projector, siglip=c.model_type == "siglip_vision_model", images=images)
    raise ConfigError(
        f"no reader for the vision tower `{c.model_type[:80]}`",
        hint="known are clip_vision_model, siglip_vision_model and pixtral",
    )
