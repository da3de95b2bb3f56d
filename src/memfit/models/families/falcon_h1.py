"""falcon_h1: attention and Mamba 2 in parallel in every layer."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Tensor
from memfit.models.config import Config
from memfit.models.families._common import assemble, attention, mlp, norm, norms, uniform
from memfit.models.families._recurrent import head_width, mamba2, mamba2_size

NORMS = ("input_layernorm", "pre_ff_layernorm")


def read(c: Config) -> Architecture:
    """falcon_h1: both mixers read the same normalised input and their outputs are added."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    bias = c.flag("attention_bias")
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        rotary_dim=c.rotary_dim(head_dim),
        qkv_bias=bias,
        out_bias=bias,
        dropout=c.number("attention_dropout"),
    )
    # A null width means the expanded hidden size; a missing one means the default of the class.
    expanded = "mamba_d_ssm" in c.data and c.data["mamba_d_ssm"] is None
    inner = int(hidden * c.number("mamba_expand", high=64.0)) if expanded else c.size("mamba_d_ssm")
    ssm_heads = c.size("mamba_n_heads")
    r = mamba2_size(
        ssm_heads,
        head_width(c, "mamba_n_heads", inner, ssm_heads),
        c.size("mamba_n_groups"),
        c.size("mamba_d_state"),
        c.size("mamba_d_conv"),
        c.size("mamba_chunk_size"),
    )
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_act"), bias=c.flag("mlp_bias"))
    multipliers = Tensor(
        name="mamba.mup_vector", shape=(1, 1, r.inner + r.conv_dim + r.num_heads), part="mixer", buffer=True
    )
    block = Block(
        kind="full|mamba",
        attention=a,
        recurrent=r,
        ffn=m,
        tensors=(
            *mlp("feed_forward", m, hidden),
            *mamba2(
                "mamba",
                r,
                hidden,
                bias=c.flag("mamba_proj_bias"),
                out_bias=c.flag("projectors_bias"),
                conv_bias=c.flag("mamba_conv_bias"),
                gated_norm=c.flag("mamba_rms_norm"),
            ),
            *attention("self_attn", a, hidden),
            *norms(NORMS, hidden),
            multipliers,
        ),
    )
    blocks, layers = uniform(block, c.layers())
    return assemble(c, hidden=hidden, blocks=blocks, layers=layers, final_norm=norm("model.final_layernorm", hidden))
