"""Qwen 2, 2.5 and 3, dense and routed."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Moe
from memfit.models.config import Config
from memfit.models.families._common import layer_windows
from memfit.models.families._decoder import decoder, every, gated, gqa
from memfit.models.families.llama import biases, llama_like


def windows(c: Config, layers: int) -> tuple[int | None, ...]:
    """Sliding layers, only with ``use_sliding_window``: those from ``max_window_layers`` on."""
    if not c.flag("use_sliding_window"):
        return (None,) * layers
    first = c.size("max_window_layers", default=c.default("max_window_layers") or 28, low=0, high=1 << 16)
    return layer_windows(c, layers, c.opt_size("sliding_window", default=4096), lambda i: i >= first)


def qwen2(c: Config) -> Architecture:
    """Qwen 1.5, 2 and 2.5: biases on q, k and v."""
    return llama_like(c, a={"qkv_bias": True}, windows=windows(c, c.layers()))


def qwen3(c: Config) -> Architecture:
    """Qwen 3: q/k norms per head, no biases."""
    return llama_like(c, a={**biases(c), "qk_norm": "head"}, windows=windows(c, c.layers()))


def qwen2_moe(c: Config) -> Architecture:
    """Qwen 1.5-MoE and 2-57B-A14B: small experts beside one gated shared expert."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    count = c.size("num_experts", high=1 << 16)
    shared = c.size("shared_expert_intermediate_size")
    spans: tuple[int | None, ...] = (None,) * layers
    if c.flag("use_sliding_window"):
        first = c.size("max_window_layers", default=28, low=0, high=1 << 16)
        window = c.opt_size("sliding_window", default=4096)
        spans = layer_windows(c, layers, window, lambda i: i % 2 == 0 and i < first)
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, qkv_bias=c.flag("qkv_bias", default=True)),
        m=gated(c),
        e=Moe(
            num_experts=count,
            top_k=c.size("num_experts_per_tok", high=count),
            intermediate=c.size("moe_intermediate_size"),
            act=c.text("hidden_act", default="silu"),
            shared_intermediate=shared,
            shared_gate=True,
        ),
        routed=every(c, layers, "decoder_sparse_step"),
        windows=spans,
        moe_names={"shared": "shared_expert"},
    )


def qwen3_moe(c: Config) -> Architecture:
    """Qwen 3 routed: 128 small experts, no shared one."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    count = c.size("num_experts", "num_local_experts", high=1 << 16)
    window = c.opt_size("sliding_window") if c.flag("use_sliding_window") else None
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, qk_norm="head", **biases(c)),
        m=gated(c),
        e=Moe(
            num_experts=count,
            top_k=c.size("num_experts_per_tok", high=count),
            intermediate=c.size("moe_intermediate_size"),
            act=c.text("hidden_act", default="silu"),
        ),
        routed=every(c, layers, "decoder_sparse_step"),
        windows=(window,) * layers,
    )
