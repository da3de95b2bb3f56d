"""Gemma 4 (text): wide heads in full layers, shared k/v caches, per-layer embeddings, experts beside the dense MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe, Tensor
from memfit.models.config import Config
from memfit.models.families._common import (
    Tensors,
    assemble,
    attention,
    embedding,
    layout,
    linear,
    mlp,
    moe,
    norm,
    norms,
    vector,
)
from memfit.models.families._decoder import GEMMA_NORMS
from memfit.models.families.gemma import capped

TYPES = ("sliding_attention", "full_attention")
EXPERT_NORMS = ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2")


@dataclass(frozen=True)
class _Kind:
    """What distinguishes one layer from another."""

    full: bool
    shared: bool
    head_dim: int
    kv_heads: int


def _kinds(c: Config) -> list[_Kind]:
    """The kind of each layer; newer configurations state head sizes layer by layer in ``per_layer_config``."""
    count = c.layers()
    types = list(c.texts("layer_types", length=count, allowed=TYPES) or [TYPES[(i + 1) % 6 == 0] for i in range(count)])
    types[-1] = TYPES[1]  # the class insists on a full last layer
    first_shared = count - c.size("num_kv_shared_layers", low=0, high=count)
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim, kv_heads = c.size("head_dim"), c.kv_heads(heads)
    full_dim = c.size("global_head_dim", default=512)
    full_kv = (c.opt_size("num_global_key_value_heads") if c.flag("attention_k_eq_v") else None) or kv_heads
    stated = c.raw("per_layer_config")
    by_layer: Mapping[object, object] | None = stated if isinstance(stated, Mapping) else None
    kinds = []
    for index, name in enumerate(types):
        full = name == TYPES[1]
        own_dim, own_kv = (full_dim, full_kv) if full else (head_dim, kv_heads)
        if by_layer is not None:
            entry = by_layer.get(str(index), by_layer.get(index))
            entry = Config(entry if isinstance(entry, Mapping) else {}, "", path=f"{c.path}per_layer_config.")
            own_dim = entry.size("head_dim", default=head_dim)
            own_kv = entry.size("num_key_value_heads", default=kv_heads)
        kinds.append(_Kind(full, index >= first_shared, own_dim, own_kv))
    return kinds


def gemma4_text(c: Config) -> Architecture:
    """The last ``num_kv_shared_layers`` layers have no k/v projections and read an earlier layer's cache.

    With ``attention_k_eq_v`` the full layers have no v projection: values are the keys before norm and rotation, and
    are cached apart all the same.
    """
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    bias = c.flag("attention_bias")
    act = c.text("hidden_activation")
    width = c.size("intermediate_size")
    small = c.size("hidden_size_per_layer_input", low=0)
    keys_are_values = c.flag("attention_k_eq_v")
    more, routed = _extras(c, hidden, small, act)
    kinds = _kinds(c)
    sizes = {(k.full, k.head_dim, k.kv_heads) for k in kinds}

    def make(kind: _Kind) -> Block:
        a = Attention(
            num_heads=heads,
            num_kv_heads=kind.kv_heads,
            head_dim=kind.head_dim,
            v_head_dim=kind.head_dim,
            window=None if kind.full else c.size("sliding_window"),
            causal=c.text("use_bidirectional_attention") != "all",
            rotary_dim=kind.head_dim,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm="head",
            kv_shared=kind.shared,
            dropout=c.number("attention_dropout"),
        )
        doubled = kind.shared and c.flag("use_double_wide_mlp")
        m = Mlp(intermediate=width * (2 if doubled else 1), act=act)
        projections = attention("self_attn", a, hidden, kv_proj=not kind.shared)
        if keys_are_values and kind.full:
            projections = tuple(t for t in projections if not t.name.startswith("self_attn.v_proj"))
        ffn: Mlp | Moe = m
        if routed is not None:
            ffn = Moe(
                num_experts=routed.num_experts,
                top_k=routed.top_k,
                intermediate=routed.intermediate,
                act=act,
                dense=m,
            )
        name = f"{'full' if kind.full else 'sliding'}{'+shared-kv' if kind.shared else ''}"
        if sum(full == kind.full for full, _, _ in sizes) > 1:
            name += f"+{kind.kv_heads}x{kind.head_dim}"
        return Block(
            kind=name,
            attention=a,
            ffn=ffn,
            num_norms=4 + (3 if routed is not None else 0) + (1 if small else 0),
            tensors=(*projections, *mlp("mlp", m, hidden), *norms(GEMMA_NORMS, hidden), *more),
        )

    blocks, layers = layout(kinds, make)
    extra: Tensors = ()
    tables: Tensors = ()
    if small:
        total = len(kinds) * small
        tables = embedding("model.embed_tokens_per_layer", c.size("vocab_size_per_layer_input"), total)
        extra = (
            *linear("model.per_layer_model_projection", hidden, total, "other"),
            *norm("model.per_layer_projection_norm", small),
        )
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        embeddings=tables,
        extra=extra,
        logit_softcap=capped(c, "final_logit_softcapping"),
    )


def _extras(c: Config, hidden: int, small: int, act: str) -> tuple[Tensors, Moe | None]:
    """What every layer holds besides attention and MLP: its scale, the per-layer input, router and experts."""
    out: list[Tensor] = [*vector("layer_scalar", 1, buffer=True)]
    if small:
        out += linear("per_layer_input_gate", hidden, small, "other")
        out += linear("per_layer_projection", small, hidden, "other")
        out += norm("post_per_layer_input_norm", hidden)
    if not c.flag("enable_moe_block"):
        return tuple(out), None
    count = c.size("num_experts")
    routed = Moe(
        num_experts=count,
        top_k=c.size("top_k_experts", high=count),
        intermediate=c.size("moe_intermediate_size"),
        act=act,
    )
    out += moe("", routed, hidden, router="router.proj")
    out += vector("router.scale", hidden, "router")
    out += vector("router.per_expert_scale", count, "router")
    out += norms(EXPERT_NORMS, hidden)
    return tuple(out), routed
