"""Cohere Command R and A: parallel blocks with one LayerNorm without bias, tied head; DBRX."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Moe, Tensor
from memfit.models.config import Config
from memfit.models.families._common import (
    assemble,
    attention,
    layer_windows,
    moe,
    norm,
    norms,
    uniform,
)
from memfit.models.families._decoder import NORMS, gqa
from memfit.models.families.llama import biases, llama_like


def cohere(c: Config) -> Architecture:
    """Command R (v1): q/k norms with a weight for every head, by switch."""
    more: tuple[Tensor, ...] = ()
    if c.flag("use_qk_norm"):
        a = gqa(c, c.size("hidden_size"))
        more = tuple(
            Tensor(name=f"self_attn.{side}_norm.weight", shape=(n, a.head_dim), part="norm", tp_dim=0)
            for side, n in (("q", a.num_heads), ("k", a.num_kv_heads))
        )
    fields = dict(biases(c))
    tree = llama_like(c, a=fields, norm="layer", norm_names=NORMS[:1], parallel=True, more=more)
    if not more:
        return tree
    return _with_qk_norm(tree)


def _with_qk_norm(tree: Architecture) -> Architecture:
    """The q/k norms are in ``more`` as their weights have a shape of their own; the field is set here."""
    from dataclasses import replace

    blocks = tuple(
        replace(b, attention=replace(b.attention, qk_norm="head") if b.attention else None) for b in tree.decoder.blocks
    )
    return replace(tree, decoder=replace(tree.decoder, blocks=blocks))


def cohere2(c: Config) -> Architecture:
    """Command R7B and A: three sliding layers with rotary embedding, then a full one without."""
    step = c.size("sliding_window_pattern", default=4, high=4096)
    windows = layer_windows(c, c.layers(), c.opt_size("sliding_window"), lambda i: (i + 1) % step != 0)
    return llama_like(
        c,
        a=dict(biases(c)),
        norm="layer",
        norm_names=NORMS[:1],
        parallel=True,
        windows=windows,
        rope=tuple(w is not None for w in windows),
    )


def dbrx(c: Config) -> Architecture:
    """DBRX: sixteen experts of which four run; sizes lie in ``attn_config`` and ``ffn_config``.

    The library keeps all experts' matrices in one (E*F, D) parameter for each of w1, v1 and w2.
    """
    hidden = c.size("hidden_size", "d_model")
    inner, ffn = c.child("attn_config", ""), c.child("ffn_config", "")
    heads = c.size("num_attention_heads", "n_heads", high=1 << 16)
    dim = hidden // heads
    a = Attention(
        num_heads=heads,
        num_kv_heads=inner.size("kv_n_heads", default=1, high=heads),
        head_dim=dim,
        v_head_dim=dim,
        rotary_dim=dim,
        fused_qkv=True,
        dropout=inner.number("attn_pdrop"),
    )
    count = ffn.size("moe_num_experts", default=4, high=1 << 16)
    e = Moe(
        num_experts=count,
        top_k=ffn.size("moe_top_k", default=1, high=count),
        intermediate=ffn.size("ffn_hidden_size", default=3584),
        act=ffn.child("ffn_act_fn").text("name", default="silu"),
    )
    owner = "norm_attn_norm"
    block = Block(
        kind="full",
        attention=a,
        ffn=e,
        norm="layer",
        dropout=c.number("resid_pdrop"),
        tensors=(
            *attention(f"{owner}.attn", a, hidden, qkv="Wqkv", o="out_proj"),
            *moe("ffn", e, hidden, router="router.layer", experts="experts.mlp", gate="w1", up="v1", down="w2"),
            *norms((f"{owner}.norm_1", f"{owner}.norm_2"), hidden),
        ),
    )
    blocks, order = uniform(block, c.layers("num_hidden_layers", "n_layers"))
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=order,
        prefix="transformer.blocks.{}",
        embed="transformer.wte",
        final_norm=norm("transformer.norm_f", hidden),
        embed_dropout=c.number("emb_pdrop"),
        max_positions=c.opt_size("max_seq_len", low=0) or 0,
    )
