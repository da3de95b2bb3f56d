"""GPT-NeoX (Pythia, StableLM-alpha), Persimmon, BLOOM, MPT: one fused q/k/v, no gate, LayerNorm."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Code, Mlp
from memfit.models.config import Config
from memfit.models.families._common import norm
from memfit.models.families._decoder import NORMS, decoder, gated, gqa

DENSE = {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}


def gpt_neox(c: Config) -> Architecture:
    """GPT-NeoX: a quarter of each head turned; both sub-layers read the residual unless switched off."""
    hidden = c.size("hidden_size")
    bias = c.flag("attention_bias")
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(c, hidden, rotary=0.25, fused_qkv=True, qkv_bias=bias, out_bias=bias),
        m=gated(c, gated=False, bias=True, act=c.text("hidden_act", default="gelu")),
        owner="attention",
        names={"qkv": "query_key_value", "o": "dense"},
        mlp_names=DENSE,
        norm="layer",
        norm_bias=True,
        parallel=c.flag("use_parallel_residual"),
        dropout=c.number("hidden_dropout"),
        prefix="gpt_neox.layers.{}",
        embed="gpt_neox.embed_in",
        embed_dropout=c.number("hidden_dropout"),
        final_norm=norm("gpt_neox.final_layer_norm", hidden, bias=True),
    )


def persimmon(c: Config) -> Architecture:
    """Persimmon: squared ReLU, LayerNorm on queries and keys."""
    hidden = c.size("hidden_size")
    a = gqa(
        c,
        hidden,
        rotary=0.5,
        num_kv_heads=c.size("num_attention_heads"),
        fused_qkv=True,
        qkv_bias=True,
        out_bias=True,
        qk_norm="head" if c.flag("qk_layernorm") else "none",
    )
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=a,
        m=gated(c, gated=False, bias=True),
        names={
            "qkv": "query_key_value",
            "o": "dense",
            "q_norm": "q_layernorm",
            "k_norm": "k_layernorm",
            "norm_bias": True,
        },
        mlp_names=DENSE,
        norm="layer",
        norm_bias=True,
        dropout=c.number("hidden_dropout"),
        final_norm=norm("model.final_layernorm", hidden, bias=True),
    )


def bloom(c: Config) -> Architecture:
    """BLOOM: ALiBi instead of positions, a norm after the embedding."""
    hidden = c.size("hidden_size", "n_embed")
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(
            c,
            hidden,
            rotary=0,
            num_kv_heads=c.size("num_attention_heads"),
            fused_qkv=True,
            qkv_bias=True,
            out_bias=True,
        ),
        m=Mlp(intermediate=4 * hidden, gated=False, act="gelu", bias=True),
        owner="self_attention",
        names={"qkv": "query_key_value", "o": "dense"},
        mlp_names=DENSE,
        norm="layer",
        norm_bias=True,
        dropout=c.number("hidden_dropout"),
        prefix="transformer.h.{}",
        embed="transformer.word_embeddings",
        embeddings=norm("transformer.word_embeddings_layernorm", hidden, bias=True),
        final_norm=norm("transformer.ln_f", hidden, bias=True),
        max_positions=c.opt_size("seq_length", low=0) or 0,
    )


def mpt(c: Config) -> Architecture:
    """MPT: ALiBi, no biases at all."""
    hidden = c.size("hidden_size")
    inner = c.child("attn_config")
    heads = c.size("num_attention_heads")
    ratio = c.size("expansion_ratio", default=4, high=1 << 10)
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(
            c,
            hidden,
            rotary=0,
            num_kv_heads=inner.size("kv_n_heads", default=heads),
            fused_qkv=True,
            dropout=inner.number("attn_pdrop"),
        ),
        m=Mlp(intermediate=ratio * hidden, gated=False, act="gelu"),
        owner="attn",
        ffn="ffn",
        names={"qkv": "Wqkv", "o": "out_proj"},
        norm_names=("norm_1", "norm_2"),
        norm="layer",
        dropout=c.number("resid_pdrop"),
        prefix="transformer.blocks.{}",
        embed="transformer.wte",
        embed_dropout=c.number("emb_pdrop"),
        final_norm=norm("transformer.norm_f", hidden),
        max_positions=c.opt_size("max_seq_len", low=0) or 0,
    )


def falcon(c: Config) -> Architecture:
    """Falcon 7B (one key/value head), 40B and 180B (groups), Falcon 2 11B: parallel blocks with one or two norms."""
    hidden = c.size("hidden_size", "n_embed")
    heads = c.size("num_attention_heads", "n_head", high=1 << 16)
    grouped = c.flag("new_decoder_architecture")
    if grouped:
        kv = c.opt_size("num_kv_heads", "n_head_kv") or heads
    else:
        kv = 1 if c.flag("multi_query", default=True) else heads
    parallel = c.flag("parallel_attn", default=True)
    two = parallel and grouped and c.size("num_ln_in_parallel_attn", default=2, high=2) == 2
    bias = c.flag("bias")
    a = gqa(
        c,
        hidden,
        rotary=0 if c.flag("alibi") else 1.0,
        num_kv_heads=kv,
        head_dim=hidden // heads,
        fused_qkv=True,
        qkv_bias=bias,
        out_bias=bias,
    )
    width = c.opt_size("ffn_hidden_size", "intermediate_size") if c.has("ffn_hidden_size") else None
    act = c.text("activation", "hidden_act", default="gelu")
    # SDPA gets one key head for all query heads, or keys and values copied to all heads beside an explicit mask
    code = Code(
        kernel="masked" if grouped else "sdpa" if kv == heads else "math",
        expand_kv=grouped,
        low_softmax=True,
        broadcast_kv=True,
        keeps_normed=True,
    )
    return decoder(
        c,
        hidden=hidden,
        code=code,
        layers=c.layers("num_hidden_layers", "n_layer"),
        a=a,
        m=Mlp(intermediate=width or 4 * hidden, gated=False, act=act, bias=bias),
        owner="self_attention",
        names={"qkv": "query_key_value", "o": "dense"},
        mlp_names=DENSE,
        norm_names=("ln_attn", "ln_mlp") if two else NORMS[:1] if parallel else NORMS,
        norm="layer",
        norm_bias=True,
        parallel=parallel,
        dropout=c.number("hidden_dropout"),
        prefix="transformer.h.{}",
        embed="transformer.word_embeddings",
        final_norm=norm("transformer.ln_f", hidden, bias=True),
    )
