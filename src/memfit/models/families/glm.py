"""GLM 4 in transformers (glm, glm4) and ChatGLM 1 to 3 and GLM-4-9B as their own code has them (chatglm)."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Mlp
from memfit.models.config import Config
from memfit.models.families._common import norm
from memfit.models.families._decoder import NORMS, decoder
from memfit.models.families.llama import biases, llama_like


def glm(c: Config) -> Architecture:
    """GLM-4-9B in transformers: fused gate and up, half of each head turned."""
    return llama_like(c, a={**biases(c, out=False), "rotary": 0.5}, m={"fused_gate_up": True})


def glm4(c: Config) -> Architecture:
    """GLM-4-0414: further norms behind both sub-layers."""
    return llama_like(
        c,
        a={**biases(c, out=False), "rotary": 0.5},
        m={"fused_gate_up": True},
        norm_names=(*NORMS, "post_self_attn_layernorm", "post_mlp_layernorm"),
    )


def chatglm(c: Config) -> Architecture:
    """ChatGLM2, ChatGLM3 and GLM-4-9B; a configuration with ``inner_hidden_size`` is the first ChatGLM-6B.

    Shapes follow the public modeling code beside the checkpoints; the counts are the published ones
    (6,243,584,000 for THUDM/chatglm3-6b; 9,399,951,360 for THUDM/glm-4-9b; 6,173,286,400 for THUDM/chatglm-6b).
    """
    if c.has("inner_hidden_size"):
        return _first(c)
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    dim = c.size("kv_channels", default=hidden // heads)
    kv = c.size("multi_query_group_num", high=heads) if c.flag("multi_query_attention") else heads
    linear_bias = c.flag("add_bias_linear")
    a = Attention(
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=dim,
        v_head_dim=dim,
        rotary_dim=dim // 2,
        fused_qkv=True,
        qkv_bias=c.flag("add_qkv_bias") or linear_bias,
        out_bias=linear_bias,
        dropout=c.number("attention_dropout"),
    )
    rms = c.flag("rmsnorm", default=True)
    final = norm("transformer.encoder.final_layernorm", hidden, bias=not rms)
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers("num_layers", "num_hidden_layers"),
        a=a,
        m=Mlp(intermediate=c.size("ffn_hidden_size"), fused_gate_up=True, bias=linear_bias),
        owner="self_attention",
        names={"qkv": "query_key_value", "o": "dense"},
        mlp_names={"gate_up": "dense_h_to_4h", "down": "dense_4h_to_h"},
        norm="rms" if rms else "layer",
        norm_bias=not rms,
        dropout=c.number("hidden_dropout"),
        vocab=c.size("padded_vocab_size", "vocab_size"),
        prefix="transformer.encoder.layers.{}",
        embed="transformer.embedding.word_embeddings",
        final_norm=final if c.flag("post_layer_norm", default=True) else (),
        head="transformer.output_layer",
        tied=c.flag("tie_word_embeddings"),
        max_positions=c.opt_size("seq_length", low=0) or 0,
        headless_names=False,
    )


def _first(c: Config) -> Architecture:
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    dim = hidden // heads
    a = Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=dim,
        v_head_dim=dim,
        rotary_dim=dim,
        fused_qkv=True,
        qkv_bias=True,
        out_bias=True,
    )
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers("num_layers", "num_hidden_layers"),
        a=a,
        m=Mlp(intermediate=c.size("inner_hidden_size"), gated=False, act="gelu", bias=True),
        owner="attention",
        names={"qkv": "query_key_value", "o": "dense"},
        mlp_names={"up": "dense_h_to_4h", "down": "dense_4h_to_h"},
        norm="layer",
        norm_bias=True,
        prefix="transformer.layers.{}",
        embed="transformer.word_embeddings",
        final_norm=norm("transformer.final_layernorm", hidden, bias=True),
        tied=True,
        headless_names=False,
    )
