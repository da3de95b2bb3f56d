"""jamba: Mamba 1 layers with one attention layer in every few, dense and routed feed-forward in turn."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe
from memfit.models.config import Config
from memfit.models.families._common import assemble, attention, layout, mlp, moe, norm, norms
from memfit.models.families._recurrent import mamba1, mamba1_size, step_rank

NORMS = ("input_layernorm", "pre_ff_layernorm")


def read(c: Config) -> Architecture:
    """jamba: attention has no position embedding; dt, B and C are normalised."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        dropout=c.number("attention_dropout"),
    )
    r = mamba1_size(
        int(hidden * c.number("mamba_expand", high=64.0)),
        c.size("mamba_d_state"),
        c.size("mamba_d_conv"),
        step_rank(c, "mamba_dt_rank", hidden),
    )
    width = c.size("intermediate_size")
    act = c.text("hidden_act")
    dense = Mlp(intermediate=width, act=act)
    experts = c.size("num_experts", "num_local_experts")
    routed = Moe(num_experts=experts, top_k=c.size("num_experts_per_tok"), intermediate=width, act=act)

    def make(kind: tuple[bool, bool]) -> Block:
        attends, sparse = kind
        mixer = (
            attention("self_attn", a, hidden)
            if attends
            else mamba1(
                "mamba",
                r,
                hidden,
                bias=c.flag("mamba_proj_bias"),
                conv_bias=c.flag("mamba_conv_bias"),
                norms="weight",
            )
        )
        ffn = moe("feed_forward", routed, hidden, router="router") if sparse else mlp("feed_forward", dense, hidden)
        return Block(
            kind=f"{'full' if attends else 'mamba'}+{'moe' if sparse else 'dense'}",
            attention=a if attends else None,
            recurrent=None if attends else r,
            ffn=routed if sparse else dense,
            tensors=(*mixer, *ffn, *norms(NORMS, hidden)),
        )

    attend_every, attend_at = c.size("attn_layer_period"), c.size("attn_layer_offset", low=0)
    expert_every, expert_at = c.size("expert_layer_period"), c.size("expert_layer_offset", low=0)
    kinds = [(i % attend_every == attend_at, experts > 1 and i % expert_every == expert_at) for i in range(c.layers())]
    blocks, layers = layout(kinds, make)
    return assemble(c, hidden=hidden, blocks=blocks, layers=layers, final_norm=norm("model.final_layernorm", hidden))
