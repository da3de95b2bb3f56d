"""t5 and its kin: mt5, umt5, flan-t5, t5 v1.1, and the encoder alone."""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Stack, Tensor
from memfit.models.config import MAX_LAYERS, Config
from memfit.models.families._common import Tensors, attention, embedding, layout, linear, mlp, norm

NAMES: dict[str, Any] = {"q": "q", "k": "k", "v": "v", "o": "o"}


def read(c: Config) -> Architecture:
    """t5, mt5, umt5. Learned relative-position biases sit in the first layer, in umt5 in every layer.

    The configuration decides whether the head is tied: T5 1.1, Flan-T5 and mT5 state ``tie_word_embeddings: false`` and
    store a head of their own (the newest transformers release would tie it when it builds the class from scratch).
    """
    hidden = c.size("hidden_size")
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.size("d_kv")
    dropout = c.number("dropout_rate")
    gated, _, act = c.text("feed_forward_proj").rpartition("-")
    # T5Config: "gated-gelu" means the tanh approximation written out
    act = "gelu_new" if gated == "gated" and act == "gelu" else act
    m = Mlp(intermediate=c.size("d_ff"), gated=gated == "gated", act=act, dropout=dropout)
    buckets = c.size("relative_attention_num_buckets")
    vocab = c.size("vocab_size")
    everywhere = c.model_type == "umt5"

    def attend(*, causal: bool, cross: bool = False) -> Attention:
        return Attention(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            v_head_dim=head_dim,
            causal=causal,
            cross=cross,
            dropout=dropout,
        )

    def stack(name: str, count: int, *, decoder: bool) -> Stack:
        def make(biased: bool) -> Block:
            a = attend(causal=decoder)
            cross = attend(causal=False, cross=True) if decoder else None
            tensors: Tensors = attention("layer.0.SelfAttention", a, hidden, **NAMES)
            if biased:
                table = "layer.0.SelfAttention.relative_attention_bias.weight"
                tensors += (Tensor(name=table, shape=(buckets, heads), part="attention", tp_dim=1),)
            tensors += norm("layer.0.layer_norm", hidden)
            if cross is not None:
                tensors += attention("layer.1.EncDecAttention", cross, hidden, **NAMES)
                tensors += norm("layer.1.layer_norm", hidden)
            last = 2 if decoder else 1
            up = "wi_1" if m.gated else "wi"
            tensors += mlp(f"layer.{last}.DenseReluDense", m, hidden, gate="wi_0", up=up, down="wo")
            tensors += norm(f"layer.{last}.layer_norm", hidden)
            return Block(
                kind=f"{name}{'+bias' if biased else ''}",
                attention=a,
                cross=cross,
                ffn=m,
                num_norms=3 if decoder else 2,
                dropout=dropout,
                tensors=tensors,
            )

        blocks, layers = layout([everywhere or i == 0 for i in range(count)], make)
        return Stack(name=name, hidden_size=hidden, blocks=blocks, layout=layers, prefix=f"{name}.block.{{}}")

    encoder = stack("encoder", c.layers(), decoder=False)
    encoder_norm = norm("encoder.final_layer_norm", hidden)
    alone = c.architecture_name().endswith("EncoderModel")
    tied = not alone and c.flag("tie_word_embeddings", default=True)
    towers: tuple[Stack, ...] = ()
    if alone:
        main, after = encoder, encoder_norm
    else:
        count = c.opt_size("num_decoder_layers", high=MAX_LAYERS) or c.layers()
        main, after = stack("decoder", count, decoder=True), norm("decoder.final_layer_norm", hidden)
        towers = (
            Stack(
                name="encoder",
                hidden_size=hidden,
                blocks=encoder.blocks,
                layout=encoder.layout,
                prefix=encoder.prefix,
                extra=encoder_norm,
            ),
        )
    return Architecture(
        model_type=c.model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        decoder=main,
        towers=towers,
        embeddings=embedding("shared", vocab, hidden),
        final_norm=after,
        head=() if alone or tied else linear("lm_head", hidden, vocab, "head", tp="column"),
        tied=tied,
        dtype=c.dtype(),
        quantization=c.quantization(),
        embed_dropout=dropout,
        causal=not alone,
        unknowns=tuple(c.notes),
    )
