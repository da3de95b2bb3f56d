"""DeepSeek V1 to V3.2 and what shares their layers: Kimi K2, dots.llm1, GLM 4.5, Solar Open, Hunyuan 3, MiniCPM 3.

Routed experts beside shared ones, the first layers dense; latent attention (MLA) from V2 on; one stored layer that
predicts a further token (MTP), which transformers leaves out.
"""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Moe, Stack
from memfit.models.config import Config
from memfit.models.families._common import (
    Tensors,
    attention,
    layer_windows,
    linear,
    mla,
    moe,
    norm,
    norms,
)
from memfit.models.families._decoder import NORMS, after, decoder, gated, gqa
from memfit.models.families.llama import biases

CORRECTION = {"correction": "gate.e_score_correction_bias"}


def latent(c: Config) -> Attention:
    """The sizes of latent attention; a null ``q_lora_rank`` means a direct query projection (V2-Lite)."""
    heads = c.size("num_attention_heads", high=1 << 16)
    nope = c.size("qk_nope_head_dim", low=0)
    rope = c.size("qk_rope_head_dim")
    return Attention(
        kind="mla",
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=nope + rope,
        v_head_dim=c.size("v_head_dim", default=c.size("hidden_size") // heads),
        rotary_dim=rope,
        q_lora_rank=c.opt_size("q_lora_rank", low=0) or 0,
        kv_lora_rank=c.size("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        dropout=c.number("attention_dropout"),
    )


def shared_experts(c: Config, *, count_key: str = "n_routed_experts", shared_key: str = "n_shared_experts") -> Moe:
    """Experts as DeepSeek names them; the shared ones are one MLP of their joint width."""
    count = c.size(count_key, "num_experts", "num_local_experts", high=1 << 16)
    width = c.size("moe_intermediate_size")
    return Moe(
        num_experts=count,
        top_k=c.size("num_experts_per_tok", high=count),
        intermediate=width,
        act=c.text("hidden_act", default="silu"),
        shared_intermediate=width * (c.opt_size(shared_key, low=0, high=1 << 10) or 0),
    )


def mtp(
    c: Config, hidden: int, layers: int, a: Attention, projections: Tensors, e: Moe, names: dict[str, Any]
) -> Stack | None:
    """The stored next-token layers: one routed block each, two norms and a projection of (embedding, hidden) to D.

    Embedding and head are shared with the model and not counted again; checkpoints store copies.
    """
    count = c.opt_size("num_nextn_predict_layers", low=0, high=64) or 0
    if not count:
        return None
    block = Block(
        kind="mtp",
        attention=a,
        ffn=e,
        tensors=(
            *norms(("enorm", "hnorm"), hidden),
            *linear("eh_proj", 2 * hidden, hidden, "other"),
            *projections,
            *moe("mlp", e, hidden, **names),
            *norms(NORMS, hidden),
            *norm("shared_head.norm", hidden),
        ),
    )
    prefix = f"model.layers.{layers}" if count == 1 else "model.mtp.{}"
    return Stack(name="mtp", hidden_size=hidden, blocks=(block,), layout=(0,) * count, prefix=prefix)


def deepseek_v1(c: Config) -> Architecture:
    """DeepSeek-MoE 16B: ordinary attention."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=gqa(c, hidden, **biases(c)),
        m=gated(c),
        e=shared_experts(c),
        routed=after(c, layers),
    )


def deepseek_v2(c: Config) -> Architecture:
    """DeepSeek V2, V2-Lite and V2.5."""
    return _latent(c)


def deepseek_v3(c: Config) -> Architecture:
    """DeepSeek V3, V3.1, R1 and Kimi K2: routing biases (a buffer), an MTP layer."""
    return _latent(c, moe_names=CORRECTION, with_mtp=True)


def glm4_moe_lite(c: Config) -> Architecture:
    """GLM 4.7 Flash: DeepSeek V3 with one dense layer."""
    return _latent(c, moe_names=CORRECTION, with_mtp=True, first=1)


def deepseek_v32(c: Config) -> Architecture:
    """DeepSeek V3.2 and GLM 5: an indexer beside the attention of each layer picks the tokens it reads."""
    hidden = c.size("hidden_size")
    heads = c.size("index_n_heads", default=64, high=1 << 16)
    dim = c.size("index_head_dim", default=128)
    rank = c.size("q_lora_rank")
    indexer = (
        *linear("self_attn.indexer.wq_b", rank, heads * dim, "attention"),
        *linear("self_attn.indexer.wk", hidden, dim, "attention"),
        *norm("self_attn.indexer.k_norm", dim, bias=True),
        *linear("self_attn.indexer.weights_proj", hidden, heads, "attention"),
    )
    return _latent(c, moe_names=CORRECTION, with_mtp=True, more_attention=indexer)


def _latent(
    c: Config,
    *,
    moe_names: dict[str, Any] | None = None,
    with_mtp: bool = False,
    more_attention: Tensors = (),
    first: int = 0,
) -> Architecture:
    hidden = c.size("hidden_size")
    layers = c.layers()
    a = latent(c)
    e = shared_experts(c)
    names = moe_names or {}
    projections = (*mla("self_attn", a, hidden, bias=c.flag("attention_bias")), *more_attention)
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=a,
        m=gated(c, bias=c.flag("mlp_bias")),
        e=e,
        routed=after(c, layers, default=first),
        attention_tensors=projections,
        moe_names=names,
        mtp=mtp(c, hidden, layers, a, projections, e, names) if with_mtp else None,
    )


def latent_dense(c: Config) -> Architecture:
    """MiniCPM 3 and Youtu: latent attention, dense MLP."""
    hidden = c.size("hidden_size")
    a = latent(c)
    return decoder(
        c,
        hidden=hidden,
        layers=c.layers(),
        a=a,
        m=gated(c, bias=c.flag("mlp_bias")),
        attention_tensors=mla("self_attn", a, hidden, bias=c.flag("attention_bias")),
    )


def glm4_moe(c: Config) -> Architecture:
    """GLM 4.5 and 4.6: half of each head turned, q/k norms by switch, an MTP layer."""
    return _grouped(c, rotary=0.5, qk_norm=c.flag("use_qk_norm"), out=False, with_mtp=True)


def solar_open(c: Config) -> Architecture:
    """Solar Open: every layer routed."""
    return _grouped(c, rotary=1.0, qk_norm=False, out=False, first=0)


def hy_v3(c: Config) -> Architecture:
    """Hunyuan 3: q/k norms, one shared expert."""
    return _grouped(
        c,
        rotary=1.0,
        qk_norm=True,
        shared_key="num_shared_experts",
        correction="e_score_correction_bias",
        first=1,
    )


def dots1(c: Config) -> Architecture:
    """dots.llm1: q/k norms; sliding layers where the configuration says so."""
    layers = c.layers()
    first = c.size("max_window_layers", default=c.default("max_window_layers") or layers, low=0, high=1 << 16)
    window = c.opt_size("sliding_window")
    windows = (None,) * layers if window is None else layer_windows(c, layers, window, lambda i: i >= first)
    return _grouped(c, rotary=1.0, qk_norm=True, windows=windows)


def _grouped(
    c: Config,
    *,
    rotary: float,
    qk_norm: bool,
    out: bool | None = None,
    shared_key: str = "n_shared_experts",
    correction: str = "gate.e_score_correction_bias",
    first: int = 0,
    windows: tuple[int | None, ...] | None = None,
    with_mtp: bool = False,
) -> Architecture:
    """DeepSeek's experts under ordinary attention; ``first``: the first routed layer where no key states it."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    a = gqa(c, hidden, rotary=rotary, qk_norm="head" if qk_norm else "none", **biases(c, out=out))
    e = shared_experts(c, shared_key=shared_key)
    names = {"correction": correction}
    routed = after(c, layers, default=first)
    return decoder(
        c,
        hidden=hidden,
        layers=layers,
        a=a,
        m=gated(c, bias=c.flag("mlp_bias")) if not all(routed) else None,
        e=e,
        routed=routed,
        windows=windows,
        moe_names=names,
        mtp=mtp(c, hidden, layers, a, attention("self_attn", a, hidden), e, names) if with_mtp else None,
    )
