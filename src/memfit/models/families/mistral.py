"""Mistral, Ministral, Mixtral, Phi-3.5-MoE-like routing of eight or sixteen large experts, MiniMax."""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Moe, Recurrent
from memfit.models.config import Config
from memfit.models.families._common import (
    Tensors,
    assemble,
    attention,
    layer_windows,
    layout,
    linear,
    moe,
    norm,
    norms,
    vector,
)
from memfit.models.families._decoder import NORMS, decoder, gqa
from memfit.models.families.llama import biases, llama_like

# Mixtral checkpoints call gate, up and down w1, w3 and w2.
W_NAMES: dict[str, Any] = {"gate": "w1", "up": "w3", "down": "w2"}


def window(c: Config) -> int | None:
    """``sliding_window`` as stated, null meaning none.

    A published Mistral configuration always states it; the class default of 4096 belongs to the first release alone,
    so a configuration without the key is read as full attention, and that is noted.
    """
    if not c.has("sliding_window") and not c.null("sliding_window") and c.default("sliding_window") is not None:
        c.note("`sliding_window` is not stated: full attention is assumed")
        return None
    return c.opt_size("sliding_window")


def mistral(c: Config) -> Architecture:
    """Mistral: one window for all layers, or none."""
    return llama_like(c, windows=layer_windows(c, c.layers(), window(c)))


def mixtral(c: Config) -> Architecture:
    """Mixtral: every layer routes two of eight experts."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden),
        e=experts(c),
        windows=layer_windows(c, layers, c.opt_size("sliding_window")),
        ffn="block_sparse_moe",
        moe_names=W_NAMES,
    )


def experts(c: Config, *, default_act: str = "silu") -> Moe:
    """Experts as Mixtral names them."""
    count = c.size("num_local_experts", "num_experts", high=1 << 16)
    return Moe(
        num_experts=count,
        top_k=c.size("num_experts_per_tok", high=count),
        intermediate=c.size("intermediate_size"),
        act=c.text("hidden_act", default=default_act),
    )


def phimoe(c: Config) -> Architecture:
    """Phi-3.5-MoE: sixteen experts, LayerNorm, optional bias on the head."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, **biases(c)),
        e=experts(c),
        windows=layer_windows(c, layers, c.opt_size("sliding_window")),
        ffn="block_sparse_moe",
        moe_names=W_NAMES,
        norm="layer",
        norm_bias=True,
        final_norm=norm("model.norm", hidden, bias=True),
        head_bias=c.flag("lm_head_bias"),
    )


def minimax_m2(c: Config) -> Architecture:
    """MiniMax-M2: 256 small experts, q/k norms over all heads, half of each head turned."""
    hidden = c.size("hidden_size")
    rotary = c.opt_size("rotary_dim", low=0)
    a = gqa(c, hidden, qk_norm="full" if c.flag("use_qk_norm", default=True) else "none")
    if rotary is not None:
        a = gqa(c, hidden, qk_norm=a.qk_norm, rotary_dim=min(rotary, a.head_dim))
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=a,
        e=experts(c),
        ffn="block_sparse_moe",
        moe_names={**W_NAMES, "correction": "e_score_correction_bias"},
    )


def minimax(c: Config) -> Architecture:
    """MiniMax-Text-01: lightning (linear) attention with a softmax layer now and then; experts in every layer."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    a = gqa(c, hidden)
    e = experts(c)
    stated = c.texts("layer_types", length=layers, allowed=("full_attention", "linear_attention"))
    numbers = c.sizes("attn_type_list", length=layers, high=1)
    if stated is not None:
        full = tuple(kind == "full_attention" for kind in stated)
    elif numbers is not None:  # the first release's own code: 1 is softmax attention
        full = tuple(kind == 1 for kind in numbers)
    else:
        full = tuple((i + 1) % 2 == 1 for i in range(layers))
    body = (*moe("block_sparse_moe", e, hidden, **W_NAMES), *norms(NORMS, hidden))
    chunk = c.size("block_size", default=256, high=1 << 16)

    def make(is_full: bool) -> Block:
        if is_full:
            tensors = (*attention("self_attn", a, hidden), *body)
            return Block(kind="full", attention=a, ffn=e, tensors=tensors)
        return Block(
            kind="linear",
            recurrent=lightning(a, chunk),
            ffn=e,
            tensors=(*lightning_tensors(a, hidden, chunk), *body),
        )

    blocks, order = layout(full, make)
    return assemble(c, hidden=hidden, blocks=blocks, layers=order)


def lightning(a: Attention, chunk: int) -> Recurrent:
    """The state of linear attention: one N x N matrix a head."""
    return Recurrent(
        kind="lightning",
        inner=a.num_heads * a.head_dim,
        num_heads=a.num_heads,
        head_dim=a.head_dim,
        num_key_heads=a.num_heads,
        key_dim=a.head_dim,
        state_elements=a.num_heads * a.head_dim * a.head_dim,
        chunk=chunk,
    )


def lightning_tensors(a: Attention, hidden: int, chunk: int) -> Tensors:
    """Fused q/k/v, output gate and projection, a norm over the inner width, and the decay tables as buffers."""
    inner = a.num_heads * a.head_dim
    roles = (("q_proj", inner), ("k_proj", inner), ("v_proj", inner))
    heads = a.num_heads
    decay = heads * (1 + 2 * chunk + chunk * chunk)
    return (
        *linear("self_attn.qkv_proj", hidden, 3 * inner, "mixer", tp="column", splits=roles),
        *linear("self_attn.output_gate", hidden, inner, "mixer", tp="column"),
        *linear("self_attn.out_proj", inner, hidden, "mixer", tp="row"),
        *norm("self_attn.norm", inner),
        *vector("self_attn.decay", decay, "mixer", buffer=True),
    )
