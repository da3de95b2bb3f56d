"""lfm2 and lfm2_moe: gated short convolutions, with grouped-query attention at a few layers."""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe
from memfit.models.config import Config
from memfit.models.families._common import Tensors, assemble, attention, layout, mlp, moe, norm, norms
from memfit.models.families._recurrent import short_conv

LAYER_NAMES = ("conv", "full_attention")
MLP_NAMES: dict[str, Any] = {"gate": "w1", "up": "w3", "down": "w2"}


def _dense_width(c: Config) -> int:
    """The width that lfm2 derives from ``block_ff_dim``: two thirds, scaled, rounded up to a multiple."""
    width = c.size("block_ff_dim", "intermediate_size", default=c.default("intermediate_size"))
    if c.model_type == "lfm2_moe" or not c.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    if "block_ffn_dim_multiplier" in c.data and c.data["block_ffn_dim_multiplier"] is None:
        return width
    width = int(c.number("block_ffn_dim_multiplier", high=64.0, default=1.0) * width)
    multiple = c.size("block_multiple_of")
    return -(-width // multiple) * multiple


def read(c: Config) -> Architecture:
    """lfm2; lfm2_moe has ``num_dense_layers`` dense layers first, then routed ones."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        rotary_dim=c.rotary_dim(head_dim),
        qk_norm="head",
    )
    r, convolution = short_conv("conv", hidden, c.size("conv_L_cache"), bias=c.flag("conv_bias"))
    attends = attention("self_attn", a, hidden, o="out_proj", q_norm="q_layernorm", k_norm="k_layernorm")

    def feed(sparse: bool) -> tuple[Mlp | Moe, Tensors]:
        if not sparse:
            dense = Mlp(intermediate=_dense_width(c))
            return dense, mlp("feed_forward", dense, hidden, **MLP_NAMES)
        experts = c.size("num_experts")
        routed = Moe(
            num_experts=experts,
            top_k=c.size("num_experts_per_tok", high=experts),
            intermediate=c.size("moe_intermediate_size"),
        )
        correction = "expert_bias" if c.flag("use_expert_bias") else ""
        return routed, moe("feed_forward", routed, hidden, correction=correction, **MLP_NAMES)

    def make(kind: tuple[bool, bool]) -> Block:
        full, sparse = kind
        ffn, ffn_tensors = feed(sparse)
        return Block(
            kind=f"{'full' if full else 'conv'}+{'moe' if sparse else 'dense'}",
            attention=a if full else None,
            recurrent=None if full else r,
            ffn=ffn,
            tensors=(
                *(attends if full else convolution),
                *ffn_tensors,
                *norms(("operator_norm", "ffn_norm"), hidden),
            ),
        )

    count = c.layers()
    types = c.texts("layer_types", length=count, allowed=LAYER_NAMES)
    indices = c.sizes("full_attn_idxs")
    full_layers = [types[i] == "full_attention" if types else indices is None or i in indices for i in range(count)]
    first_sparse = c.size("num_dense_layers", low=0) if c.model_type == "lfm2_moe" else count
    blocks, layers = layout([(full, i >= first_sparse) for i, full in enumerate(full_layers)], make)
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        final_norm=norm("model.embedding_norm", hidden),
        tied=c.flag("tie_embedding", "tie_word_embeddings", default=True),
    )
