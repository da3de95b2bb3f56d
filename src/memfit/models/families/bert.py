"""bert and the encoders of its shape: roberta, xlm-roberta, camembert, electra, distilbert."""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Mlp
from memfit.models.config import Config
from memfit.models.families._common import Tensors, attention, embedding, linear, mlp, norm, norms, uniform
from memfit.models.families._encoder import (
    assemble_encoder,
    classifier,
    labels_of,
    task,
    transform,
    vocabulary,
)

PREFIXES = {"bert": "bert.", "electra": "electra."}  # all others are RoBERTa's
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def _attention(c: Config, hidden: int, *dropout: str) -> Attention:
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.head_dim(hidden, heads)
    return Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        causal=c.flag("is_decoder"),
        qkv_bias=True,
        out_bias=True,
        dropout=c.number(dropout[0], *dropout[1:]),
    )


def read(c: Config) -> Architecture:
    """bert, roberta, xlm-roberta, camembert, electra; the class under ``architectures`` decides pooler and head."""
    hidden = c.size("hidden_size")
    what = task(c)
    base = PREFIXES.get(c.model_type, "roberta.") if what else ""
    a = _attention(c, hidden, "attention_probs_dropout_prob")
    dropout = c.number("hidden_dropout_prob")
    m = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=c.text("hidden_act"), bias=True)
    names: dict[str, Any] = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}
    block = Block(
        kind="encoder",
        attention=a,
        ffn=m,
        norm="layer",
        dropout=dropout,
        tensors=(
            *attention("attention", a, hidden, **names),
            *mlp("", m, hidden, up="intermediate.dense", down="output.dense"),
            *norms(NORMS, hidden, bias=True),
        ),
    )
    width = c.size("embedding_size") if c.model_type == "electra" else hidden
    owner = f"{base}embeddings"
    embeddings = (
        *embedding(f"{owner}.position_embeddings", c.size("max_position_embeddings"), width, split=False),
        *embedding(f"{owner}.token_type_embeddings", c.size("type_vocab_size"), width, split=False),
        *norm(f"{owner}.LayerNorm", width, bias=True),
    )
    if width != hidden:
        embeddings += linear(f"{base}embeddings_project", width, hidden, "embedding", bias=True)
    labels = labels_of(c, what)
    vocab = c.size("vocab_size")
    make = {"bert": _bert_head, "electra": _electra_head}.get(c.model_type, _roberta_head)
    after, head, tied = make(c, what, hidden, width, vocab, labels, base)
    blocks, layers = uniform(block, c.layers())
    return assemble_encoder(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        prefix=f"{base}encoder.layer.{{}}",
        words=f"{owner}.word_embeddings",
        width=width,
        embeddings=embeddings,
        after=after,
        head=head,
        tied=tied,
        labels=labels,
        embed_dropout=dropout,
        max_positions=c.size("max_position_embeddings"),
    )


Head = tuple[Tensors, Tensors, bool]


def _pooler(base: str, hidden: int) -> Tensors:
    return linear(f"{base}pooler.dense", hidden, hidden, "other", bias=True)


def _bert_head(c: Config, what: str, hidden: int, _width: int, vocab: int, labels: int, base: str) -> Head:
    if what in ("ForTokenClassification", "ForQuestionAnswering"):
        return (), classifier(what, hidden, labels), False
    pooler = _pooler(base, hidden)
    if labels:
        return pooler, classifier(what, hidden, labels), False
    if not what:
        return pooler, (), False
    owner = "cls.predictions"
    after = transform(f"{owner}.transform.dense", f"{owner}.transform.LayerNorm", hidden, hidden)
    head, tied = vocabulary(c, f"{owner}.decoder", hidden, vocab, bias=f"{owner}.bias")
    if what == "ForPreTraining":
        return (*pooler, *after), (*head, *linear("cls.seq_relationship", hidden, 2, "head", bias=True)), tied
    return after, head, tied


def _roberta_head(c: Config, what: str, hidden: int, _width: int, vocab: int, labels: int, base: str) -> Head:
    if what == "ForSequenceClassification":
        dense = linear("classifier.dense", hidden, hidden, "head", bias=True)
        return dense, linear("classifier.out_proj", hidden, labels, "head", bias=True), False
    if labels:
        pooler = _pooler(base, hidden) if what == "ForMultipleChoice" else ()
        return pooler, classifier(what, hidden, labels), False
    if not what:
        return _pooler(base, hidden), (), False
    head, tied = vocabulary(c, "lm_head.decoder", hidden, vocab, bias="lm_head.bias")
    return transform("lm_head.dense", "lm_head.layer_norm", hidden, hidden), head, tied


def _electra_head(c: Config, what: str, hidden: int, width: int, vocab: int, labels: int, _base: str) -> Head:
    if what == "ForSequenceClassification":
        dense = linear("classifier.dense", hidden, hidden, "head", bias=True)
        return dense, linear("classifier.out_proj", hidden, labels, "head", bias=True), False
    if what == "ForPreTraining":
        owner = "discriminator_predictions"
        dense = linear(f"{owner}.dense", hidden, hidden, "head", bias=True)
        return dense, linear(f"{owner}.dense_prediction", hidden, 1, "head", bias=True), False
    if labels:
        pooler = (
            linear("sequence_summary.summary", hidden, hidden, "other", bias=True)
            if what == "ForMultipleChoice"
            else ()
        )
        return pooler, classifier(what, hidden, labels), False
    if not what:
        return (), (), False
    owner = "generator_predictions"
    head, tied = vocabulary(c, "generator_lm_head", width, vocab, bias="generator_lm_head.bias")
    return transform(f"{owner}.dense", f"{owner}.LayerNorm", hidden, width), head, tied


def read_distilbert(c: Config) -> Architecture:
    """distilbert: no token types and no pooler; half of BERT's layers in its published sizes."""
    hidden = c.size("hidden_size")
    what = task(c)
    base = "distilbert." if what else ""
    a = _attention(c, hidden, "attention_dropout")
    dropout = c.number("dropout")
    m = Mlp(
        intermediate=c.size("hidden_dim", "intermediate_size"),
        gated=False,
        act=c.text("activation"),
        bias=True,
        dropout=dropout,
    )
    block = Block(
        kind="encoder",
        attention=a,
        ffn=m,
        norm="layer",
        tensors=(
            *attention("attention", a, hidden, q="q_lin", k="k_lin", v="v_lin", o="out_lin"),
            *norm("sa_layer_norm", hidden, bias=True),
            *mlp("ffn", m, hidden, up="lin1", down="lin2"),
            *norm("output_layer_norm", hidden, bias=True),
        ),
    )
    owner = f"{base}embeddings"
    labels = labels_of(c, what)
    after: Tensors = ()
    head: Tensors = ()
    tied = False
    if labels:
        if what in ("ForSequenceClassification", "ForMultipleChoice"):
            after = linear("pre_classifier", hidden, hidden, "head", bias=True)
        head = classifier(what, hidden, labels)
    elif what:
        after = transform("vocab_transform", "vocab_layer_norm", hidden, hidden)
        head, tied = vocabulary(c, "vocab_projector", hidden, c.size("vocab_size"), bias="vocab_projector.bias")
    blocks, layers = uniform(block, c.layers())
    positions = c.size("max_position_embeddings")
    return assemble_encoder(
        c,
        hidden=hidden,
        blocks=blocks,
        layers=layers,
        prefix=f"{base}transformer.layer.{{}}",
        words=f"{owner}.word_embeddings",
        width=hidden,
        embeddings=(
            *embedding(f"{owner}.position_embeddings", positions, hidden, split=False),
            *norm(f"{owner}.LayerNorm", hidden, bias=True),
        ),
        after=after,
        head=head,
        tied=tied,
        labels=labels,
        embed_dropout=dropout,
        max_positions=positions,
    )
