"""Encoder-decoders with learned positions: bart, and whisper with its audio encoder."""

from __future__ import annotations

from memfit.errors import ConfigError
from memfit.models.architecture import Architecture, Attention, Block, Mlp, Stack, Tensor
from memfit.models.config import Config
from memfit.models.families._common import (
    Tensors,
    attention,
    embedding,
    linear,
    mlp,
    norm,
    norms,
    num_labels,
    uniform,
)

POSITION_OFFSET = 2  # bart's position tables keep two unused rows


def _stack(c: Config, side: str, hidden: int, *, key_bias: bool, extra: Tensors, tokens: int = 0) -> Stack:
    """One side: self-attention, in the decoder cross-attention, an MLP; biases everywhere but on whisper's keys."""
    decoder = side == "decoder"
    heads = c.size(f"{side}_attention_heads", high=1 << 16)
    if hidden % heads:
        raise ConfigError(f"configuration key `{side}_attention_heads`: {heads} heads do not divide the width {hidden}")
    head_dim = hidden // heads
    dropout = c.number("dropout")

    def attend(*, causal: bool, cross: bool = False) -> Attention:
        return Attention(
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=head_dim,
            v_head_dim=head_dim,
            causal=causal,
            cross=cross,
            qkv_bias=True,
            out_bias=True,
            dropout=c.number("attention_dropout"),
        )

    def projections(owner: str, a: Attention) -> Tensors:
        tensors = attention(owner, a, hidden, o="out_proj")
        return tensors if key_bias else tuple(t for t in tensors if not t.name.endswith("k_proj.bias"))

    a = attend(causal=decoder)
    cross = attend(causal=False, cross=True) if decoder else None
    m = Mlp(
        intermediate=c.size(f"{side}_ffn_dim"),
        gated=False,
        act=c.text("activation_function"),
        bias=True,
        dropout=c.number("activation_dropout"),
    )
    names = ("self_attn_layer_norm", *(("encoder_attn_layer_norm",) if decoder else ()), "final_layer_norm")
    block = Block(
        kind=side,
        attention=a,
        cross=cross,
        ffn=m,
        norm="layer",
        num_norms=len(names),
        dropout=dropout,
        tensors=(
            *projections("self_attn", a),
            *(projections("encoder_attn", cross) if cross is not None else ()),
            *mlp("", m, hidden, up="fc1", down="fc2"),
            *norms(names, hidden, bias=True),
        ),
    )
    blocks, layers = uniform(block, c.layers(f"{side}_layers"))
    return Stack(
        name=side if not tokens else "audio",
        hidden_size=hidden,
        blocks=blocks,
        layout=layers,
        prefix=f"model.{side}.layers.{{}}",
        extra=extra,
        tokens=tokens,
    )


def read(c: Config) -> Architecture:
    """bart: the two sides and the head share one token embedding."""
    hidden = c.size("hidden_size")
    vocab = c.size("vocab_size")
    positions = c.size("max_position_embeddings")
    sides = {
        side: (
            *embedding(f"model.{side}.embed_positions", positions + POSITION_OFFSET, hidden, split=False),
            *norm(f"model.{side}.layernorm_embedding", hidden, bias=True),
        )
        for side in ("encoder", "decoder")
    }
    classifies = c.architecture_name().endswith("ForSequenceClassification")
    labels = 0
    after: Tensors = ()
    tied = False
    if classifies:
        # the class has three labels where the configuration states none
        labels = num_labels(c) if c.has("num_labels") or c.has("id2label") else 3
        after = linear("classification_head.dense", hidden, hidden, "head", bias=True)
        head = linear("classification_head.out_proj", hidden, labels, "head", bias=True)
    else:
        tied = c.flag("tie_word_embeddings", default=True)
        head = () if tied else linear("lm_head", hidden, vocab, "head", tp="column")
        head += (Tensor(name="final_logits_bias", shape=(1, vocab), part="head", buffer=True),)
    return Architecture(
        model_type=c.model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        decoder=_stack(c, "decoder", hidden, key_bias=True, extra=sides["decoder"]),
        towers=(_stack(c, "encoder", hidden, key_bias=True, extra=sides["encoder"]),),
        embeddings=embedding("model.shared", vocab, hidden),
        final_norm=after,
        head=head,
        tied=tied,
        max_positions=positions,
        dtype=c.dtype(),
        quantization=c.quantization(),
        embed_dropout=c.number("dropout"),
        labels=labels,
        unknowns=tuple(c.notes),
    )


def read_whisper(c: Config) -> Architecture:
    """whisper: two convolutions bring 30 s of audio to ``max_source_positions`` frames."""
    hidden = c.size("hidden_size")
    vocab = c.size("vocab_size")
    frames, positions = c.size("max_source_positions"), c.size("max_target_positions")
    mels = c.size("num_mel_bins")
    front: Tensors = ()
    for name, channels in (("conv1", mels), ("conv2", hidden)):
        front += (
            Tensor(name=f"model.encoder.{name}.weight", shape=(hidden, channels, 3), part="embedding"),
            Tensor(name=f"model.encoder.{name}.bias", shape=(hidden,), part="embedding"),
        )
    front += embedding("model.encoder.embed_positions", frames, hidden, split=False)
    front += norm("model.encoder.layer_norm", hidden, bias=True)
    tied = c.flag("tie_word_embeddings", default=True)
    return Architecture(
        model_type=c.model_type,
        hidden_size=hidden,
        vocab_size=vocab,
        decoder=_stack(
            c,
            "decoder",
            hidden,
            key_bias=False,
            extra=embedding("model.decoder.embed_positions", positions, hidden, split=False),
        ),
        towers=(_stack(c, "encoder", hidden, key_bias=False, extra=front, tokens=frames),),
        embeddings=embedding("model.decoder.embed_tokens", vocab, hidden),
        final_norm=norm("model.decoder.layer_norm", hidden, bias=True),
        head=() if tied else linear("proj_out", hidden, vocab, "head", tp="column"),
        tied=tied,
        max_positions=positions,
        dtype=c.dtype(),
        quantization=c.quantization(),
        embed_dropout=c.number("dropout"),
        unknowns=tuple(c.notes),
    )
