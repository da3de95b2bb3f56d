"""Gemma 1, 2 and 3 (text): norms on both sides of each sub-layer from Gemma 2 on, sliding windows, capped logits."""

from __future__ import annotations

from memfit.models.architecture import Architecture
from memfit.models.config import Config
from memfit.models.families._common import layer_windows
from memfit.models.families._decoder import GEMMA_NORMS, NORMS
from memfit.models.families.llama import biases, llama_like


def capped(c: Config, key: str) -> bool:
    """Whether the configuration (or the class default) caps these logits."""
    return c.has(key) or (not c.null(key) and c.default(key) is not None)


def activation(c: Config) -> str:
    """``hidden_activation`` where stated; older configurations wrote ``hidden_act``; the code ran the tanh GELU."""
    return c.text("hidden_activation", default="gelu_pytorch_tanh")


def gemma(c: Config) -> Architecture:
    """Gemma 1."""
    return llama_like(c, a=biases(c), m={"act": activation(c)})


def gemma2(c: Config) -> Architecture:
    """Gemma 2: every other layer slides, attention and final logits are capped."""
    windows = layer_windows(c, c.layers(), c.opt_size("sliding_window"), lambda i: i % 2 == 0)
    return llama_like(
        c,
        a={**biases(c), "softcap": capped(c, "attn_logit_softcapping")},
        m={"act": activation(c)},
        windows=windows,
        norm_names=GEMMA_NORMS,
        logit_softcap=capped(c, "final_logit_softcapping"),
    )


def vaultgemma(c: Config) -> Architecture:
    """VaultGemma: Gemma 2 with norms before the sub-layers alone."""
    windows = layer_windows(c, c.layers(), c.opt_size("sliding_window"), lambda i: i % 2 == 0)
    return llama_like(
        c,
        a={**biases(c), "softcap": capped(c, "attn_logit_softcapping")},
        m={"act": activation(c)},
        windows=windows,
        norm_names=(NORMS[0], GEMMA_NORMS[2]),
        logit_softcap=capped(c, "final_logit_softcapping"),
    )


def gemma3_text(c: Config) -> Architecture:
    """Gemma 3: five sliding layers, then a full one; q/k norms per head."""
    step = c.size("sliding_window_pattern", "_sliding_window_pattern", default=6, high=4096)
    windows = layer_windows(c, c.layers(), c.opt_size("sliding_window"), lambda i: (i + 1) % step != 0)
    return llama_like(
        c,
        a={**biases(c), "qk_norm": "head", "softcap": capped(c, "attn_logit_softcapping")},
        m={"act": activation(c)},
        windows=windows,
        norm_names=GEMMA_NORMS,
        logit_softcap=capped(c, "final_logit_softcapping"),
    )
