"""zamba2: Mamba 2 layers; at some of them a transformer block that several layers share runs first."""

from __future__ import annotations

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Attention, Block, Mlp
from memfit.models.config import MAX_LAYERS, Config
from memfit.models.families._common import Tensors, assemble, layout, linear, mlp, norm
from memfit.models.families._recurrent import head_width, mamba2, mamba2_size

LAYER_NAMES = ("mamba", "linear_attention", "hybrid")
# The class default: one plain layer, seven times five plain and one hybrid, then nine hybrids in all among the rest.
DEFAULT = "m" + "mmmmmh" * 7 + "mmmm" + "h" + "mmm" + "h" + "mm"


def _adapter(name: str, rank: int, width_in: int, width_out: int) -> Tensors:
    return (
        *linear(f"{name}.0", width_in, rank, "attention"),
        *linear(f"{name}.1", rank, width_out, "attention"),
    )


def read(c: Config) -> Architecture:
    """zamba2: the shared block reads hidden state and embedding side by side (2 D), specialised by low-rank adapters.

    The shared blocks are counted once each, outside the layers; each hybrid layer holds its adapters and projection.
    """
    hidden = c.size("hidden_size")
    wide = 2 * hidden
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = head_width(c, "num_attention_heads", wide, heads)
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        rotary_dim=head_dim if c.flag("use_mem_rope") else 0,
        dropout=c.number("attention_dropout"),
    )
    bias = c.flag("add_bias_linear")
    m = Mlp(
        intermediate=c.opt_size("intermediate_size") or 4 * hidden,
        fused_gate_up=True,
        act=c.text("hidden_act"),
        bias=bias,
    )
    mamba_heads = c.size("n_mamba_heads")
    r = mamba2_size(
        mamba_heads,
        head_width(c, "n_mamba_heads", int(hidden * c.number("mamba_expand", high=64.0)), mamba_heads),
        c.size("mamba_ngroups"),
        c.size("mamba_d_state"),
        c.size("mamba_d_conv"),
        c.size("chunk_size"),
    )
    rank = c.size("adapter_rank")
    q_out, kv_out = heads * head_dim, a.num_kv_heads * head_dim

    def mamba(owner: str) -> Tensors:
        return mamba2(owner, r, hidden, bias=bias, conv_bias=c.flag("use_conv_bias"))

    def make(hybrid: bool) -> Block:
        if not hybrid:
            return Block(
                kind="mamba", recurrent=r, num_norms=1, tensors=(*mamba("mamba"), *norm("input_layernorm", hidden))
            )
        shared = "shared_transformer"
        adapters = _adapter(f"{shared}.feed_forward.gate_up_proj_adapter_list.*", rank, hidden, 2 * m.intermediate)
        if c.flag("use_shared_attention_adapter"):
            for side in "qkv":
                adapters += _adapter(f"{shared}.self_attn.linear_{side}_adapter_list.*", rank, wide, wide)
        return Block(
            kind="full|mamba",
            attention=a,
            recurrent=r,
            ffn=m,
            num_norms=3,
            tensors=(
                *linear("linear", hidden, hidden, "other"),
                *mamba("mamba_decoder.mamba"),
                *norm("mamba_decoder.input_layernorm", hidden),
                *adapters,
            ),
        )

    count = c.layers()
    stated = c.texts("layers_block_type", "layer_types", length=count, allowed=LAYER_NAMES)
    if stated is None and count > len(DEFAULT):
        raise ConfigError(f"configuration key `{c.path}layers_block_type`: must be stated for {count} layers")
    kinds = [t == "hybrid" for t in stated] if stated else [letter == "h" for letter in DEFAULT[:count]]
    shared: list[Tensors] = []
    hybrids = [i for i, hybrid in enumerate(kinds) if hybrid]
    for index in hybrids[: c.size("num_mem_blocks", high=MAX_LAYERS)]:
        owner = f"model.layers.{index}.shared_transformer"
        shared.append(
            (
                *linear(f"{owner}.self_attn.q_proj", wide, q_out, "attention", tp="column"),
                *linear(f"{owner}.self_attn.k_proj", wide, kv_out, "attention", tp="column"),
                *linear(f"{owner}.self_attn.v_proj", wide, kv_out, "attention", tp="column"),
                *linear(f"{owner}.self_attn.o_proj", q_out, hidden, "attention", tp="row"),
                *mlp(f"{owner}.feed_forward", m, hidden),
                *norm(f"{owner}.input_layernorm", wide),
                *norm(f"{owner}.pre_ff_layernorm", hidden),
            )
        )
    blocks, layers = layout(kinds, make)
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        extra=tuple(t for block in shared for t in block),
        final_norm=norm("model.final_layernorm", hidden),
    )
