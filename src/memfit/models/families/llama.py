"""Llama and close relatives in transformers: RMS norm, rotary attention, gated MLP; biases and norms differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from memfit.models.architecture import Architecture, Stack
from memfit.models.config import Config
from memfit.models.families._common import Tensors, layer_windows, linear, norm, norms, vector
from memfit.models.families._decoder import NORMS, decoder, gated, gqa


def llama_like(
    c: Config, *, a: dict[str, Any] | None = None, m: dict[str, Any] | None = None, **rest: Any
) -> Architecture:
    """A llama whose attention fields ``a``, MLP fields ``m`` and further arguments of ``decoder`` are given."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    return decoder(c, hidden=hidden, layers=layers, a=gqa(c, hidden, **(a or {})), m=gated(c, **(m or {})), **rest)


def biases(c: Config, *, out: bool | None = None) -> dict[str, bool]:
    """The attention biases that ``attention_bias`` switches; ``out`` where the output projection differs."""
    bias = c.flag("attention_bias", "qkv_bias")
    return {"qkv_bias": bias, "out_bias": bias if out is None else out}


def read(c: Config) -> Architecture:
    """Llama 1 to 3 and all that say so."""
    return llama_like(c, a=biases(c), m={"bias": c.flag("mlp_bias")})


def arcee(c: Config) -> Architecture:
    """Arcee AFM: squared ReLU without a gate."""
    return llama_like(c, a=biases(c), m={"bias": c.flag("mlp_bias"), "gated": False})


def jais2(c: Config) -> Architecture:
    """Jais 2: as Arcee, with layer norms."""
    final = norm("model.norm", c.size("hidden_size"), bias=True)
    fields = {"bias": c.flag("mlp_bias"), "gated": False}
    return llama_like(c, a=biases(c), m=fields, norm="layer", norm_bias=True, final_norm=final)


def apertus(c: Config) -> Architecture:
    """Apertus: xIELU without a gate (two learned scalars), q/k norms."""
    more = (
        *vector("mlp.act_fn.alpha_p", 1, "mlp"),
        *vector("mlp.act_fn.alpha_n", 1, "mlp"),
    )
    return llama_like(
        c,
        a={**biases(c), "qk_norm": "head"},
        m={"bias": c.flag("mlp_bias"), "gated": False},
        norm_names=("attention_layernorm", "feedforward_layernorm"),
        more=more,
    )


def seed_oss(c: Config) -> Architecture:
    """Seed-OSS: biases on q, k, v; the output bias has a switch of its own."""
    out = c.flag("attention_out_bias")
    # residual_dropout is in the configuration's defaults, and applied to the attention output in training
    return llama_like(c, a=biases(c, out=out), m={"bias": c.flag("mlp_bias")}, dropout=c.number("residual_dropout"))


def hunyuan_dense(c: Config) -> Architecture:
    """Hunyuan dense: q/k norms per head under other names."""
    names = {"q_norm": "query_layernorm", "k_norm": "key_layernorm"}
    return llama_like(c, a={**biases(c), "qk_norm": "head"}, names=names)


def smollm3(c: Config) -> Architecture:
    """SmolLM3: every fourth layer without rotary embedding; sliding windows only where switched on."""
    layers = c.layers()
    step = c.size("no_rope_layer_interval", default=4, high=4096)
    stated = c.sizes("no_rope_layers", length=layers, high=1)
    rope = tuple(bool(r) for r in stated) if stated else tuple((i + 1) % step != 0 for i in range(layers))
    window = c.opt_size("sliding_window") if c.flag("use_sliding_window") else None
    windows = layer_windows(c, layers, window, lambda i: not rope[i])
    return llama_like(c, a=biases(c), m={"bias": c.flag("mlp_bias")}, rope=rope, windows=windows)


def helium(c: Config) -> Architecture:
    """Helium: the output projection has no bias."""
    return llama_like(c, a=biases(c, out=False), m={"bias": c.flag("mlp_bias")})


def cwm(c: Config) -> Architecture:
    """Code World Model: one full layer, then three sliding ones."""
    windows = layer_windows(c, c.layers(), c.opt_size("sliding_window"), lambda i: i % 4 != 0)
    return llama_like(c, m={"bias": c.flag("mlp_bias")}, windows=windows)


def bitnet(c: Config) -> Architecture:
    """BitNet: further norms before the output and down projections, squared-ReLU gate."""
    hidden = c.size("hidden_size")
    more = (
        *norm("self_attn.attn_sub_norm", hidden),
        *norm("mlp.ffn_sub_norm", c.size("intermediate_size")),
    )
    return llama_like(c, a=biases(c), more=more)


def diffllama(c: Config) -> Architecture:
    """DiffLlama: four learned lambda vectors an attention module."""
    head_dim = c.head_dim(c.size("hidden_size"), c.size("num_attention_heads"))
    names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    more = tuple(t for n in names for t in vector(f"self_attn.{n}", head_dim, "attention"))
    return llama_like(c, a=biases(c), more=more)


def mimo(c: Config) -> Architecture:
    """MiMo: llama with biases on q, k and v, and dense layers that predict further tokens (7,833,409,536 with one)."""
    tree = llama_like(c, a={"qkv_bias": c.flag("attention_bias", default=True), "out_bias": False})
    count = c.opt_size("num_nextn_predict_layers", low=0, high=64) or 0
    if not count:
        return tree
    hidden = tree.hidden_size
    block = tree.decoder.blocks[0]
    extra = (
        *norms(("token_layernorm", "hidden_layernorm", "final_layernorm"), hidden),
        *linear("input_proj", 2 * hidden, hidden, "other"),
    )
    block = replace(block, kind="mtp", tensors=(*block.tensors, *extra))
    stack = Stack(name="mtp", hidden_size=hidden, blocks=(block,), layout=(0,) * count, prefix="model.mtp_layers.{}")
    return replace(tree, mtp=stack)


def ernie(c: Config) -> Architecture:
    """ERNIE 4.5 dense: one switch for all biases."""
    bias = c.flag("use_bias")
    return llama_like(c, a={"qkv_bias": bias, "out_bias": bias}, m={"bias": bias})


def nanochat(c: Config) -> Architecture:
    """nanochat: norms without weights, squared ReLU without gate, capped logits."""
    return llama_like(
        c,
        a=biases(c),
        m={"gated": False},
        mlp_names={"up": "fc1", "down": "fc2"},
        norm_weight=False,
        final_norm=(),
        logit_softcap=c.has("final_logit_softcapping") or c.default("final_logit_softcapping") is not None,
    )


def nemotron(c: Config) -> Architecture:
    """Nemotron 3/4: squared ReLU without a gate, LayerNorm with bias (weight + 1), half of each head turned."""
    final = norm("model.norm", c.size("hidden_size"), bias=True)
    fields = {"gated": False, "bias": c.flag("mlp_bias"), "act": c.text("hidden_act", default="relu2")}
    return llama_like(c, a={**biases(c), "rotary": 0.5}, m=fields, norm="layer", norm_bias=True, final_norm=final)


def stablelm(c: Config) -> Architecture:
    """StableLM 2 and 3B-4E1T: LayerNorm, a quarter of each head turned, norms per head and parallel by switch."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads")
    parallel = c.flag("use_parallel_residual")
    more: Tensors = ()
    if c.flag("qk_layernorm"):
        # one LayerNorm without bias for each head
        dim = hidden // heads
        sides = (("q", heads), ("k", c.kv_heads(heads)))
        more = tuple(
            t for side, n in sides for i in range(n) for t in norm(f"self_attn.{side}_layernorm.norms.{i}", dim)
        )
    return llama_like(
        c,
        a={"qkv_bias": c.flag("use_qkv_bias"), "rotary": 0.25},
        norm="layer",
        norm_bias=True,
        norm_names=NORMS[:1] if parallel else NORMS,
        parallel=parallel,
        dropout=c.number("hidden_dropout"),
        final_norm=norm("model.norm", hidden, bias=True),
        more=more,
    )
