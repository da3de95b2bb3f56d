"""One builder for the decoders that are llama with other constants; the family files state the constants.

Dimension legend: D hidden, H query heads, K key/value heads, N head dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Code, Mlp, Moe
from memfit.models.config import Config
from memfit.models.families._common import Tensors, assemble, attention, layout, mlp, moe, norms

NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def gqa(c: Config, hidden: int, *, rotary: float = 1.0, **fields: Any) -> Attention:
    """Attention sizes as most families name them.

    Args:
        c: the configuration.
        hidden: D.
        rotary: the part of each head that rotary embedding turns where the configuration does not say; 0 for none.
        **fields: further fields of Attention; they win.
    """
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = fields.pop("head_dim", None) or c.head_dim(hidden, heads)
    sizes: dict[str, Any] = {
        "num_heads": heads,
        "num_kv_heads": fields.pop("num_kv_heads", None) or c.kv_heads(heads),
        "head_dim": head_dim,
        "v_head_dim": head_dim,
        "rotary_dim": c.rotary_dim(head_dim, default=rotary) if rotary else 0,
        "dropout": fields.pop("dropout", None) or c.number("attention_dropout"),
    }
    return Attention(**{**sizes, **fields})


def gated(c: Config, *, width: int | None = None, **fields: Any) -> Mlp:
    """The MLP sizes as most families name them; ``fields`` of Mlp win."""
    act = c.text("hidden_act", "hidden_activation", default=c.default("hidden_activation") or "silu")
    sizes: dict[str, Any] = {"intermediate": width or c.size("intermediate_size"), "act": act}
    return Mlp(**{**sizes, **fields})


def every(c: Config, layers: int, step: str, dense_key: str = "mlp_only_layers") -> tuple[bool, ...]:
    """Which layers are routed: every ``step``-th one that is not listed under ``dense_key``."""
    interval = c.size(step, default=1, high=1 << 16)
    dense = frozenset(c.sizes(dense_key, high=1 << 16) or ())
    return tuple(i not in dense and (i + 1) % interval == 0 for i in range(layers))


def after(c: Config, layers: int, *, default: int = 0) -> tuple[bool, ...]:
    """Which layers are routed: those after the first ``first_k_dense_replace``, or as ``mlp_layer_types`` lists."""
    stated = c.texts("mlp_layer_types", length=layers, allowed=("dense", "sparse"))
    if stated is not None:
        return tuple(kind == "sparse" for kind in stated)
    start = c.size("first_k_dense_replace", default=default, low=0, high=1 << 16)
    return tuple(i >= start for i in range(layers))


def decoder(
    c: Config,
    *,
    hidden: int,
    layers: int,
    a: Attention,
    m: Mlp | None = None,
    e: Moe | None = None,
    routed: Sequence[bool] | None = None,
    windows: Sequence[int | None] | None = None,
    rope: Sequence[bool] | None = None,
    owner: str = "self_attn",
    ffn: str = "mlp",
    ffn_moe: str | None = None,
    names: Mapping[str, Any] | None = None,
    mlp_names: Mapping[str, Any] | None = None,
    moe_names: Mapping[str, Any] | None = None,
    norm_names: Sequence[str] = NORMS,
    norm: str = "rms",
    norm_bias: bool = False,
    norm_weight: bool = True,
    parallel: bool = False,
    dropout: float = 0.0,
    sliding: str = "sliding",
    more: Tensors = (),
    attention_tensors: Tensors | None = None,
    code: Code | None = None,
    **rest: Any,
) -> Architecture:
    """A decoder of blocks that differ at most in window, rotary embedding and dense or routed feed-forward.

    Args:
        c: the configuration.
        hidden: D.
        layers: number of layers.
        a: attention of a layer with full attention and rotary embedding.
        m: the dense feed-forward layer.
        e: the routed feed-forward layer.
        routed: for each layer whether it is routed; default: all when ``e`` is given.
        windows: for each layer the window or None; default: none.
        rope: for each layer whether it has rotary embedding; default: all.
        owner: name of the attention module.
        ffn: name of the feed-forward module; ``ffn_moe`` where the routed one has another.
        ffn_moe: as ffn.
        names: arguments for ``attention``; mlp_names for ``mlp``, moe_names for ``moe``.
        mlp_names: as names.
        moe_names: as names.
        norm_names: the hidden-size norms of a block.
        norm: kind of norm.
        norm_bias: the norms have a bias.
        norm_weight: False for norms without parameters.
        parallel: attention and feed-forward read the same residual.
        dropout: residual dropout.
        sliding: word for windowed layers in the block's kind.
        more: further tensors of each block.
        attention_tensors: the tensors of the attention module where ``attention`` does not fit.
        code: how transformers computes the block, where the configuration decides; else a row of ``code.toml``.
        **rest: arguments of ``assemble``.
    """
    routes = tuple(routed) if routed is not None else (e is not None,) * layers
    spans = tuple(windows) if windows is not None else (None,) * layers
    turns = tuple(rope) if rope is not None else (a.rotary_dim > 0,) * layers
    projections = attention(owner, a, hidden, **(names or {})) if attention_tensors is None else attention_tensors

    def make(kind: tuple[int | None, bool, bool]) -> Block:
        window, turned, route = kind
        word = "full" if window is None else sliding
        if not turned and any(turns):
            word += "+nope"
        if route:
            assert e is not None
            word += "+moe" if any(routes) and not all(routes) else ""
            body = moe(ffn_moe or ffn, e, hidden, **(moe_names or {}))
        else:
            assert m is not None
            word += "+dense" if any(routes) else ""
            body = mlp(ffn, m, hidden, **(mlp_names or {}))
        return Block(
            kind=word,
            attention=replace(a, window=window, rotary_dim=a.rotary_dim if turned else 0),
            ffn=e if route else m,
            norm="layer" if norm == "layer" else "rms",
            num_norms=len(norm_names),
            parallel=parallel,
            dropout=dropout,
            tensors=(
                *projections,
                *body,
                *(norms(norm_names, hidden, bias=norm_bias) if norm_weight else ()),
                *more,
            ),
            code=code or Code(),
        )

    blocks, order = layout(tuple(zip(spans, turns, routes, strict=True)), make)
    return assemble(c, hidden=hidden, blocks=blocks, layers=order, **rest)
