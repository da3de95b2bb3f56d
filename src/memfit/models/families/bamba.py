"""IBM's Mamba 2 hybrids: bamba (dense) and granitemoehybrid (Granite 4.0: routed and always-on experts)."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe, Recurrent
from memfit.models.config import Config
from memfit.models.families._common import Tensors, assemble, attention, layout, mlp, moe, norm, norms
from memfit.models.families._recurrent import head_width, mamba2, mamba2_size

LAYER_NAMES = ("mamba", "linear_attention", "attention", "full_attention")


def _attention(c: Config, hidden: int, rotary: float) -> Attention:
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    bias = c.flag("attention_bias")
    return Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        rotary_dim=int(head_dim * rotary),
        qkv_bias=bias,
        out_bias=bias,
        dropout=c.number("attention_dropout"),
    )


def _mamba(c: Config, hidden: int) -> tuple[Recurrent, Tensors]:
    heads = c.size("mamba_n_heads")
    r = mamba2_size(
        heads,
        head_width(c, "mamba_n_heads", int(hidden * c.number("mamba_expand", high=64.0)), heads),
        c.size("mamba_n_groups"),
        c.size("mamba_d_state"),
        c.size("mamba_d_conv"),
        c.size("mamba_chunk_size"),
    )
    return r, mamba2("mamba", r, hidden, bias=c.flag("mamba_proj_bias"), conv_bias=c.flag("mamba_conv_bias"))


def read(c: Config) -> Architecture:
    """bamba: rotary embedding on half of each head; attention at ``attn_layer_indices``."""
    hidden = c.size("hidden_size")
    a = _attention(c, hidden, 0.5)
    r, mamba = _mamba(c, hidden)
    m = Mlp(intermediate=c.size("intermediate_size"), act=c.text("hidden_act"), bias=c.flag("mlp_bias"))

    def make(attends: bool) -> Block:
        return Block(
            kind="full" if attends else "mamba",
            attention=a if attends else None,
            recurrent=None if attends else r,
            ffn=m,
            tensors=(
                *(attention("self_attn", a, hidden) if attends else mamba),
                *mlp("feed_forward", m, hidden),
                *norms(("input_layernorm", "pre_ff_layernorm"), hidden),
            ),
        )

    attending = set(c.sizes("attn_layer_indices") or ())
    blocks, layers = layout([i in attending for i in range(c.layers())], make)
    return assemble(c, hidden=hidden, blocks=blocks, layers=layers, final_norm=norm("model.final_layernorm", hidden))


def read_granite(c: Config) -> Architecture:
    """granitemoehybrid: without experts (``num_local_experts`` 0) the always-on MLP is the only feed-forward layer."""
    hidden = c.size("hidden_size")
    a = _attention(c, hidden, 1.0 if c.text("position_embedding_type") == "rope" else 0.0)
    r, mamba = _mamba(c, hidden)
    act = c.text("hidden_act")
    experts = c.size("num_local_experts", "num_experts", low=0)
    always = Mlp(intermediate=c.size("shared_intermediate_size"), act=act, fused_gate_up=True)
    tensors = mlp("shared_mlp", always, hidden, gate_up="input_linear", down="output_linear")
    ffn: Mlp | Moe = always
    if experts:
        width = c.size("intermediate_size")
        routed = Moe(
            num_experts=experts, top_k=c.size("num_experts_per_tok", high=experts), intermediate=width, act=act
        )
        tensors += moe("block_sparse_moe", routed, hidden, router="router")
        ffn = Moe(
            num_experts=experts,
            top_k=routed.top_k,
            intermediate=width,
            act=act,
            shared_intermediate=always.intermediate,
        )

    def make(attends: bool) -> Block:
        tail = "+moe" if experts else ""
        return Block(
            kind=f"{'full' if attends else 'mamba'}{tail}",
            attention=a if attends else None,
            recurrent=None if attends else r,
            ffn=ffn,
            tensors=(
                *(attention("self_attn", a, hidden) if attends else mamba),
                *tensors,
                *norms(("input_layernorm", "post_attention_layernorm"), hidden),
            ),
        )

    count = c.layers()
    types = c.texts("layer_types", "layers_block_type", length=count, allowed=LAYER_NAMES) or ("mamba",) * count
    blocks, layers = layout([t.endswith("attention") and t != "linear_attention" for t in types], make)
    return assemble(c, hidden=hidden, blocks=blocks, layers=layers)
