"""deberta-v2 (also DeBERTa v3): disentangled attention over relative positions."""

from __future__ import annotations

from typing import Any

from memfit.models.architecture import Architecture, Attention, Block, Mlp, Tensor
from memfit.models.config import Config
from memfit.models.families._common import Tensors, attention, embedding, linear, mlp, norm, norms, uniform
from memfit.models.families._encoder import assemble_encoder, classifier, labels_of, task, transform, vocabulary

NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def _position_terms(c: Config) -> tuple[str, ...]:
    """The position terms of the attention score: a list, or a text such as ``p2c|c2p``."""
    value = c.raw("pos_att_type")
    if isinstance(value, str):
        return tuple(value.split("|"))
    return c.texts("pos_att_type") or ()


def read(c: Config) -> Architecture:
    """deberta-v2: one relative-position table for all layers; positions use q and k with ``share_att_key``."""
    hidden = c.size("hidden_size")
    what = task(c)
    base = "deberta." if what else ""
    heads = c.size("num_attention_heads", high=1 << 16)
    head_dim = c.opt_size("attention_head_size") or c.head_dim(hidden, heads)
    a = Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        v_head_dim=head_dim,
        causal=False,
        qkv_bias=True,
        out_bias=True,
        dropout=c.number("attention_probs_dropout_prob"),
    )
    dropout = c.number("hidden_dropout_prob")
    m = Mlp(intermediate=c.size("intermediate_size"), gated=False, act=c.text("hidden_act"), bias=True)
    names: dict[str, Any] = {"q": "self.query_proj", "k": "self.key_proj", "v": "self.value_proj", "o": "output.dense"}
    relative = c.flag("relative_attention")
    positional: Tensors = ()
    if relative and not c.flag("share_att_key"):
        terms = _position_terms(c)
        width = heads * head_dim
        if "c2p" in terms:
            positional += linear("attention.self.pos_key_proj", hidden, width, "attention", bias=True, tp="column")
        if "p2c" in terms:
            positional += linear("attention.self.pos_query_proj", hidden, width, "attention", bias=True, tp="column")
    block = Block(
        kind="encoder",
        attention=a,
        ffn=m,
        norm="layer",
        dropout=dropout,
        tensors=(
            *attention("attention", a, hidden, **names),
            *positional,
            *mlp("", m, hidden, up="intermediate.dense", down="output.dense"),
            *norms(NORMS, hidden, bias=True),
        ),
    )
    positions = c.size("max_position_embeddings")
    width = c.opt_size("embedding_size") or hidden
    owner = f"{base}embeddings"
    embeddings: Tensors = ()
    if c.flag("position_biased_input", default=True):
        embeddings += embedding(f"{owner}.position_embeddings", positions, width, split=False)
    if types := c.size("type_vocab_size", low=0):
        embeddings += embedding(f"{owner}.token_type_embeddings", types, width, split=False)
    if width != hidden:
        embeddings += linear(f"{owner}.embed_proj", width, hidden, "embedding")
    embeddings += norm(f"{owner}.LayerNorm", hidden, bias=True)

    labels = labels_of(c, what)
    after: Tensors = ()
    head: Tensors = ()
    tied = False
    if labels:
        if what not in ("ForTokenClassification", "ForQuestionAnswering"):
            pooled = c.opt_size("pooler_hidden_size") or hidden
            after = linear("pooler.dense", pooled, pooled, "other", bias=True)
        head = classifier(what, hidden, labels)
    elif what:
        after = transform("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", hidden, width)
        head, tied = vocabulary(c, "cls.predictions.decoder", width, c.size("vocab_size"), bias="cls.predictions.bias")
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
        extra=_shared(c, f"{base}encoder", hidden, positions, relative=relative),
        after=after,
        head=head,
        tied=tied,
        labels=labels,
        embed_dropout=dropout,
        max_positions=positions,
    )


def _shared(c: Config, owner: str, hidden: int, positions: int, *, relative: bool) -> Tensors:
    """What all layers share: the relative-position table with its norm, and v2's convolution beside the first layer."""
    out: Tensors = ()
    if relative:
        reach = c.raw("max_relative_positions")
        reach = (
            positions if reach is None or (isinstance(reach, int) and reach < 1) else c.size("max_relative_positions")
        )
        buckets = c.raw("position_buckets")
        if isinstance(buckets, int) and buckets > 0:
            reach = c.size("position_buckets")
        out += embedding(f"{owner}.rel_embeddings", 2 * reach, hidden, split=False)
    if "layer_norm" in c.text("norm_rel_ebd"):
        out += norm(f"{owner}.LayerNorm", hidden, bias=True)
    kernel = c.opt_size("conv_kernel_size", low=0) or 0
    if kernel:
        groups = c.size("conv_groups", default=1)
        out += (
            Tensor(name=f"{owner}.conv.conv.weight", shape=(hidden, hidden // groups, kernel), part="other"),
            Tensor(name=f"{owner}.conv.conv.bias", shape=(hidden,), part="other"),
            *norm(f"{owner}.conv.LayerNorm", hidden, bias=True),
        )
    return out
