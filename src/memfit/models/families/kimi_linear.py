"""kimi_linear: Kimi delta attention in most layers, latent attention without position embedding in the others."""

from __future__ import annotations

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe
from memfit.models.config import MAX_LAYERS, Config
from memfit.models.families._common import assemble, layout, mla, mlp, moe, norms
from memfit.models.families._recurrent import delta_size, kimi_delta

NORMS = ("input_layernorm", "post_attention_layernorm")
TYPES = ("linear_attention", "full_attention")


def _full_layers(c: Config, linear: Config, count: int) -> list[bool]:
    """Which layers attend in full; the lists under ``linear_attn_config`` count from one."""
    types = c.texts("layer_types", length=count, allowed=TYPES)
    if types is not None:
        return [t == "full_attention" for t in types]
    full = linear.sizes("full_attn_layers", low=1, high=MAX_LAYERS)
    delta = linear.sizes("kda_layers", low=1, high=MAX_LAYERS)
    if full is None or delta is None:
        return [i > 0 and i % 4 == 0 for i in range(count)]
    if sorted((*full, *delta)) != list(range(1, count + 1)):
        raise ConfigError(
            f"configuration key `{c.path}linear_attn_config`: its two lists must name each of the {count} layers once"
        )
    return [i + 1 in full for i in range(count)]


def read(c: Config) -> Architecture:
    """kimi_linear: the first layers dense, the others with routed and always-on experts."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    nope, rope = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    bias = c.flag("attention_bias")
    a = Attention(
        kind="mla",
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=nope + rope,
        v_head_dim=c.size("v_head_dim"),
        out_bias=bias,
        q_lora_rank=c.opt_size("q_lora_rank") or 0,
        kv_lora_rank=c.size("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        dropout=c.number("attention_dropout"),
    )
    linear = c.child("linear_attn_config")
    delta_heads = linear.size("num_heads", default=c.size("linear_num_heads"))
    width = linear.size("head_dim", default=c.size("linear_head_dim"))
    kernel = linear.size("short_conv_kernel_size", default=c.size("linear_conv_kernel_dim"))
    r = delta_size("kda", delta_heads, width, delta_heads, width, kernel)
    act = c.text("hidden_act")
    experts = c.size("num_experts", "num_local_experts", default=256)
    one = c.size("moe_intermediate_size")
    routed = Moe(
        num_experts=experts,
        top_k=c.size("num_experts_per_tok", "num_experts_per_token", default=8, high=experts),
        intermediate=one,
        act=act,
        shared_intermediate=one * c.size("num_shared_experts", "n_shared_experts", default=1, low=0),
    )
    dense = Mlp(intermediate=c.size("intermediate_size"), act=act)

    def make(kind: tuple[bool, bool]) -> Block:
        full, sparse = kind
        mixer = mla("self_attn", a, hidden, bias=bias) if full else kimi_delta("self_attn", r, hidden)
        ffn = (
            moe("mlp", routed, hidden, correction="gate.e_score_correction_bias")
            if sparse
            else mlp("mlp", dense, hidden)
        )
        return Block(
            kind=f"{'mla' if full else 'kda'}+{'moe' if sparse else 'dense'}",
            attention=a if full else None,
            recurrent=None if full else r,
            ffn=routed if sparse else dense,
            tensors=(*mixer, *ffn, *norms(NORMS, hidden)),
        )

    count = c.layers()
    stated = c.texts("mlp_layer_types", length=count, allowed=("dense", "sparse"))
    first = c.size("first_k_dense_replace", default=1, low=0)
    sparse = [t == "sparse" for t in stated] if stated else [i >= first for i in range(count)]
    blocks, layers = layout(list(zip(_full_layers(c, linear, count), sparse, strict=True)), make)
    return assemble(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        max_positions=c.opt_size("max_position_embeddings", "model_max_length", low=0) or 0,
    )
