"""Gated delta net hybrids of the Qwen line: qwen3_next, and the text part of qwen3_5 and qwen3_5_moe."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Moe, Stack
from memfit.models.config import MAX_LAYERS, Config
from memfit.models.families._common import Tensors, assemble, attention, layout, linear, mlp, moe, norm, norms
from memfit.models.families._recurrent import delta_size, gated_delta_net

NORMS = ("input_layernorm", "post_attention_layernorm")
TYPES = ("linear_attention", "full_attention")


def read(c: Config) -> Architecture:
    """qwen3_next, qwen3_5_text, qwen3_5_moe_text: three delta-net layers, then one gated attention layer."""
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    bias = c.flag("attention_bias")
    a = Attention(
        num_heads=heads,
        num_kv_heads=c.kv_heads(heads),
        head_dim=head_dim,
        v_head_dim=head_dim,
        rotary_dim=c.rotary_dim(head_dim, default=0.25),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm="head",
        output_gate=c.flag("attn_output_gate", default=True),
        dropout=c.number("attention_dropout"),
    )
    r = delta_size(
        "gdn",
        c.size("linear_num_value_heads"),
        c.size("linear_value_head_dim"),
        c.size("linear_num_key_heads"),
        c.size("linear_key_head_dim"),
        c.size("linear_conv_kernel_dim"),
    )
    act = c.text("hidden_act")
    experts = 0 if c.model_type == "qwen3_5_text" else c.size("num_experts", low=0)

    def feed(sparse: bool) -> tuple[Mlp | Moe, Tensors]:
        if not sparse:
            dense = Mlp(intermediate=c.size("intermediate_size"), act=act)
            return dense, mlp("mlp", dense, hidden)
        routed = Moe(
            num_experts=experts,
            top_k=c.size("num_experts_per_tok", high=experts),
            intermediate=c.size("moe_intermediate_size"),
            act=act,
            shared_intermediate=c.size("shared_expert_intermediate_size", low=0),
            shared_gate=True,
        )
        return routed, moe("mlp", routed, hidden, shared="shared_expert")

    def make(kind: tuple[str, bool]) -> Block:
        name, sparse = kind
        ffn, ffn_tensors = feed(sparse)
        attends = name == "full_attention"
        mixer = (
            attention("self_attn", a, hidden)
            if attends
            else gated_delta_net("linear_attn", r, hidden, fused=c.model_type == "qwen3_next")
        )
        return Block(
            kind=f"{'full' if attends else 'gdn'}+{'moe' if sparse else 'dense'}",
            attention=a if attends else None,
            recurrent=None if attends else r,
            ffn=ffn,
            tensors=(*mixer, *ffn_tensors, *norms(NORMS, hidden)),
        )

    count = c.layers()
    every = c.size("full_attention_interval", default=4)
    types = c.texts("layer_types", length=count, allowed=TYPES) or tuple(
        TYPES[(i + 1) % every == 0] for i in range(count)
    )
    step = c.size("decoder_sparse_step", default=1)
    dense_only = set(c.sizes("mlp_only_layers") or ())
    sparse = [bool(experts) and i not in dense_only and (i + 1) % step == 0 for i in range(count)]
    blocks, layers = layout(list(zip(types, sparse, strict=True)), make)

    extra_layers = c.opt_size("mtp_num_hidden_layers", "num_nextn_predict_layers", low=0, high=MAX_LAYERS)
    mtp = None
    if extra_layers:
        mtp = Stack(
            name="mtp",
            hidden_size=hidden,
            blocks=(make(("full_attention", bool(experts))),),
            layout=(0,) * extra_layers,
            prefix="mtp.layers.{}",
            extra=(
                *linear("mtp.fc", 2 * hidden, hidden, "other"),
                *(
                    t
                    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
                    for t in norm(f"mtp.{name}", hidden)
                ),
            ),
        )
    return assemble(c, hidden=hidden, blocks=blocks, layers=layers, mtp=mtp)
