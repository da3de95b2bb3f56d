"""Gemma 3n (text): four streams mixed by AltUp, a low-rank LAuReL branch, per-layer embeddings, shared k/v caches."""

from __future__ import annotations

from dataclasses import replace

from memfit.models.architecture import Architecture, Block, Mlp, Tensor
from memfit.models.config import Config
from memfit.models.families._common import (
    Tensors,
    assemble,
    attention,
    embedding,
    layer_windows,
    layout,
    linear,
    mlp,
    norm,
    norms,
    vector,
)
from memfit.models.families._decoder import GEMMA_NORMS, gqa
from memfit.models.families.gemma import capped
from memfit.models.families.llama import biases


def gemma3n_text(c: Config) -> Architecture:
    """The last ``num_kv_shared_layers`` layers have no k/v projections and read an earlier layer's cache."""
    hidden = c.size("hidden_size")
    layers = c.layers()
    streams = c.size("altup_num_inputs", high=64)
    small = c.size("hidden_size_per_layer_input")
    shared = c.size("num_kv_shared_layers", low=0, high=layers)
    a = gqa(c, hidden, qk_norm="head", **biases(c))
    widths = (
        c.sizes("intermediate_size", low=1, length=layers)
        if isinstance(c.raw("intermediate_size"), list)
        else (c.size("intermediate_size"),) * layers
    )
    assert widths is not None
    windows = layer_windows(c, layers, c.opt_size("sliding_window"), lambda i: (i + 1) % 5 != 0)
    more = _branches(c, hidden, streams, small)

    def make(kind: tuple[int | None, bool, int]) -> Block:
        window, own, width = kind
        mine = replace(a, window=window, kv_shared=not own)
        m = Mlp(intermediate=width, act=c.text("hidden_activation", default="gelu_pytorch_tanh"))
        word = "full" if window is None else "sliding"
        return Block(
            kind=f"{word}{'' if own else '+shared-kv'}{'' if width == widths[0] else f'+{width}'}",
            attention=mine,
            ffn=m,
            num_norms=4,
            tensors=(
                *attention("self_attn", mine, hidden, kv_proj=own),
                *mlp("mlp", m, hidden),
                *norms(GEMMA_NORMS, hidden),
                *more,
            ),
        )

    owns = tuple(i < layers - shared for i in range(layers))
    blocks, order = layout(tuple(zip(windows, owns, widths, strict=True)), make)
    rows = c.size("vocab_size_per_layer_input")
    extra = (
        *linear("model.per_layer_model_projection", hidden, layers * small, "other"),
        *norm("model.per_layer_projection_norm", small),
        *(
            t
            for name in ("altup_projections", "altup_unembed_projections")
            for i in range(streams - 1)
            for t in linear(f"model.{name}.{i}", hidden, hidden, "other")
        ),
    )
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=order,
        embeddings=embedding("model.embed_tokens_per_layer", rows, layers * small),
        extra=extra,
        logit_softcap=capped(c, "final_logit_softcapping"),
    )


def _branches(c: Config, hidden: int, streams: int, small: int) -> Tensors:
    """AltUp's coefficients, LAuReL and the gate of the per-layer embedding, one set a layer."""
    rank = c.size("laurel_rank")
    scale = vector("altup.correct_output_scale", hidden) if c.flag("altup_correct_scale") else ()
    return (
        *scale,
        Tensor(name="altup.correction_coefs.weight", shape=(streams, streams), part="other"),
        Tensor(name="altup.prediction_coefs.weight", shape=(streams * streams, streams), part="other"),
        *linear("altup.modality_router", hidden, streams, "other"),
        *norm("altup.router_norm", hidden),
        *linear("laurel.linear_left", hidden, rank, "other"),
        *linear("laurel.linear_right", rank, hidden, "other"),
        *norm("laurel.post_laurel_norm", hidden),
        *linear("per_layer_input_gate", hidden, small, "other"),
        *linear("per_layer_projection", small, hidden, "other"),
        *norm("post_per_layer_input_norm", hidden),
    )
