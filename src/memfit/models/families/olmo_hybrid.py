"""olmo_hybrid: OLMo with a gated delta net in three layers of four."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp
from memfit.models.config import Config
from memfit.models.families._common import assemble, attention, layout, mlp, norms
from memfit.models.families._recurrent import delta_size, separate_delta_net

TYPES = ("linear_attention", "full_attention")
DELTA_NORMS = ("input_layernorm", "post_attention_layernorm")
FULL_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def read(c: Config) -> Architecture:
    """olmo_hybrid: attention layers normalise after each sub-layer and over all heads of q and k, others before."""
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
        qk_norm="full",
        dropout=c.number("attention_dropout"),
    )
    key_heads = c.size("linear_num_key_heads", default=heads)
    key_dim = c.size("linear_key_head_dim", default=int(0.75 * hidden / key_heads))
    r = delta_size(
        "gdn",
        c.size("linear_num_value_heads", default=heads),
        c.size("linear_value_head_dim", default=2 * key_dim),
        key_heads,
        key_dim,
        c.size("linear_conv_kernel_dim"),
    )
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_act"))

    def make(kind: str) -> Block:
        full = kind == "full_attention"
        return Block(
            kind="full" if full else "gdn",
            attention=a if full else None,
            recurrent=None if full else r,
            ffn=m,
            tensors=(
                *(attention("self_attn", a, hidden) if full else separate_delta_net("linear_attn", r, hidden)),
                *mlp("mlp", m, hidden),
                *norms(FULL_NORMS if full else DELTA_NORMS, hidden),
            ),
        )

    count = c.layers()
    types = c.texts("layer_types", length=count, allowed=TYPES)
    if types is None:
        defaults = [TYPES[i % 4 == 3] for i in range(count)]
        if TYPES[1] not in defaults:
            defaults[-1] = TYPES[1]
        types = tuple(defaults)
    blocks, layers = layout(types, make)
    return assemble(c, hidden=hidden, blocks=blocks, layers=layers)
