"""Mixers whose state does not grow: Mamba 1 and 2, gated delta nets, Kimi delta attention, short convolutions.

Dimension legend: D hidden, I inner width, S state size, G groups, H value heads, K key heads.
Tensor parallelism splits these mixers by head (Mamba 1: by channel): input projections by output, the output projection
by input, per-channel and per-head tensors along dim 0.
"""

from __future__ import annotations

import math

from memfit.errors import ConfigError
from memfit.models.architecture import Recurrent, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, dotted, linear, norm, vector


def conv(name: str, r: Recurrent, *, bias: bool) -> Tensors:
    """A depthwise causal convolution over ``conv_dim`` channels: weight (channels, 1, kernel)."""
    weight = Tensor(name=f"{name}.weight", shape=(r.conv_dim, 1, r.conv_kernel), part="mixer", tp_dim=0)
    return (weight, *vector(f"{name}.bias", r.conv_dim, "mixer", tp_dim=0)) if bias else (weight,)


def step_rank(c: Config, key: str, hidden: int) -> int:
    """Mamba 1's time-step rank: as stated, or D / 16 rounded up for ``auto``."""
    value = c.raw(key)
    return math.ceil(hidden / 16) if value is None or value == "auto" else c.size(key)


def head_width(c: Config, key: str, inner: int, heads: int) -> int:
    """Width of one of ``heads`` (stated under ``key``) that share ``inner`` channels.

    Raises:
        ConfigError: they do not divide them.
    """
    if inner % heads:
        raise ConfigError(f"configuration key `{c.path}{key}`: {heads} heads do not divide the width {inner}")
    return inner // heads


def mamba1_size(inner: int, state: int, kernel: int, rank: int) -> Recurrent:
    """A Mamba 1 mixer: a state of (I, S) per sequence."""
    return Recurrent(
        kind="mamba1",
        inner=inner,
        num_key_heads=1,
        key_dim=state,
        conv_kernel=kernel,
        conv_dim=inner,
        state_elements=inner * state,
        dt_rank=rank,
    )


def mamba1(owner: str, r: Recurrent, hidden: int, *, bias: bool, conv_bias: bool, norms: str = "none") -> Tensors:
    """A Mamba 1 mixer. ``norms``: of dt, B and C: "none", "weight" (Jamba) or "buffer" (Falcon-Mamba: not learned)."""
    out: list[Tensor] = [
        Tensor(name=dotted(owner, "A_log"), shape=(r.inner, r.key_dim), part="mixer", tp_dim=0),
        *vector(dotted(owner, "D"), r.inner, "mixer", tp_dim=0),
        *conv(dotted(owner, "conv1d"), r, bias=conv_bias),
        *linear(dotted(owner, "in_proj"), hidden, 2 * r.inner, "mixer", bias=bias, tp="column"),
        *linear(dotted(owner, "x_proj"), r.inner, r.dt_rank + 2 * r.key_dim, "mixer", tp="row"),
        *linear(dotted(owner, "dt_proj"), r.dt_rank, r.inner, "mixer", bias=True, tp="column"),
        *linear(dotted(owner, "out_proj"), r.inner, hidden, "mixer", bias=bias, tp="row"),
    ]
    if norms != "none":
        for name, width in (("dt_layernorm", r.dt_rank), ("b_layernorm", r.key_dim), ("c_layernorm", r.key_dim)):
            out += vector(dotted(owner, f"{name}.weight"), width, "norm", buffer=norms == "buffer")
    return tuple(out)


def mamba2_size(heads: int, head_dim: int, groups: int, state: int, kernel: int, chunk: int) -> Recurrent:
    """A Mamba 2 mixer: a state of (heads, head dim, S) per sequence; the convolution runs over x, B and C."""
    inner = heads * head_dim
    return Recurrent(
        kind="mamba2",
        inner=inner,
        num_heads=heads,
        head_dim=head_dim,
        num_key_heads=groups,
        key_dim=state,
        conv_kernel=kernel,
        conv_dim=inner + 2 * groups * state,
        state_elements=inner * state,
        chunk=chunk,
    )


def mamba2(
    owner: str,
    r: Recurrent,
    hidden: int,
    *,
    bias: bool,
    conv_bias: bool,
    out_bias: bool | None = None,
    gated_norm: bool = True,
) -> Tensors:
    """A Mamba 2 mixer; one input projection makes gate, x, B, C and dt. ``out_bias`` where it differs from ``bias``."""
    width = r.inner + r.conv_dim + r.num_heads
    out_bias = bias if out_bias is None else out_bias
    out: list[Tensor] = [
        *vector(dotted(owner, "dt_bias"), r.num_heads, "mixer", tp_dim=0),
        *vector(dotted(owner, "A_log"), r.num_heads, "mixer", tp_dim=0),
        *vector(dotted(owner, "D"), r.num_heads, "mixer", tp_dim=0),
        *conv(dotted(owner, "conv1d"), r, bias=conv_bias),
        *linear(dotted(owner, "in_proj"), hidden, width, "mixer", bias=bias, tp="column"),
        *linear(dotted(owner, "out_proj"), r.inner, hidden, "mixer", bias=out_bias, tp="row"),
    ]
    if gated_norm:
        out += vector(dotted(owner, "norm.weight"), r.inner, "norm", tp_dim=0)
    return tuple(out)


def delta_size(
    kind: str, value_heads: int, value_dim: int, key_heads: int, key_dim: int, kernel: int, chunk: int = 64
) -> Recurrent:
    """A delta-rule mixer (``gdn`` or ``kda``): one (key dim, value dim) matrix per value head.

    The default chunk is that of flash-linear-attention and of the transformers fallback.
    """
    return Recurrent(
        kind="kda" if kind == "kda" else "gdn",
        inner=value_heads * value_dim,
        num_heads=value_heads,
        head_dim=value_dim,
        num_key_heads=key_heads,
        key_dim=key_dim,
        conv_kernel=kernel,
        conv_dim=2 * key_heads * key_dim + value_heads * value_dim,
        state_elements=value_heads * key_dim * value_dim,
        chunk=chunk,
    )


def gated_delta_net(owner: str, r: Recurrent, hidden: int, *, fused: bool) -> Tensors:
    """Qwen's gated delta net. ``fused``: Qwen3-Next's two input projections (qkvz and ba); else Qwen3.5's four."""
    keys = r.num_key_heads * r.key_dim
    sides: tuple[tuple[str, int], ...]
    if fused:
        sides = (("in_proj_qkvz", 2 * keys + 2 * r.inner), ("in_proj_ba", 2 * r.num_heads))
    else:
        sides = (
            ("in_proj_qkv", 2 * keys + r.inner),
            ("in_proj_z", r.inner),
            ("in_proj_b", r.num_heads),
            ("in_proj_a", r.num_heads),
        )
    return (
        *vector(dotted(owner, "dt_bias"), r.num_heads, "mixer", tp_dim=0),
        *vector(dotted(owner, "A_log"), r.num_heads, "mixer", tp_dim=0),
        *conv(dotted(owner, "conv1d"), r, bias=False),
        *(t for name, out in sides for t in linear(dotted(owner, name), hidden, out, "mixer", tp="column")),
        *norm(dotted(owner, "norm"), r.head_dim),
        *linear(dotted(owner, "out_proj"), r.inner, hidden, "mixer", tp="row"),
    )


def separate_delta_net(owner: str, r: Recurrent, hidden: int) -> Tensors:
    """OLMo-Hybrid's gated delta net: every input of the rule has a projection of its own."""
    keys = r.num_key_heads * r.key_dim
    sides = (
        ("q_proj", keys),
        ("k_proj", keys),
        ("v_proj", r.inner),
        ("a_proj", r.num_heads),
        ("b_proj", r.num_heads),
        ("g_proj", r.inner),
    )
    return (
        *vector(dotted(owner, "A_log"), r.num_heads, "mixer", tp_dim=0),
        *vector(dotted(owner, "dt_bias"), r.num_heads, "mixer", tp_dim=0),
        *(t for name, out in sides for t in linear(dotted(owner, name), hidden, out, "mixer", tp="column")),
        *conv(dotted(owner, "conv1d"), r, bias=False),
        *norm(dotted(owner, "o_norm"), r.head_dim),
        *linear(dotted(owner, "o_proj"), r.inner, hidden, "mixer", tp="row"),
    )


def kimi_delta(owner: str, r: Recurrent, hidden: int) -> Tensors:
    """Kimi delta attention: decay per channel, decay and output gate through a bottleneck of the head dim."""
    width = r.inner
    return (
        *(
            t
            for name in ("q_proj", "k_proj", "v_proj")
            for t in linear(dotted(owner, name), hidden, width, "mixer", tp="column")
        ),
        *conv(dotted(owner, "conv1d"), r, bias=False),
        *vector(dotted(owner, "forget_gate.dt_bias"), width, "mixer", tp_dim=0),
        Tensor(name=dotted(owner, "forget_gate.A_log"), shape=(1, 1, r.num_heads, 1), part="mixer", tp_dim=2),
        *linear(dotted(owner, "forget_gate.f_a_proj"), hidden, r.head_dim, "mixer"),
        *linear(dotted(owner, "forget_gate.f_b_proj"), r.head_dim, width, "mixer", tp="column"),
        *linear(dotted(owner, "b_proj"), hidden, r.num_heads, "mixer", tp="column"),
        *linear(dotted(owner, "g_a_proj"), hidden, r.head_dim, "mixer"),
        *linear(dotted(owner, "g_b_proj"), r.head_dim, width, "mixer", tp="column"),
        *norm(dotted(owner, "o_norm"), r.head_dim),
        *linear(dotted(owner, "o_proj"), width, hidden, "mixer", tp="row"),
    )


def short_conv(owner: str, hidden: int, kernel: int, *, bias: bool) -> tuple[Recurrent, Tensors]:
    """LFM2's gated short convolution over the hidden channels: no state but the convolution's own."""
    r = Recurrent(kind="conv", inner=hidden, conv_kernel=kernel, conv_dim=hidden)
    return r, (
        *conv(dotted(owner, "conv"), r, bias=bias),
        *linear(dotted(owner, "in_proj"), hidden, 3 * hidden, "mixer", bias=bias, tp="column"),
        *linear(dotted(owner, "out_proj"), hidden, hidden, "mixer", bias=bias, tp="row"),
    )
