"""Routed families with particular experts: gpt-oss, Llama 4 (text), ERNIE 4.5, Hunyuan-A13B, Grok 1."""

from __future__ import annotations

from dataclasses import replace

from memfit.models.architecture import Architecture, Mlp, Moe
from memfit.models.config import Config
from memfit.models.families._common import attention, layer_windows
from memfit.models.families._decoder import decoder, gated, gqa
from memfit.models.families.llama import biases
from memfit.models.families.mistral import experts


def gpt_oss(c: Config) -> Architecture:
    """gpt-oss: sliding and full layers in turn, attention sinks, biases in router and experts.

    The library stores the experts' matrices as (in, out); here they are (out, in) as everywhere.
    """
    hidden = c.size("hidden_size")
    layers = c.layers()
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, sinks=True, **biases(c)),
        e=experts(c),
        windows=layer_windows(c, layers, c.opt_size("sliding_window"), lambda i: i % 2 == 0),
        moe_names={"router": "router", "router_bias": True, "bias": True, "fused": "gate_up_proj"},
    )


def llama4_text(c: Config) -> Architecture:
    """Llama 4: chunked attention with rotary embedding, every fourth layer full without; q/k norms have no weights."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    step = c.size("no_rope_layer_interval", default=4, high=4096)
    stated = c.sizes("no_rope_layers", high=1)
    rope = (
        tuple(bool(r) for r in c.sizes("no_rope_layers", length=layers) or ())
        if stated
        else tuple((i + 1) % step != 0 for i in range(layers))
    )
    chunk = c.opt_size("attention_chunk_size", default=8192)
    windows = layer_windows(c, layers, chunk, lambda i: rope[i])
    listed = c.sizes("moe_layers", high=layers - 1)
    every = c.size("interleave_moe_layer_step", default=1, high=4096)
    routed = (
        tuple(i in frozenset(listed) for i in range(layers))
        if listed is not None
        else tuple((i + 1) % every == 0 for i in range(layers))
    )
    a = gqa(c, hidden, **biases(c))
    count = c.size("num_local_experts", high=1 << 16)
    width = c.size("intermediate_size")
    e = Moe(
        num_experts=count,
        top_k=c.size("num_experts_per_tok", high=count),
        intermediate=width,
        act=c.text("hidden_act", default="silu"),
        shared_intermediate=width,
    )
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=replace(a, qk_norm="head") if c.flag("use_qk_norm") else a,
        attention_tensors=attention("self_attn", a, hidden),
        m=Mlp(intermediate=c.size("intermediate_size_mlp"), act=e.act),
        e=e,
        routed=routed,
        windows=windows,
        rope=rope,
        sliding="chunked",
        ffn="feed_forward",
        moe_names={"router": "router", "fused": "gate_up_proj", "shared": "shared_expert"},
    )


def ernie_moe(c: Config) -> Architecture:
    """ERNIE 4.5 routed: the layers from start to end index at an interval; routing biases are parameters."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    bias = c.flag("use_bias")
    start = c.size("moe_layer_start_index", low=0, high=1 << 16)
    end = c.size("moe_layer_end_index", low=-1, high=1 << 16)
    step = c.size("moe_layer_interval", default=1, high=1 << 16)
    last = layers - 1 if end == -1 else end
    count = c.size("moe_num_experts", high=1 << 16)
    width = c.size("moe_intermediate_size")
    e = Moe(
        num_experts=count,
        top_k=c.size("moe_k", high=count),
        intermediate=width,
        act=c.text("hidden_act", default="silu"),
        shared_intermediate=width * (c.opt_size("moe_num_shared_experts", low=0, high=1 << 10) or 0),
    )
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, qkv_bias=bias, out_bias=bias),
        m=gated(c, bias=bias),
        e=e,
        routed=tuple(start <= i <= last and (i + 1) % step == 0 for i in range(layers)),
        moe_names={
            "correction": "moe_statics.e_score_correction_bias",
            "correction_buffer": False,
            "shared_bias": bias,
        },
        head_bias=bias,
    )


def hunyuan_moe(c: Config) -> Architecture:
    """Hunyuan-A13B: sixty-four experts beside a shared one of the same width; q/k norms."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    count = c.size("num_experts", high=1 << 16)
    listed = c.raw("moe_topk")
    if isinstance(listed, list):  # one entry a layer in the published configuration
        top_k = max(c.sizes("moe_topk", low=1, high=count) or (1,))
    else:
        top_k = c.size("moe_topk", "num_experts_per_tok", high=count)
    width = c.size("intermediate_size")
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, qk_norm="head", **biases(c)),
        e=Moe(
            num_experts=count,
            top_k=top_k,
            intermediate=width,
            act=c.text("hidden_act", default="silu"),
            shared_intermediate=width,
        ),
        names={"q_norm": "query_layernorm", "k_norm": "key_layernorm"},
        moe_names={"router": "gate.wg", "shared": "shared_mlp"},
    )


def grok1(c: Config) -> Architecture:
    """Grok 1 as converted for transformers (hpcai-tech/grok-1): eight experts, four norms, capped attention logits."""
    hidden = c.size("hidden_size")
    count = c.size("num_experts", default=8, high=1 << 16)
    e = Moe(
        num_experts=count,
        top_k=c.size("num_experts_per_tok", default=2, high=count),
        intermediate=c.size("intermediate_size"),
        act="gelu",
    )
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(c, hidden, softcap=True),
        e=e,
        owner="attn",
        ffn="moe_block",
        moe_names={"gate": "linear", "up": "linear_v", "down": "linear_1"},
        norm_names=("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"),
        tied=c.flag("tie_word_embeddings", default=True),
    )
