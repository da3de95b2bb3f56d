"""Phi 1, 1.5 and 2 (parallel blocks, biases everywhere) and Phi 3 and 4 (llama with fused projections)."""

from __future__ import annotations

from memfit.models.architecture import Architecture
from memfit.models.config import Config
from memfit.models.families._common import layer_windows, norm
from memfit.models.families._decoder import NORMS
from memfit.models.families.llama import llama_like


def phi(c: Config) -> Architecture:
    """Phi 1 to 2: attention and MLP read one LayerNorm; the head has a bias."""
    names = {"o": "dense", "q_norm": "q_layernorm", "k_norm": "k_layernorm", "norm_bias": True}
    return llama_like(
        c,
        a={
            "qkv_bias": True,
            "out_bias": True,
            "qk_norm": "head" if c.flag("qk_layernorm") else "none",
            "rotary": 0.5,
        },
        m={"gated": False, "bias": True},
        names=names,
        mlp_names={"up": "fc1", "down": "fc2"},
        norm_names=NORMS[:1],
        norm="layer",
        norm_bias=True,
        parallel=True,
        dropout=c.number("resid_pdrop"),
        embed_dropout=c.number("embd_pdrop"),
        final_norm=norm("model.final_layernorm", c.size("hidden_size"), bias=True),
        head_bias=True,
    )


def phi3(c: Config) -> Architecture:
    """Phi 3, 3.5 and 4: fused q/k/v and fused gate/up."""
    return llama_like(
        c,
        a={"fused_qkv": True},
        m={"fused_gate_up": True},
        windows=layer_windows(c, c.layers(), c.opt_size("sliding_window")),
        dropout=c.number("resid_pdrop"),
        embed_dropout=c.number("embd_pdrop"),
    )
