"""modernbert: pre-norm encoder with rotary embedding, gated MLP and local attention in two layers of three."""

from __future__ import annotations

from memfit.models.architecture import Architecture, Attention, Block, Mlp
from memfit.models.config import Config
from memfit.models.families._common import Tensors, attention, layout, linear, mlp, norm
from memfit.models.families._encoder import assemble_encoder, classifier, labels_of, task, vocabulary

TYPES = ("sliding_attention", "full_attention")


def read(c: Config) -> Architecture:
    """modernbert: half of the window ``local_attention`` lies on each side; the first layer has one norm only."""
    hidden = c.size("hidden_size")
    what = task(c)
    base = "model." if what else ""
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    bias, norm_bias = c.flag("attention_bias"), c.flag("norm_bias")
    m = Mlp(
        intermediate=c.size("intermediate_size"),
        fused_gate_up=True,
        act=c.text("hidden_activation"),
        bias=c.flag("mlp_bias"),
        dropout=c.number("mlp_dropout"),
    )

    def make(kind: tuple[str, bool]) -> Block:
        name, first = kind
        local = name == "sliding_attention"
        a = Attention(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            v_head_dim=head_dim,
            window=c.size("local_attention") if local else None,
            causal=False,
            rotary_dim=head_dim,
            fused_qkv=True,
            qkv_bias=bias,
            out_bias=bias,
            dropout=c.number("attention_dropout"),
        )
        return Block(
            kind=f"{'local' if local else 'full'}{'+first' if first else ''}",
            attention=a,
            ffn=m,
            norm="layer",
            num_norms=1 if first else 2,
            tensors=(
                *attention("attn", a, hidden, qkv="Wqkv", o="Wo"),
                *(() if first else norm("attn_norm", hidden, bias=norm_bias)),
                *norm("mlp_norm", hidden, bias=norm_bias),
                *mlp("mlp", m, hidden, gate_up="Wi", down="Wo"),
            ),
        )

    count = c.layers()
    every = c.size("global_attn_every_n_layers", default=3)
    types = c.texts("layer_types", length=count, allowed=TYPES) or tuple(TYPES[i % every == 0] for i in range(count))
    blocks, layers = layout([(t, i == 0) for i, t in enumerate(types)], make)

    labels = labels_of(c, what)
    after: Tensors = norm(f"{base}final_norm", hidden, bias=norm_bias)
    head: Tensors = ()
    tied = False
    if what:
        after += linear("head.dense", hidden, hidden, "head", bias=c.flag("classifier_bias"))
        after += norm("head.norm", hidden, bias=norm_bias)
    if labels:
        head = classifier("", hidden, labels)
    elif what:
        decoder_bias = "decoder.bias" if c.flag("decoder_bias") else ""
        head, tied = vocabulary(c, "decoder", hidden, c.size("vocab_size"), bias=decoder_bias)
    return assemble_encoder(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        prefix=f"{base}layers.{{}}",
        words=f"{base}embeddings.tok_embeddings",
        width=hidden,
        embeddings=norm(f"{base}embeddings.norm", hidden, bias=norm_bias),
        after=after,
        head=head,
        tied=tied,
        labels=labels,
        embed_dropout=c.number("embedding_dropout"),
        max_positions=c.size("max_position_embeddings"),
    )
