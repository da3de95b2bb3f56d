"""Families whose code lies beside their checkpoints: InternLM 1 and 2, Baichuan, Qwen 1, EXAONE 3, Orion.

Nothing of that code is run. Shapes follow it as published; counts are checked against the published totals.
"""

from __future__ import annotations

from memfit.models.architecture import Architecture, Mlp
from memfit.models.config import Config
from memfit.models.families._common import norm
from memfit.models.families._decoder import decoder, gqa
from memfit.models.families.llama import llama_like


def internlm(c: Config) -> Architecture:
    """InternLM 1: llama with biases on all four attention projections."""
    bias = c.flag("bias", default=True)
    return llama_like(c, a={"qkv_bias": bias, "out_bias": bias})


def internlm2(c: Config) -> Architecture:
    """InternLM 2 and 2.5: q, k and v fused group by group."""
    bias = c.flag("bias")
    hidden = c.size("hidden_size")
    return llama_like(
        c,
        a={"qkv_bias": bias, "out_bias": bias, "fused_qkv": True},
        owner="attention",
        ffn="feed_forward",
        names={"qkv": "wqkv", "o": "wo"},
        mlp_names={"gate": "w1", "up": "w3", "down": "w2"},
        norm_names=("attention_norm", "ffn_norm"),
        embed="model.tok_embeddings",
        head="output",
        final_norm=norm("model.norm", hidden),
    )


def internlm3(c: Config) -> Architecture:
    """InternLM 3: llama; ``qkv_bias`` for q, k and v, ``bias`` for the rest."""
    rest = c.flag("bias", "mlp_bias")
    qkv = c.flag("qkv_bias", "attention_bias")
    # the class in transformers has one switch for all four attention projections
    return llama_like(c, a={"qkv_bias": qkv, "out_bias": rest or c.flag("attention_bias")}, m={"bias": rest})


def baichuan(c: Config) -> Architecture:
    """Baichuan 1 and 2: fused q/k/v. The 13B sizes use ALiBi and state no ``max_position_embeddings``."""
    alibi = not c.has("max_position_embeddings") and c.size("hidden_size") == 5120
    return llama_like(
        c,
        a={"fused_qkv": True, "rotary": 0 if alibi else 1.0},
        names={"qkv": "W_pack"},
        max_positions=c.opt_size("max_position_embeddings", "model_max_length", low=0),
    )


def qwen1(c: Config) -> Architecture:
    """Qwen 1: ``intermediate_size`` is twice the width; the fused q/k/v has a bias, the rest by ``no_bias``."""
    hidden = c.size("hidden_size")
    bias = not c.flag("no_bias", default=True)
    heads = c.size("num_attention_heads", high=1 << 16)
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(
            c,
            hidden,
            num_kv_heads=heads,
            head_dim=c.size("kv_channels", default=hidden // heads),
            fused_qkv=True,
            qkv_bias=True,
            out_bias=bias,
            dropout=c.number("attn_dropout_prob"),
        ),
        m=Mlp(intermediate=c.size("intermediate_size") // 2, bias=bias),
        owner="attn",
        names={"qkv": "c_attn", "o": "c_proj"},
        mlp_names={"gate": "w2", "up": "w1", "down": "c_proj"},
        norm_names=("ln_1", "ln_2"),
        prefix="transformer.h.{}",
        embed="transformer.wte",
        embed_dropout=c.number("emb_dropout_prob"),
        final_norm=norm("transformer.ln_f", hidden),
        max_positions=c.opt_size("seq_length", "max_position_embeddings", low=0) or 0,
    )


def exaone3(c: Config) -> Architecture:
    """EXAONE 3 and 3.5: llama under GPT-2's names."""
    hidden = c.size("hidden_size")
    act = c.text("activation_function", "hidden_act", default="silu")
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers("num_hidden_layers", "num_layers"),
        a=gqa(c, hidden),
        m=Mlp(intermediate=c.size("intermediate_size"), act=act),
        owner="attn.attention",
        names={"o": "out_proj"},
        mlp_names={"gate": "c_fc_0", "up": "c_fc_1", "down": "c_proj"},
        norm_names=("ln_1", "ln_2"),
        prefix="transformer.h.{}",
        embed="transformer.wte",
        embed_dropout=c.number("embed_dropout"),
        final_norm=norm("transformer.ln_f", hidden),
    )


def orion(c: Config) -> Architecture:
    """Orion 14B: llama with LayerNorm."""
    final = norm("model.norm", c.size("hidden_size"), bias=True)
    return llama_like(c, norm="layer", norm_bias=True, final_norm=final)
