"""OLMo 1, 2 and 3, OLMoE, FlexOlmo; Granite 3 and its routed variants; EXAONE 4 and its routed variant."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Mlp, Moe
from memfit.models.config import Config
from memfit.models.families._common import Tensors, layer_windows, mlp
from memfit.models.families._decoder import NORMS, after, decoder, gated, gqa
from memfit.models.families.llama import biases, llama_like
from memfit.models.families.mistral import experts

POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def olmo(c: Config) -> Architecture:
    """OLMo 1: LayerNorm without weights."""
    return llama_like(c, a=biases(c), norm="layer", norm_weight=False, final_norm=())


def olmo2(c: Config) -> Architecture:
    """OLMo 2: norms behind the sub-layers, q/k norms over all heads."""
    return llama_like(c, a={**biases(c), "qk_norm": "full"}, norm_names=POST_NORMS)


def olmo3(c: Config) -> Architecture:
    """OLMo 3: OLMo 2 with three sliding layers, then a full one."""
    windows = layer_windows(c, c.layers(), c.opt_size("sliding_window"), lambda i: (i + 1) % 4 != 0)
    return llama_like(c, a={**biases(c), "qk_norm": "full"}, norm_names=POST_NORMS, windows=windows)


def olmoe(c: Config) -> Architecture:
    """OLMoE: 64 small experts in every layer."""
    hidden = c.size("hidden_size")
    a = gqa(c, hidden, qk_norm="full", **biases(c))
    return decoder(c, hidden=hidden, layers=c.layers(), a=a, e=experts(c))


def flex_olmo(c: Config) -> Architecture:
    """FlexOlmo: OLMo 2 with experts."""
    hidden = c.size("hidden_size")
    a = gqa(c, hidden, qk_norm="full", **biases(c))
    return decoder(c, hidden=hidden, layers=c.layers(), a=a, e=experts(c), norm_names=POST_NORMS)


def granite(c: Config) -> Architecture:
    """Granite 3: llama with multipliers."""
    return llama_like(c, a=biases(c), m={"bias": c.flag("mlp_bias")})


def granite_moe(c: Config) -> Architecture:
    """Granite 3 routed, with or without a shared expert (whose projections are fused too)."""
    hidden = c.size("hidden_size")
    shared = c.opt_size("shared_intermediate_size", low=0) or 0
    e = experts(c)
    more: Tensors = ()
    if shared:
        e = Moe(
            num_experts=e.num_experts,
            top_k=e.top_k,
            intermediate=e.intermediate,
            act=e.act,
            shared_intermediate=shared,
        )
        inner = Mlp(intermediate=shared, fused_gate_up=True)
        more = mlp("shared_mlp", inner, hidden, gate_up="input_linear", down="output_linear")
    names = {"router": "router.layer", "fused": "input_linear", "down": "output_linear", "shared": ""}
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=gqa(c, hidden, **biases(c)),
        e=e,
        ffn="block_sparse_moe",
        moe_names=names,
        more=more,
    )


def _exaone_windows(c: Config, layers: int) -> tuple[int | None, ...]:
    window = c.opt_size("sliding_window")
    if window is None:
        return (None,) * layers
    pattern = c.raw("sliding_window_pattern")
    if isinstance(pattern, str):  # "LLLG": L local, G global
        return layer_windows(c, layers, window, lambda i: pattern[i % len(pattern)] != "G" if pattern else True)
    step = c.size("sliding_window_pattern", default=4, high=4096)
    return layer_windows(c, layers, window, lambda i: (i + 1) % step != 0)


def exaone4(c: Config) -> Architecture:
    """EXAONE 4: q/k norms, norms behind the sub-layers; in the hybrid sizes full layers have no rotary embedding."""
    windows = _exaone_windows(c, c.layers())
    hybrid = any(w is not None for w in windows)
    rope = tuple(w is not None or not hybrid for w in windows)
    return llama_like(c, a={"qk_norm": "head"}, norm_names=POST_NORMS, windows=windows, rope=rope)


def exaone_moe(c: Config) -> Architecture:
    """EXAONE routed: the first layers dense, a shared expert."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    windows = _exaone_windows(c, layers)
    hybrid = any(w is not None for w in windows)
    count = c.size("num_experts", high=1 << 16)
    width = c.size("moe_intermediate_size")
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, qk_norm="head"),
        m=gated(c),
        e=Moe(
            num_experts=count,
            top_k=c.size("num_experts_per_tok", high=count),
            intermediate=width,
            act=c.text("hidden_act", default="silu"),
            shared_intermediate=width * c.size("num_shared_experts", low=0, high=1 << 10),
        ),
        routed=after(c, layers, default=1),
        windows=windows,
        rope=tuple(w is not None or not hybrid for w in windows),
        norm_names=NORMS,
        moe_names={"correction": "gate.e_score_correction_bias"},
    )
